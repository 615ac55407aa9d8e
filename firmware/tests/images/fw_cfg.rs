//! fw_cfg contents, with the ACPI loader script run as firmware would.

use std::collections::BTreeMap;

use tdvmm_arch::acpi::{self, AcpiInput};
use tdvmm_arch::{Gpa, RamLayout, e820};
use tdvmm_firmware::fwcfg::{
    AcpiFiles, AcpiPointer, AcpiTable, FwCfgContents, FwCfgError, FwCfgInput, KernelFiles, blob,
    contents, key,
};

fn bzimage(setup_sectors: u8, len: usize) -> Vec<u8> {
    let mut kernel: Vec<u8> = (0..len).map(|byte| (byte % 251) as u8).collect();
    kernel[0x1f1] = setup_sectors;
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel
}

fn with_kernel(kernel: Vec<u8>, cmdline: &str) -> Result<FwCfgContents, FwCfgError> {
    contents(&FwCfgInput {
        cpus: 2,
        kernel: Some(KernelFiles {
            kernel: blob(kernel),
            initramfs: Some(blob(vec![7; 1000])),
            cmdline: cmdline.into(),
            shim: Some(blob(vec![8; 10])),
        }),
        ..FwCfgInput::default()
    })
}

fn number(contents: &FwCfgContents, key: u16) -> u32 {
    u32::from_le_bytes(contents.item(key).unwrap().try_into().unwrap())
}

#[test]
fn kernel_is_offered_whole_and_in_two_parts_unchanged() {
    let kernel = bzimage(3, 10_000);
    let all = with_kernel(kernel.clone(), "console=hvc0").unwrap();
    assert_eq!(all.item(key::SETUP), Some(&kernel[..4 * 512]));
    assert_eq!(all.item(key::KERNEL), Some(&kernel[4 * 512..]));
    assert_eq!(number(&all, key::SETUP_SIZE), 2048);
    assert_eq!(number(&all, key::KERNEL_SIZE), 10_000 - 2048);
    assert_eq!(all.file("etc/boot/kernel"), Some(&kernel[..]));
    assert_eq!(all.file("etc/boot/shim"), Some(&[8; 10][..]));
    assert_eq!(number(&all, key::INITRD_SIZE), 1000);
    assert_eq!(all.item(key::INITRD), Some(&[7; 1000][..]));
    assert_eq!(number(&all, key::CMDLINE_SIZE), 13);
    assert_eq!(all.item(key::CMDLINE), Some(&b"console=hvc0\0"[..]));
}

#[test]
fn kernel_that_is_no_bzimage_has_no_setup_part() {
    let program = vec![0x4d; 3000];
    let all = with_kernel(program.clone(), "").unwrap();
    assert_eq!(number(&all, key::SETUP_SIZE), 0);
    assert_eq!(all.item(key::KERNEL), Some(&program[..]));
}

#[test]
fn setup_of_no_sectors_means_four() {
    let all = with_kernel(bzimage(0, 10_000), "").unwrap();
    assert_eq!(number(&all, key::SETUP_SIZE), 5 * 512);
}

#[test]
fn kernel_shorter_than_its_setup_part_is_refused() {
    let refused = with_kernel(bzimage(40, 10_000), "").unwrap_err();
    let (len, setup) = (10_000, 41 * 512);
    assert_eq!(refused, FwCfgError::ShortKernel { len, setup });
}

#[test]
fn text_with_nul_is_refused() {
    let refused = with_kernel(bzimage(1, 10_000), "a\0b").unwrap_err();
    let what = "kernel command line";
    assert_eq!(refused, FwCfgError::Nul { what, at: 1 });
    let input = FwCfgInput {
        boot_order: Some("\0".into()),
        ..FwCfgInput::default()
    };
    assert!(matches!(
        contents(&input),
        Err(FwCfgError::Nul {
            what: "boot order",
            at: 0
        })
    ));
}

#[test]
fn platform_items_have_their_wire_form() {
    let memory_map = e820::firmware_map(&RamLayout::new(3 << 30).unwrap());
    let all = contents(&FwCfgInput {
        cpus: 0x102,
        memory_map: memory_map.clone(),
        boot_order: Some("/rom@genroms/x\nHALT".into()),
        boot_menu: true,
        ..FwCfgInput::default()
    })
    .unwrap();
    assert_eq!(all.item(key::CPUS), Some(&[2, 1][..]));
    assert_eq!(all.item(key::MAX_CPUS), Some(&[2, 1][..]));
    assert_eq!(all.item(key::BOOT_MENU), Some(&[1, 0][..]));
    assert_eq!(all.file("etc/e820").unwrap().len(), 20 * memory_map.len());
    assert_eq!(
        all.file("etc/system-states").unwrap(),
        [128, 0, 0, 1, 2, 128]
    );
    assert_eq!(all.file("bootorder"), Some(&b"/rom@genroms/x\nHALT\0"[..]));
    for size in [
        key::KERNEL_SIZE,
        key::INITRD_SIZE,
        key::CMDLINE_SIZE,
        key::SETUP_SIZE,
    ] {
        assert_eq!(number(&all, size), 0);
    }
}

#[test]
fn nothing_is_offered_that_was_not_asked_for() {
    let all = contents(&FwCfgInput::default()).unwrap();
    let files: Vec<_> = all.files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(files, ["etc/e820", "etc/system-states"]);
    assert_eq!(all.item(key::KERNEL), None);
}

