//! Memory that parsing takes is bounded by the size of what is parsed.

use std::fmt::Write as _;

use arbitrary::Unstructured;
use tdvmm_arch::GpaRange;
use tdvmm_firmware::hob::{self, Extensions};
use tdvmm_firmware::image::{Image, SectionKind};
use tdvmm_firmware::inspect;
use tdvmm_firmware::td_shim::direct_boot;
use tdvmm_firmware::varstore::{VariableStore, variables_range};

use crate::corpus_of;
use crate::firmware::image::{self, Shim};
use crate::firmware::{boot, store, vmlinux};
use crate::heap;

/// What may be held whatever the size of the file.
const FIXED: usize = 32 << 10;
/// How many bytes may be held for each byte of the file. The densest are signature lists with an owner
/// and one byte in each entry, of which a report lists the digests: 20 for each.
const TIMES: usize = 24;
/// Measuring costs time in proportion to memory; more says nothing new.
const MEASURED_AT_MOST: u64 = 1 << 20;

/// Does what is done with a firmware file before a launch, and with a file of variables.
fn parse(file: &[u8]) {
    let _ = variables_range(file);
    if let Ok(store) = VariableStore::parse(file) {
        drop(store.keys());
    }
    let Ok(image) = Image::parse(file) else {
        return;
    };
    let ram = GpaRange::constant(0, 0x8000_0000);
    drop(hob::build(&image, &[ram], 4, &Extensions::default()));
    let added = image.sections().iter().filter(|s| s.kind().is_added());
    if added.map(|s| s.range().len()).sum::<u64>() <= MEASURED_AT_MOST {
        let report = inspect::report(file).expect("the image is legal");
        let mut text = String::new();
        write!(text, "{report}").expect("strings take all");
    }
}

fn assert_bounded(what: &str, file: &[u8]) {
    let ((), peak) = heap::peak(|| parse(file));
    let most = FIXED + TIMES * file.len();
    let len = file.len();
    assert!(
        peak <= most,
        "{what}: {peak} bytes held for a file of {len}"
    );
}

#[test]
fn allocator_counts_the_most_that_is_held_at_a_time() {
    let ((), peak) = heap::peak(|| {
        drop(vec![1_u8; 1000]);
        let _both = (vec![1_u8; 300], vec![1_u8; 400]);
    });
    assert_eq!(peak, 1000);
    // What is there before does not count, and what grows counts twice.
    let mut grown = vec![1_u8; 64];
    let ((), peak) = heap::peak(|| grown.reserve_exact(64));
    assert_eq!(peak, 128);
}

#[test]
fn corpus_is_parsed_within_memory_bounded_by_the_file() {
    for (name, bytes) in corpus_of("firmware_bytes") {
        assert_bounded(&name, &bytes);
    }
    for (name, bytes) in corpus_of("firmware_image") {
        if let Ok(file) = image::build(&mut Unstructured::new(&bytes)) {
            assert_bounded(&name, &file);
        }
    }
    for (name, bytes) in corpus_of("firmware_variables") {
        if let Ok(file) = store::build(&mut Unstructured::new(&bytes)) {
            assert_bounded(&name, &file);
        }
    }
}

/// A store of 256 KiB in which `variables` stand one after the other.
fn store_of(variables: &[u8]) -> Vec<u8> {
    let mut volume = store::legal(256 << 10).bytes;
    volume[store::FIRST..][..variables.len()].copy_from_slice(variables);
    volume
}

fn variable(name: &str, vendor: [u8; 16], data: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut bytes = vec![0xaa, 0x55, 0x3f, 0];
    bytes.resize(36, 0);
    bytes.extend((name.len() as u32).to_le_bytes());
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(vendor);
    bytes.extend(name);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0xff);
    bytes
}

const ROOM: usize = (256 << 10) - store::FIRST;

#[test]
fn variables_as_dense_as_they_can_be_are_parsed_within_bounded_memory() {
    for name in ["", "\u{ffff}\u{ffff}"] {
        let one = variable(name, [1; 16], &[]);
        let many = one.repeat(ROOM / one.len());
        // The state in which a variable's name is looked up among the others.
        let mut in_transition = many.clone();
        in_transition[2] = 0x3e;
        for variables in [many, in_transition] {
            let volume = store_of(&variables);
            assert_bounded("variables", &volume);
            assert_bounded("image with variables", &image::ovmf(&volume));
        }
    }
}

#[test]
fn keys_as_dense_as_they_can_be_are_parsed_within_bounded_memory() {
    let header = |len: u32, entry: u32| {
        let mut list = store::X509.to_vec();
        list.extend([len, 0, entry].map(u32::to_le_bytes).concat());
        list
    };
    let room = ROOM - 80;
    let entries = (room - 28) / 17;
    let mut one_list = header(28 + 17 * entries as u32, 17);
    one_list.resize(28 + 17 * entries, 0);
    let mut short_list = header(28 + 17, 17);
    short_list.resize(28 + 17, 0);
    for data in [one_list, short_list.repeat(room / short_list.len())] {
        let volume = store_of(&variable("db", store::SECURITY, &data));
        let keys = VariableStore::parse(&volume).unwrap().keys();
        assert!(keys.db.len() > room / 46, "{}", keys.db.len());
        assert_bounded("keys", &volume);
        assert_bounded("image with keys", &image::ovmf(&volume));
    }
}

#[test]
fn guid_table_as_dense_as_it_can_be_is_parsed_within_bounded_memory() {
    let mut file = image::ovmf(&store::legal(0x2_0000).bytes);
    let entries = image::fill_guid_table(&mut file);
    assert_eq!(Image::parse(&file).unwrap().guid_table().len(), entries);
    assert_bounded("GUID table", &file);
}

/// A vmlinux is laid out, so the section bounds what is held, and not the file.
#[test]
fn vmlinux_is_laid_out_within_the_section() {
    let file = image::td_shim(Shim::TakesKernel);
    let image = Image::parse(&file).unwrap();
    let section = image.section(SectionKind::Payload).unwrap().range();
    let boots = |kernel: &[u8]| {
        let (result, peak) = heap::peak(|| direct_boot(&image, kernel, "quiet", None));
        let most = FIXED + section.len() as usize;
        assert!(peak <= most, "{peak} bytes held for {section}");
        result.is_ok()
    };
    let end = section.end().0;
    let kernel = vmlinux::with_segments(&[end - 0x9000, end - 0x5000, end - 1], 1);
    assert!(kernel.len() < 0x200 && boots(&kernel));
    for (_, bytes) in corpus_of("firmware_kernel") {
        boots(&bytes);
        if let Ok(boot) = boot::build(&mut Unstructured::new(&bytes)) {
            boots(&boot.kernel);
        }
    }
}
