//! A nearly legal store of variables is read, with the keys in it, and put into images.

#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use tdvmm_firmware::varstore::{VariableStore, replace_variables, variables_range};
use tdvmm_fuzz::firmware::{image, store};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = store::build(&mut Unstructured::new(bytes)) else {
        return;
    };
    for mut firmware in image::with_places_for(&file) {
        let before = firmware.clone();
        match replace_variables(&mut firmware, &file) {
            Ok(()) => assert_eq!(variables_range(&firmware), variables_range(&before)),
            Err(_) => assert_eq!(firmware, before),
        }
    }
    let Ok(store) = VariableStore::parse(&file) else {
        return;
    };
    let _ = store.secure_boot();
    let keys = store.keys();
    for key in [keys.pk, keys.kek, keys.db, keys.dbx].concat() {
        assert_eq!(key.sha256.len(), 64);
    }
    for variable in store.variables() {
        assert_eq!(store.data(variable).len(), variable.data.len());
    }
});
