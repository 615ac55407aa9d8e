//! Any bytes as a firmware image and as a store of variables.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tdvmm_firmware::image::Image;
use tdvmm_firmware::varstore::{VariableStore, variables_range};

fuzz_target!(|bytes: &[u8]| {
    // The end matters most and is what a short input can hold, so it is grown at its start.
    let mut file = vec![0; bytes.len().next_multiple_of(0x1000).max(0x1000)];
    let start = file.len() - bytes.len();
    file[start..].copy_from_slice(bytes);
    let _ = Image::parse(&file);
    let _ = Image::parse(bytes);
    let _ = variables_range(bytes);
    let _ = VariableStore::parse(bytes);
});
