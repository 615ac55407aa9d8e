//! A nearly legal store of variables is read, with the keys in it.

#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use tdvmm_firmware::varstore::VariableStore;
use tdvmm_fuzz::firmware::store;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = store::build(&mut Unstructured::new(bytes)) else {
        return;
    };
    let Ok(store) = VariableStore::parse(&file) else {
        return;
    };
    let _ = (store.keys(), store.secure_boot());
    for variable in store.variables() {
        assert_eq!(store.data(variable).len(), variable.data.len());
    }
});
