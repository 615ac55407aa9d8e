//! A Debian kernel's files: the image to boot and its modules, with what each depends on.
//!
//! The packages have no `modules.dep` (that is made on installation), so dependencies are read from
//! the `depends=` entry of a module's `.modinfo` section, as depmod does.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use lzma_rust2::XzReader;

use crate::debian::Kernel;

/// A kernel module, not compressed.
#[derive(Clone, Debug)]
pub struct Module {
    /// Name with underscores, as in `/proc/modules`.
    pub name: String,
    /// ELF file.
    pub content: Vec<u8>,
}

/// All modules of a kernel by name.
#[derive(Clone, Debug)]
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
}

/// The bzImage of a kernel.
pub fn image(kernel: &Kernel<'_>) -> Result<PathBuf> {
    let root = kernel.unpack("image")?;
    let release = kernel.release();
    // Since 7.2 the image is beside the modules.
    let places = [
        root.join(format!("usr/lib/modules/{release}/vmlinuz")),
        root.join(format!("lib/modules/{release}/vmlinuz")),
        root.join(format!("boot/vmlinuz-{release}")),
    ];
    let found = places.iter().find(|p| p.exists());
    found
        .cloned()
        .ok_or_else(|| anyhow!("no vmlinuz in {}", root.display()))
}

impl Modules {
    /// The modules of a kernel.
    pub fn of(kernel: &Kernel<'_>) -> Result<Self> {
        let part = if kernel.resolved.parts.contains_key("modules") {
            "modules"
        } else {
            "image"
        };
        let root = kernel.unpack(part)?;
        let release = kernel.release();
        let places = [
            root.join(format!("usr/lib/modules/{release}/kernel")),
            root.join(format!("lib/modules/{release}/kernel")),
        ];
        let dir = places.iter().find(|p| p.is_dir());
        Self::scan(dir.ok_or_else(|| anyhow!("no modules in {}", root.display()))?)
    }

    /// The modules in a folder and the folders in it.
    pub fn scan(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut open = vec![dir.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    open.push(entry.path());
                } else if let Some(name) = module_name(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        Ok(Self { files })
    }

    /// Takes another file for a module, for instance a rebuilt `kvm.ko`.
    pub fn replace(&mut self, name: &str, file: &Path) {
        self.files.insert(name.replace('-', "_"), file.to_owned());
    }

    /// The modules named and all that they depend on, in an order in which they can be loaded.
    ///
    /// A name that this kernel has no module for is taken to be built in.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        for name in names {
            self.visit(&name.replace('-', "_"), &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, order: &mut Vec<Module>) -> Result<()> {
        if order.iter().any(|m: &Module| m.name == name) {
            return Ok(());
        }
        let Some(file) = self.files.get(name) else {
            return Ok(());
        };
        let content = read_module(file)?;
        for dependency in depends(&content) {
            self.visit(&dependency, order)?;
        }
        order.push(Module {
            name: name.to_owned(),
            content,
        });
        Ok(())
    }
}

fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = file
        .strip_suffix(".ko")
        .or_else(|| file.strip_suffix(".ko.xz"))?;
    Some(stem.replace('-', "_"))
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if path.extension().is_none_or(|e| e != "xz") {
        return Ok(bytes);
    }
    let mut content = Vec::new();
    XzReader::new(bytes.as_slice(), true)
        .read_to_end(&mut content)
        .with_context(|| format!("cannot decompress {}", path.display()))?;
    Ok(content)
}

/// The `depends=` entry of a module: entries of `.modinfo` are separated by zero bytes.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|w| w == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..]
        .split(|b| *b == 0)
        .next()
        .unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names
        .split(',')
        .filter(|n| !n.is_empty())
        .map(|n| n.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_entry_is_split_and_normalised() {
        let module = b"\x7fELF\0license=GPL\0depends=kvm,ccp,a-b\0retpoline=Y\0";
        assert_eq!(depends(module), ["kvm", "ccp", "a_b"]);
        assert!(depends(b"\0depends=\0x").is_empty());
        assert!(depends(b"nothing").is_empty());
    }

    #[test]
    fn load_order_puts_dependencies_first_and_once() {
        let dir = std::env::temp_dir().join(format!("tdvmm-modules-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for (name, depends) in [("a-x", "b,c"), ("b", "c"), ("c", "")] {
            fs::write(
                dir.join(format!("{name}.ko")),
                format!("\0depends={depends}\0"),
            )
            .unwrap();
        }
        let order = Modules::scan(&dir)
            .unwrap()
            .load_order(&["a-x", "c", "built-in"])
            .unwrap();
        let names: Vec<_> = order.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["c", "b", "a_x"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
