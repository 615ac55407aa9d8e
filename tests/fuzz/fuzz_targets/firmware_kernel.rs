//! A nearly legal kernel is laid out for TD-Shim, and offered through fw_cfg.

#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use tdvmm_firmware::fwcfg::{FwCfgInput, KernelFiles, blob, contents};
use tdvmm_firmware::image::{Image, SectionKind};
use tdvmm_firmware::td_shim::direct_boot;
use tdvmm_fuzz::firmware::{image, vmlinux};

fuzz_target!(|bytes: &[u8]| {
    let Ok(kernel) = vmlinux::build(&mut Unstructured::new(bytes)) else {
        return;
    };
    for kernel in [&kernel, bytes] {
        let file = image::td_shim();
        let image = Image::parse(&file).expect("the image is legal");
        let section = image
            .section(SectionKind::Payload)
            .expect("it has a payload");
        if let Ok(boot) = direct_boot(&image, kernel, "quiet", None) {
            assert!(boot.payload.len() as u64 <= section.range().len());
        }
        let input = FwCfgInput {
            kernel: Some(KernelFiles {
                kernel: blob(kernel.to_vec()),
                initramfs: None,
                cmdline: String::new(),
                shim: None,
            }),
            ..FwCfgInput::default()
        };
        let _ = contents(&input);
    }
});