/// An XSDT with one entry, a FADT with an X_DSDT, and a DSDT.
fn linked_by_hand() -> AcpiFiles {
    let mut tables = vec![0; 0x300];
    let spans = [(0, 44), (0x40, 276), (0x180, 0x60)].map(|(offset, len)| {
        let header = &mut tables[offset..offset + 36];
        header.fill(0x11);
        header[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        AcpiTable { offset, len }
    });
    let pointer = |at, size, target| AcpiPointer { at, size, target };
    AcpiFiles {
        rsdp:
            *b"RSD PTR \x77OEMOEM\x02\0\0\0\0\x24\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x77\0\0\0",
        tables,
        xsdt: 0,
        spans: spans.to_vec(),
        pointers: vec![
            pointer(36, 8, 0x40),
            pointer(0x40 + 40, 4, 0x180),
            pointer(0x40 + 140, 8, 0x180),
        ],
    }
}

/// Runs the script with each file at an address of its own.
fn run_script(all: &FwCfgContents) -> BTreeMap<String, (u64, Vec<u8>)> {
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    };
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    let mut memory = BTreeMap::new();
    let mut next = 0x7f00_0000;
    let script = all.file("etc/table-loader").unwrap();
    assert_eq!(script.len() % 128, 0);
    for command in script.chunks(128) {
        let first = text(&command[4..60]);
        match word(command) {
            1 => {
                let bytes = all.file(&first).unwrap().to_vec();
                assert!(memory.insert(first, (next, bytes)).is_none());
                assert!(word(&command[60..]).is_power_of_two());
                next += 0x1_0000;
            }
            2 => {
                let base = memory[&text(&command[60..116])].0;
                let (at, size) = (word(&command[116..]), usize::from(command[120]));
                let holder = &mut memory.get_mut(&first).unwrap().1;
                let mut field = [0; 8];
                field[..size].copy_from_slice(&holder[at..at + size]);
                let address = (u64::from_le_bytes(field) + base).to_le_bytes();
                assert_eq!(address[size..], [0; 8][size..]);
                holder[at..at + size].copy_from_slice(&address[..size]);
            }
            3 => {
                let [at, start, len] = [60, 64, 68].map(|field| word(&command[field..]));
                let bytes = &mut memory.get_mut(&first).unwrap().1;
                let sum = bytes[start..start + len]
                    .iter()
                    .fold(0_u8, |a, b| a.wrapping_add(*b));
                bytes[at] = bytes[at].wrapping_sub(sum);
            }
            other => panic!("command {other}"),
        }
    }
    memory
}

#[test]
fn loader_script_makes_pointers_and_checksums_right() {
    let acpi = linked_by_hand();
    let all = contents(&FwCfgInput {
        acpi: Some(acpi.clone()),
        ..FwCfgInput::default()
    })
    .unwrap();
    let memory = run_script(&all);
    let (base, tables) = &memory["etc/acpi/tables"];
    let (_, rsdp) = &memory["etc/acpi/rsdp"];
    let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |a, b| a.wrapping_add(*b));
    let address = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());

    for AcpiTable { offset, len } in acpi.spans {
        assert_eq!(sum(&tables[offset..offset + len]), 0);
    }
    assert_eq!(sum(&rsdp[..20]), 0);
    assert_eq!(sum(rsdp), 0);
    assert_eq!(address(&rsdp[24..]), *base);
    assert_eq!(address(&tables[36..]), base + 0x40);
    assert_eq!(address(&tables[0x40 + 140..]), base + 0x180);
    assert_eq!(
        tables[0x40 + 40..0x40 + 44],
        (*base as u32 + 0x180).to_le_bytes()
    );
}

#[test]
fn tables_of_a_machine_are_linked_as_if_they_were_built_where_they_end_up() {
    let input = AcpiInput::new(4);
    let all = contents(&FwCfgInput {
        acpi: Some(AcpiFiles::from(&acpi::build(&input, Gpa(0xe_0000)))),
        ..FwCfgInput::default()
    })
    .unwrap();
    let memory = run_script(&all);
    let (base, tables) = &memory["etc/acpi/tables"];
    let (_, rsdp) = &memory["etc/acpi/rsdp"];
    let there = acpi::build(&input, Gpa(base - acpi::TABLE_ALIGNMENT as u64));
    assert_eq!(tables, &there.blob);
    assert_eq!(rsdp[..], there.rsdp);
}

#[test]
fn acpi_records_outside_the_tables_are_refused() {
    let refused = |change: fn(&mut AcpiFiles)| {
        let mut acpi = linked_by_hand();
        change(&mut acpi);
        let input = FwCfgInput {
            acpi: Some(acpi),
            ..FwCfgInput::default()
        };
        contents(&input).expect_err("a record lies outside")
    };
    let acpi = |what, at| FwCfgError::Acpi {
        what,
        at,
        len: 0x300,
    };
    assert_eq!(refused(|a| a.xsdt = 0x2f0), acpi("XSDT", 0x2f0));
    assert_eq!(
        refused(|a| a.pointers[0].target = 0x300),
        acpi("target of a pointer", 0x300)
    );
    let pointer = "pointer of 4 or 8 bytes";
    assert_eq!(refused(|a| a.pointers[0].at = 0x2f9), acpi(pointer, 0x2f9));
    assert_eq!(refused(|a| a.pointers[0].size = 2), acpi(pointer, 36));
    assert_eq!(
        refused(|a| a.spans[2].len = usize::MAX),
        acpi("table", 0x180)
    );
}
