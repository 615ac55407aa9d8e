//! The conformance list (`tests/emulated-tdx/conformance.toml`) as values.
//!
//! The file's head says what each call means. Two readers run it: the prober in the testbed against a kernel, and the
//! tests of crate `tdx` against its fake, which include this file by path. It therefore depends on serde and toml
//! alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// The whole list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conformance {
    /// Named beginnings of cases.
    pub prelude: BTreeMap<String, Vec<Step>>,
    /// The cases, in file order.
    pub case: Vec<Case>,
}

/// One sequence of calls on a fresh VM.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// `subject_condition_outcome`, unique.
    pub name: String,
    /// Kernel function and reason, where the name does not say it.
    #[serde(default)]
    pub why: String,
    /// Prelude to run first; empty: none.
    pub after: String,
    /// The calls.
    pub steps: Vec<Step>,
}

/// One call and how it must end.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// What to call.
    #[serde(flatten)]
    pub call: Call,
    /// `ok` or an errno's name.
    #[serde(default = "ok")]
    pub expect: String,
}

/// The calls, with their operands.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
#[expect(
    missing_docs,
    reason = "operands are described at the head of conformance.toml"
)]
pub enum Call {
    CreateVm,
    CloseVm,
    SplitIrqchip,
    ApicBusCycles {
        #[serde(default = "crystal")]
        ns: u64,
    },
    Extension {
        cap: u32,
        equals: i32,
    },
    Capabilities {
        #[serde(default = "room")]
        nent: u32,
        #[serde(default)]
        flags: u32,
    },
    InitVm {
        #[serde(default)]
        flags: u32,
        #[serde(default = "sept_ve_disable", deserialize_with = "hex")]
        attributes: u64,
        #[serde(default = "x87_and_sse", deserialize_with = "hex")]
        xfam: u64,
        #[serde(default)]
        cpuid: CpuidVariant,
        #[serde(default)]
        reserved: bool,
        #[serde(default)]
        pointer: Pointer,
        #[serde(default, deserialize_with = "some_hex")]
        hw_error: Option<u64>,
    },
    CreateVcpu {
        #[serde(default)]
        vcpu: u32,
    },
    SetCpuid {
        #[serde(default)]
        vcpu: u32,
        #[serde(default = "yes")]
        x2apic: bool,
        #[serde(default = "four_levels")]
        gpaw: u32,
    },
    TdCpuid {
        #[serde(default)]
        vcpu: u32,
        #[serde(default = "room")]
        nent: u32,
        #[serde(default)]
        nent_updated: bool,
    },
    InitVcpu {
        #[serde(default)]
        vcpu: u32,
        #[serde(default)]
        flags: u32,
        #[serde(default = "hob_address", deserialize_with = "hex")]
        rcx: u64,
    },
    AddSlot {
        #[serde(deserialize_with = "hex")]
        gpa: u64,
        pages: u64,
        #[serde(default = "yes")]
        gmem: bool,
    },
    SetPrivate {
        #[serde(deserialize_with = "hex")]
        gpa: u64,
        pages: u64,
        #[serde(default = "yes")]
        private: bool,
    },
    InitMemRegion {
        #[serde(default)]
        vcpu: u32,
        #[serde(deserialize_with = "hex")]
        gpa: u64,
        pages: u64,
        #[serde(default = "measured")]
        flags: u32,
        #[serde(default)]
        source: Source,
        #[serde(default)]
        pointer: Pointer,
        left: Option<u64>,
    },
    ResumeMemRegion {
        left: Option<u64>,
    },
    Finalize {
        #[serde(default, deserialize_with = "some_hex")]
        hw_error: Option<u64>,
    },
    Run {
        #[serde(default)]
        vcpu: u32,
    },
    Prefault {
        #[serde(deserialize_with = "hex")]
        gpa: u64,
        pages: u64,
    },
    Command {
        on: Target,
        id: u32,
        #[serde(default, deserialize_with = "hex")]
        hw_error_in: u64,
    },
    Inject {
        what: Injection,
        #[serde(default)]
        count: u32,
        #[serde(default)]
        every: u32,
        #[serde(default)]
        errno: String,
    },
    Parameter {
        name: String,
        value: u32,
    },
    Ioctl {
        name: String,
    },
}

/// The CPUID list handed to INIT_VM.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "described at the head of conformance.toml")]
pub enum CpuidVariant {
    #[default]
    Default,
    OnlyGpaw,
    Empty,
    #[serde(rename = "gpaw_255")]
    Gpaw255,
    #[serde(rename = "gpaw_0")]
    Gpaw0,
    #[serde(rename = "gpaw_52")]
    Gpaw52,
    ExtraLeaf,
    DuplicateLeaf,
    OutsideMask,
    Tsx,
    Waitpkg,
    Unflagged,
    OtherIndex,
    Padding,
    #[serde(rename = "nent_257")]
    Nent257,
}

/// Where the struct of INIT_VM or INIT_MEM_REGION is.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "plain words")]
pub enum Pointer {
    #[default]
    Valid,
    Bad,
}

/// The source page of INIT_MEM_REGION.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "plain words")]
pub enum Source {
    #[default]
    Aligned,
    Unaligned,
    Null,
    Unmapped,
}

/// The file descriptor a raw command goes to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "plain words")]
pub enum Target {
    Vm,
    Vcpu,
}

/// What is made to fail.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "described at the head of conformance.toml")]
pub enum Injection {
    InitVmEagain,
    FinalizeBusy,
    MemRegion,
}

impl Conformance {
    /// Reads the list.
    ///
    /// # Errors
    /// The text is not TOML, or a step does not say what its call needs.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// All calls of a case: its prelude, then its own.
    ///
    /// # Panics
    /// When the case names a prelude that the file does not have.
    #[must_use]
    pub fn calls(&self, case: &Case) -> Vec<Step> {
        let mut steps = Vec::new();
        if !case.after.is_empty() {
            let prelude = self.prelude.get(&case.after);
            steps.extend_from_slice(prelude.expect("a case names a prelude of the file"));
        }
        steps.extend_from_slice(&case.steps);
        steps
    }
}

fn ok() -> String {
    "ok".to_owned()
}

fn room() -> u32 {
    256
}

fn yes() -> bool {
    true
}

/// 25 MHz, in nanoseconds.
fn crystal() -> u64 {
    40
}

fn four_levels() -> u32 {
    48
}

/// KVM_TDX_MEASURE_MEMORY_REGION.
fn measured() -> u32 {
    1
}

fn sept_ve_disable() -> u64 {
    1 << 28
}

fn x87_and_sse() -> u64 {
    3
}

fn hob_address() -> u64 {
    0x80_9000
}

fn hex<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    u64::from_str_radix(digits, 16).map_err(serde::de::Error::custom)
}

fn some_hex<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    hex(from).map(Some)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn list_in_the_repository_is_readable_and_its_names_are_unique() {
        let list = Conformance::parse(include_str!("../emulated-tdx/conformance.toml"))
            .expect("the list parses");
        let names: BTreeSet<_> = list.case.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), list.case.len());
        for case in &list.case {
            let makes_vm = |step: &Step| matches!(step.call, Call::CreateVm);
            assert!(list.calls(case).iter().any(makes_vm), "{}", case.name);
        }
    }
}
