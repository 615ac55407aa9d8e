//! A nearly possible boot is laid out for TD-Shim, and offered through fw_cfg.

#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use tdvmm_firmware::fwcfg::contents;
use tdvmm_firmware::image::{Contents, Image, SectionKind};
use tdvmm_firmware::td_shim::direct_boot;
use tdvmm_fuzz::firmware::boot::{self, Boot};

fuzz_target!(|bytes: &[u8]| {
    let Ok(boot) = boot::build(&mut Unstructured::new(bytes)) else {
        return;
    };
    start(&boot, &boot.kernel);
    start(&boot, bytes);
});

fn start(boot: &Boot, kernel: &[u8]) {
    let image = Image::parse(&boot.image).expect("the image is legal");
    let room = |kind| {
        image
            .section(kind)
            .map_or(0, |section| section.range().len())
    };
    if let Ok(ready) = direct_boot(&image, kernel, &boot.cmdline, boot.initramfs.as_deref()) {
        assert!(ready.payload.len() as u64 <= room(SectionKind::Payload));
        assert!(ready.parameters.len() as u64 <= room(SectionKind::PayloadParam));
        let given = Contents {
            payload: Some(&ready.payload),
            payload_param: Some(&ready.parameters),
            ..Contents::default()
        };
        assert!(image.regions(&given).is_ok());
    }
    let unchecked = Contents {
        payload: Some(kernel),
        payload_param: Some(boot.cmdline.as_bytes()),
        ..Contents::default()
    };
    let _ = image.regions(&unchecked);
    let _ = contents(&boot.fw_cfg(kernel));
}
