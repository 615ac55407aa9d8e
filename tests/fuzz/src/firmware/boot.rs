//! Direct boots that are nearly possible: an image, and what is to be started by it.

use arbitrary::{Result, Unstructured};
use tdvmm_firmware::fwcfg::{FwCfgInput, KernelFiles, blob};

use super::image::{Shim, td_shim};
use super::{put, vmlinux};

/// Bytes of the Payload and of the PayloadParam section of the images.
const PAYLOAD: usize = 0x2_0000;
const PARAMETERS: usize = 0x1000;

/// Files, and a command line.
#[derive(Debug)]
pub struct Boot {
    /// A legal image, which may lack a section.
    pub image: Vec<u8>,
    /// ELF or bzImage.
    pub kernel: Vec<u8>,
    /// May hold a NUL, and be too long.
    pub cmdline: String,
    /// No such boot takes one.
    pub initramfs: Option<Vec<u8>>,
}

impl Boot {
    /// What is offered through fw_cfg to start `kernel` in this boot.
    #[must_use]
    pub fn fw_cfg(&self, kernel: &[u8]) -> FwCfgInput {
        FwCfgInput {
            kernel: Some(KernelFiles {
                kernel: blob(kernel.to_vec()),
                initramfs: self.initramfs.clone().map(blob),
                cmdline: self.cmdline.clone(),
                shim: None,
            }),
            ..FwCfgInput::default()
        }
    }
}

/// A boot made by the recipe in `u`. Where the recipe ends, zeros choose: an ELF file by itself is a
/// recipe for its boot with nothing else wrong.
pub fn build(u: &mut Unstructured<'_>) -> Result<Boot> {
    let elf = vmlinux::build(u)?;
    let kernel = if u.int_in_range(0..=3)? < 2 {
        elf
    } else {
        bzimage(u)?
    };
    let shim = match u.int_in_range(0..=9)? {
        7 => Shim::NoPayload,
        8 => Shim::NoParameters,
        9 => Shim::OwnPayload,
        _ => Shim::TakesKernel,
    };
    Ok(Boot {
        image: td_shim(shim),
        kernel,
        cmdline: cmdline(u)?,
        initramfs: (u.int_in_range(0..=7)? == 7).then(|| vec![1]),
    })
}

/// A bzImage that may be shorter than its setup part, or larger than the section.
fn bzimage(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let len = match u.int_in_range(0..=3)? {
        0 => 0x8000,
        1 => PAYLOAD,
        2 => PAYLOAD + 1,
        _ => usize::from(u.int_in_range(0x200..=0x1000_u16)?),
    };
    let mut kernel = vec![0x33; len];
    put(&mut kernel, 0x1f1, &[u.arbitrary()?]);
    put(&mut kernel, 0x1fe, &[0x55, 0xaa]);
    put(&mut kernel, 0x202, b"HdrS");
    if u.int_in_range(0..=7)? == 7 {
        let at = *u.choose(&[0x1fe, 0x202])?;
        put(&mut kernel, at, &u.arbitrary::<[u8; 2]>()?);
    }
    Ok(kernel)
}

fn cmdline(u: &mut Unstructured<'_>) -> Result<String> {
    Ok(match u.int_in_range(0..=7)? {
        5 => "a\0b".into(),
        // One byte less would just fit with its NUL.
        6 => "x".repeat(PARAMETERS - usize::from(u.arbitrary::<bool>()?)),
        7 => {
            let len = u.int_in_range(0..=16)?;
            String::from_utf8_lossy(u.bytes(len)?).into_owned()
        }
        _ => "quiet".into(),
    })
}
