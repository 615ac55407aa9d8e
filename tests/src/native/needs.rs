//! What a case needs of the machine, and whether it is there.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::guest::compiler;

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A `/dev/kvm` that this process may use and that can create a VM.
    Kvm,
    /// A C compiler, to assemble guests.
    Cc,
    /// A KVM without hardware virtualization, whose emulator lacks some instructions.
    EmulatedRing0,
    /// The right to become another user.
    Root,
    /// A `/dev/kvm` that not every user may open.
    ClosedKvm,
    /// Namespaces for users and mounts, and the tool that makes them.
    Namespaces,
}

impl Need {
    /// Its name in `TDVMM_REQUIRE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Cc => "cc",
            Self::EmulatedRing0 => "emulated-ring0",
            Self::Root => "root",
            Self::ClosedKvm => "closed-kvm",
            Self::Namespaces => "namespaces",
        }
    }

    /// Why it is missing, `None` if it is there.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Kvm => no_kvm(),
            Self::Cc => {
                let cc = compiler();
                let runs = succeeds(Command::new(&cc).arg("--version"));
                (!runs).then(|| format!("no C compiler ({} does not run)", cc.display()))
            }
            Self::EmulatedRing0 => (!Path::new("/sys/module/kvm_pvm").exists()).then(|| {
                "this KVM runs ring 0 on the processor, so it delivers the exception".to_owned()
            }),
            Self::Root => {
                let root = Path::new("/proc/self")
                    .metadata()
                    .is_ok_and(|m| m.uid() == 0);
                (!root).then(|| "only root can become another user".to_owned())
            }
            Self::ClosedKvm => {
                let mode = Path::new("/dev/kvm").metadata().map(|m| m.mode());
                let open = mode.is_ok_and(|mode| mode & 0o6 == 0o6);
                open.then(|| "every user may open /dev/kvm".to_owned())
            }
            Self::Namespaces => {
                let mut unshare = Command::new("unshare");
                let works = succeeds(unshare.args(NEW_MOUNTS).arg("true"));
                (!works).then(|| "no user and mount namespaces (unshare fails)".to_owned())
            }
        }
    }
}

/// Arguments of `unshare` for a command that can change its mounts.
pub const NEW_MOUNTS: [&str; 3] = ["--user", "--map-root-user", "--mount"];

fn no_kvm() -> Option<String> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = opened {
        return Some(format!("/dev/kvm cannot be opened: {error}"));
    }
    let made = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm());
    made.err()
        .map(|error| format!("/dev/kvm cannot create a VM: {error}"))
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
