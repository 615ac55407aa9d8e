//! Stand-in until the table of `arch` is there.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidEntry {
    pub function: u32,
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuidTable(pub Vec<CpuidEntry>);

impl CpuidTable {
    pub fn iter(&self) -> impl Iterator<Item = &CpuidEntry> {
        self.0.iter()
    }
    pub fn find(&self, function: u32, index: u32) -> Option<&CpuidEntry> {
        self.0
            .iter()
            .find(|e| e.function == function && (e.flags & 1 == 0 || e.index == index))
    }
}

impl From<Vec<CpuidEntry>> for CpuidTable {
    fn from(entries: Vec<CpuidEntry>) -> Self {
        Self(entries)
    }
}
