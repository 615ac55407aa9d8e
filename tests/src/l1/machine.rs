//! An L1 in the making: kernel, modules, files, size; and its start.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use super::logs;
use super::protocol::{SETUP_PATH, Setup};
use super::session::L1;
use crate::cache::lock_file;
use crate::cpio::Archive;
use crate::debian::{Packages, Role};
use crate::kernel::{self, Modules};
use crate::programs;
use crate::qemu::{self, Qemu};

/// Where modules are in L1.
const MODULE_FOLDER: &str = "/modules";
/// Never two L1s at once: each wants more than one CPU of this machine.
const LOCK: &str = "tdvmm-l1.lock";

/// What an L1 is made of.
#[derive(Debug)]
pub struct Machine<'a> {
    packages: &'a Packages,
    /// `None`: no machine, but a folder on a host.
    emulated: Option<Emulated>,
    wanted: Vec<String>,
    parameters: Vec<(String, String)>,
    archive: Archive,
    share: Option<PathBuf>,
    disks: Vec<(PathBuf, u64)>,
    /// CPUs, the first of which stays free of guests.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Value of QEMU's `-cpu`.
    pub cpu_model: String,
    /// Added to the kernel's command line.
    pub kernel_arguments: Vec<String>,
    /// Where the logs of L1 go: its console and QEMU's own output.
    pub log_folder: PathBuf,
}

/// What QEMU boots.
#[derive(Debug)]
struct Emulated {
    qemu: Qemu,
    image: PathBuf,
    modules: Modules,
}

impl<'a> Machine<'a> {
    /// A folder on this host in the place of an L1: the same files at the same paths, and the host's own KVM.
    pub fn on_host(packages: &'a Packages) -> Result<Self> {
        Self::with(packages, None)
    }

    /// An L1 with the kernel that has a role, KVM, busybox, 3 CPUs and 4 GiB.
    pub fn new(packages: &'a Packages, role: Role) -> Result<Self> {
        let kernel = packages.kernel(role)?;
        let emulated = Emulated {
            qemu: Qemu::open(packages)?,
            image: kernel::image(&kernel)?,
            modules: Modules::of(&kernel)?,
        };
        Self::with(packages, Some(emulated))
    }

    fn with(packages: &'a Packages, emulated: Option<Emulated>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut archive = Archive::new();
        archive.copy("/init", 0o755, &programs::build(programs::L1_AGENT)?)?;
        let busybox = packages.unpack("busybox")?.join("usr/bin/busybox");
        archive.copy("/bin/busybox", 0o755, &busybox)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            packages,
            emulated,
            wanted: vec!["kvm-amd".to_owned()],
            parameters: Vec::new(),
            archive,
            share: None,
            disks: Vec::new(),
            cpus: 3,
            memory_mib: 4096,
            // 48 bits: a memory slot above 1 TiB is refused with the default of 40.
            cpu_model: "max,phys-bits=48,la57=off".to_owned(),
            kernel_arguments: Vec::new(),
            log_folder: logs::folder(number),
        })
    }

    /// The packages that it is made of.
    pub fn packages(&self) -> &'a Packages {
        self.packages
    }

    /// The files of L1, to add to.
    pub fn archive(&mut self) -> &mut Archive {
        &mut self.archive
    }

    /// Takes another file for a module; it is loaded where the original would be.
    pub fn replace_module(&mut self, name: &str, file: &Path) {
        if let Some(emulated) = &mut self.emulated {
            emulated.modules.replace(name, file);
        }
    }

    /// Loads a module, and what it depends on, beside `kvm-amd`.
    pub fn add_module(&mut self, name: &str) {
        self.wanted.push(name.to_owned());
    }

    /// Parameters that a module is loaded with, for instance `a=1 b=2`.
    pub fn module_parameters(&mut self, name: &str, parameters: &str) {
        self.parameters
            .push((name.replace('-', "_"), parameters.to_owned()));
    }

    /// Puts QEMU into L1, at [`crate::qemu::PATH_IN_L1`].
    pub fn add_qemu(&mut self) -> Result<()> {
        match &self.emulated {
            Some(emulated) => emulated.qemu.install(&mut self.archive),
            None => bail!("the testbed's QEMU is for L1"),
        }
    }

    /// Puts the image of a kernel into L1.
    pub fn add_kernel(&mut self, role: Role, path: &str) -> Result<()> {
        let image = kernel::image(&self.packages.kernel_parts(role, &["image"])?)?;
        self.archive.copy(path, 0o644, &image)?;
        Ok(())
    }

    /// Shares a folder of this machine with L1, where it appears at `/host`.
    pub fn share(&mut self, folder: &Path) {
        self.wanted
            .extend(["9pnet_virtio".to_owned(), "9p".to_owned()]);
        self.share = Some(folder.to_owned());
    }

    /// Gives L1 a disk, `/dev/vda` and so on: a raw image on this machine, which is zeros whenever L1 starts. What L1
    /// flushes is in the file when the flush returns, whatever becomes of QEMU.
    pub fn add_disk(&mut self, image: &Path, bytes: u64) {
        if self.disks.is_empty() {
            self.wanted.push("virtio_blk".to_owned());
        }
        self.disks.push((image.to_owned(), bytes));
    }

    /// Starts L1 and waits until its agent speaks. An L1 that does not come up is started once more,
    /// and that is said.
    pub fn boot(&self) -> Result<L1> {
        let lock = lock_file(&env::temp_dir().join(LOCK))?;
        fs::create_dir_all(&self.log_folder)?;
        let Some(emulated) = &self.emulated else {
            return Ok(self.start_on_host()?.holding(lock));
        };
        let initramfs = self.log_folder.join("initramfs.cpio");
        fs::write(&initramfs, self.initramfs(emulated)?)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        let result = self.start(emulated, &initramfs).or_else(|error| {
            crate::say(&format!("{error:#}"));
            let error = error.to_string();
            crate::note(&format!(
                "L1 {} did not come up ({}) and was started once more",
                self.log_folder
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy(),
                // What follows is the end of its console.
                error.split(';').next().unwrap_or_default()
            ));
            self.start(emulated, &initramfs)
        });
        // QEMU has read it by the time that the agent speaks.
        let _ = fs::remove_file(&initramfs);
        result.map(|l1| l1.holding(lock))
    }

    /// The agent in a folder with L1's files, in namespaces of its own: whoever may use `/dev/kvm` may do this.
    fn start_on_host(&self) -> Result<L1> {
        let root = self.log_folder.join("root");
        // Left by a session that ended badly; it holds no mount, as those went with their namespace.
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root)?;
        self.archive.unpack(&root)?;
        let console = self.new_console();
        let errors = File::create(&console)?;
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount"])
            .args(["--pid", "--fork", "--kill-child"])
            .arg(root.join("init"))
            .arg("--on-host")
            .arg(&root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        Ok(L1::launch(command, console)?.marked_on_host())
    }

    /// Where the next L1's console goes. Those before it are kept: one that crashed says why in its own.
    fn new_console(&self) -> PathBuf {
        let name = |number: u32| self.log_folder.join(format!("console-{number}.log"));
        let mut number = 1;
        while name(number).exists() {
            number += 1;
        }
        name(number)
    }

    fn start(&self, emulated: &Emulated, initramfs: &Path) -> Result<L1> {
        let console = self.new_console();
        let mut command = emulated.qemu.command();
        command
            .args(qemu::BARE)
            .args(["-machine", "q35,memory-backend=ram"])
            // No host has to have as much free as a guest might use.
            .arg("-object")
            .arg(format!(
                "memory-backend-ram,id=ram,size={}M,reserve=off",
                self.memory_mib
            ))
            .args(["-accel", "tcg,thread=multi,tb-size=1024"])
            .args(["-cpu", &self.cpu_model])
            .args([
                "-smp",
                &self.cpus.to_string(),
                "-m",
                &self.memory_mib.to_string(),
            ])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args([
                "-chardev",
                "stdio,id=agent,signal=off",
                "-device",
                "virtio-serial-pci",
            ])
            .args(["-device", "virtserialport,chardev=agent,name=agent"])
            .arg("-kernel")
            .arg(&emulated.image)
            .arg("-initrd")
            .arg(initramfs)
            .arg("-append")
            .arg(self.command_line());
        if let Some(folder) = &self.share {
            let folder = folder.display();
            command.arg("-virtfs").arg(format!(
                "local,path={folder},mount_tag=host,security_model=none,multidevs=remap"
            ));
        }
        for (number, (image, bytes)) in self.disks.iter().enumerate() {
            File::create(image)
                .and_then(|file| file.set_len(*bytes))
                .with_context(|| format!("cannot make {}", image.display()))?;
            let image = image.display();
            command
                .arg("-drive")
                .arg(format!(
                    "file={image},format=raw,if=none,id=disk{number},cache=writeback"
                ))
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive=disk{number}"));
        }
        let errors = File::create(self.log_folder.join("qemu.log"))?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        L1::launch(command, console)
    }

    fn command_line(&self) -> String {
        let fixed = ["console=ttyS0", "panic=-1", "quiet", "loglevel=4", "no5lvl"];
        let own = self.kernel_arguments.iter().map(String::as_str);
        fixed.into_iter().chain(own).collect::<Vec<_>>().join(" ")
    }

    fn initramfs(&self, emulated: &Emulated) -> Result<Vec<u8>> {
        let mut archive = self.archive.clone();
        let wanted: Vec<&str> = self.wanted.iter().map(String::as_str).collect();
        let mut setup = Setup {
            modules: Vec::new(),
            share: self.share.as_ref().map(|_| "host".to_owned()),
        };
        for module in emulated.modules.load_order(&wanted)? {
            let path = format!("{MODULE_FOLDER}/{}.ko", module.name);
            let own = self
                .parameters
                .iter()
                .filter(|(name, _)| *name == module.name);
            let parameters: Vec<&str> = own.map(|(_, p)| p.as_str()).collect();
            setup.modules.push((path.clone(), parameters.join(" ")));
            archive.file(&path, 0o644, module.content);
        }
        archive.file(SETUP_PATH, 0o644, serde_json::to_vec(&setup)?);
        Ok(archive.to_bytes())
    }
}
