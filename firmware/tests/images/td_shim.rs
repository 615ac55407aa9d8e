//! Direct boot by TD-Shim.

use sha2::{Digest as _, Sha384};
use tdvmm_arch::Gpa;
use tdvmm_arch::acpi::{self, AcpiInput};
use tdvmm_firmware::image::{Contents, Image};
use tdvmm_firmware::td_shim::{DirectBootError, PayloadInfo, acpi_tables, direct_boot, rtmrs};

use crate::synthetic::{self, Lead};

const SHIM_LEN: usize = 16 << 20;
const PAYLOAD: u64 = 0x86_1000;

fn shim() -> Vec<u8> {
    synthetic::image(SHIM_LEN, Lead::Both, &synthetic::shim_boot_kernel())
}

fn bzimage(len: usize) -> Vec<u8> {
    let mut kernel = vec![0x33; len];
    kernel[0x1f1] = 1;
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel
}

/// A vmlinux with one note and two segments at `at` and 0x3000 further on.
fn vmlinux(at: u64, entry: u64) -> Vec<u8> {
    let mut elf = vec![0; 0x3000];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18..20].copy_from_slice(&62_u16.to_le_bytes());
    elf[24..32].copy_from_slice(&entry.to_le_bytes());
    elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
    elf[54..56].copy_from_slice(&56_u16.to_le_bytes());
    elf[56..58].copy_from_slice(&3_u16.to_le_bytes());
    let segments = [
        (4_u32, 0_u64, 0_u64, 8_u64, 8_u64),
        (1, 0x1000, at, 0x1000, 0x1000),
        (1, 0x2000, at + 0x3000, 0x800, 0x5000),
    ];
    for (index, (kind, offset, paddr, filesz, memsz)) in segments.into_iter().enumerate() {
        let header = &mut elf[64 + 56 * index..][..56];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&offset.to_le_bytes());
        header[24..32].copy_from_slice(&paddr.to_le_bytes());
        header[32..40].copy_from_slice(&filesz.to_le_bytes());
        header[40..48].copy_from_slice(&memsz.to_le_bytes());
    }
    elf[0x1000..0x2000].fill(1);
    elf[0x2000..0x2800].fill(2);
    elf
}

fn refusal(kernel: &[u8], cmdline: &str) -> DirectBootError {
    let file = shim();
    let image = Image::parse(&file).unwrap();
    direct_boot(&image, kernel, cmdline, None).expect_err("cannot be started")
}

#[test]
fn tables_for_hand_off_blocks_are_whole_and_without_root() {
    let built = acpi::build(&AcpiInput::new(2), Gpa(0xe_0000));
    let tables = acpi_tables(&built);
    let mut signatures: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
    signatures.sort_unstable();
    assert_eq!(signatures, [b"APIC", b"DSDT", b"FACP", b"MCFG"]);
    for table in tables {
        assert_eq!(table[4..8], (table.len() as u32).to_le_bytes());
        assert_eq!(
            table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        // X_DSDT (ACPI 6.5, 5.2.9): TD-Shim sets the field of 32 bits alone.
        if table.starts_with(b"FACP") {
            assert_eq!(table[140..148], [0; 8]);
        }
    }
}

#[test]
fn bzimage_and_command_line_go_into_their_sections() {
    let file = shim();
    let image = Image::parse(&file).unwrap();
    assert!(image.wants_payload());
    let kernel = bzimage(0x8000);
    let boot = direct_boot(&image, &kernel, "quiet", None).unwrap();
    assert_eq!(boot.info, PayloadInfo::BzImage);
    assert_eq!(boot.parameters, b"quiet\0");

    let contents = Contents {
        hob: Some(&[1, 2, 3]),
        payload: Some(&boot.payload),
        payload_param: Some(&boot.parameters),
    };
    let regions = image.regions(&contents).unwrap();
    let at = |gpa| {
        regions
            .iter()
            .find(|r| r.range.start() == Gpa(gpa))
            .unwrap()
    };
    assert_eq!(at(PAYLOAD).bytes, kernel);
    assert_eq!(at(0x86_0000).bytes, b"quiet\0");
    assert_eq!(at(0x80_0000).bytes, [1, 2, 3]);
    assert_eq!(regions.len(), 8);
}

#[test]
fn vmlinux_is_laid_out_at_its_physical_addresses() {
    let file = shim();
    let image = Image::parse(&file).unwrap();
    let kernel = vmlinux(PAYLOAD + 0x1000, PAYLOAD + 0x1080);
    let boot = direct_boot(&image, &kernel, "", None).unwrap();
    let entry = Gpa(PAYLOAD + 0x1080);
    assert_eq!(boot.info, PayloadInfo::RawVmlinux { entry });
    let mut expected = vec![0; 0x4800];
    expected[0x1000..0x2000].fill(1);
    expected[0x4000..0x4800].fill(2);
    assert_eq!(boot.payload, expected);
}

#[test]
fn vmlinux_outside_the_section_is_refused() {
    let at = Gpa(PAYLOAD - 0x1000);
    let refused = refusal(&vmlinux(at.0, PAYLOAD), "");
    assert!(matches!(refused, DirectBootError::Elsewhere { at: a, .. } if a == at));
    let at = Gpa(PAYLOAD + 0x200_0000 - 0x5000);
    let refused = refusal(&vmlinux(at.0, PAYLOAD), "");
    assert!(matches!(refused, DirectBootError::Elsewhere { at: a, .. } if a == Gpa(at.0 + 0x3000)));
    let refused = refusal(&vmlinux(PAYLOAD, 0x10_0000), "");
    assert!(matches!(
        refused,
        DirectBootError::Elsewhere {
            at: Gpa(0x10_0000),
            ..
        }
    ));
}

#[test]
fn vmlinux_whose_segments_overlap_throughout_is_refused() {
    let mut kernel = vmlinux(PAYLOAD, PAYLOAD);
    // Each takes all of the section.
    for segment in [1, 2] {
        let header = &mut kernel[64 + 56 * segment..][..56];
        header[24..32].copy_from_slice(&PAYLOAD.to_le_bytes());
        header[40..48].copy_from_slice(&0x200_0000_u64.to_le_bytes());
    }
    assert_eq!(refusal(&kernel, ""), DirectBootError::Overlap(2));
}

#[test]
fn vmlinux_with_segment_outside_the_file_is_refused() {
    let mut kernel = vmlinux(PAYLOAD, PAYLOAD);
    kernel.truncate(0x2700);
    assert_eq!(refusal(&kernel, ""), DirectBootError::Segment(2));
    let mut kernel = vmlinux(PAYLOAD, PAYLOAD);
    kernel[32..40].fill(0xff);
    assert_eq!(refusal(&kernel, ""), DirectBootError::Segment(0));
}

#[test]
fn kernel_of_another_format_is_refused() {
    assert_eq!(refusal(b"MZ", ""), DirectBootError::Format);
    let mut other_machine = vmlinux(PAYLOAD, PAYLOAD);
    other_machine[18] = 183;
    assert_eq!(refusal(&other_machine, ""), DirectBootError::Format);
}

#[test]
fn what_does_not_fit_its_section_is_refused() {
    let (len, room) = (0x200_0001, 0x200_0000);
    let refused = refusal(&bzimage(len), "");
    assert_eq!(refused, DirectBootError::KernelTooLong { len, room });
    let (len, room) = (0x1001, 0x1000);
    let refused = refusal(&bzimage(0x8000), &"x".repeat(0x1000));
    assert_eq!(refused, DirectBootError::CmdlineTooLong { len, room });
    assert_eq!(refusal(&bzimage(0x8000), "a\0"), DirectBootError::Nul(1));
}

#[test]
fn separate_initramfs_is_refused() {
    let file = shim();
    let image = Image::parse(&file).unwrap();
    let kernel = bzimage(0x8000);
    let refused = direct_boot(&image, &kernel, "", Some(&[1]));
    assert_eq!(refused, Err(DirectBootError::Initramfs));
}

#[test]
fn image_that_takes_no_kernel_is_refused() {
    let kernel = bzimage(0x8000);
    let refusal = |rows: &[_]| {
        let file = synthetic::image(SHIM_LEN, Lead::Both, rows);
        direct_boot(&Image::parse(&file).unwrap(), &kernel, "", None).unwrap_err()
    };
    let no_payload = DirectBootError::NoSection("a payload");
    assert_eq!(refusal(&synthetic::shim_elf_in_bfv()), no_payload);
    let rows = synthetic::shim_payload_section(1);
    assert_eq!(refusal(&rows), DirectBootError::Occupied);
}

/// A register after `events`, as one would write it down: each event's digest after the value before it.
fn register(events: &[&[u8]]) -> [u8; 48] {
    events.iter().fold([0; 48], |value, event| {
        let both = [&value[..], &Sha384::digest(event)[..]].concat();
        Sha384::digest(both).into()
    })
}

#[test]
fn registers_take_blocks_kernel_and_command_line_with_their_zeros() {
    let separator = [0; 4];
    let mut payload = bzimage(0x8000);
    let mut parameters = b"quiet\0".to_vec();
    let kernel = payload.clone();
    payload.resize(0x200_0000, 0);
    parameters.resize(0x1000, 0);
    let without = register(&[&separator, &parameters]);
    for (attributes, second) in [
        (0, register(&[&separator, &payload, &parameters])),
        // A payload in MRTD is in no other register.
        (1, without),
    ] {
        let mut rows = synthetic::shim_boot_kernel();
        for row in rows.iter_mut().filter(|row| row.kind == 5) {
            row.attributes = attributes;
        }
        let file = synthetic::image(SHIM_LEN, Lead::Both, &rows);
        let image = Image::parse(&file).unwrap();
        let boot = direct_boot(&image, &kernel, "quiet", None).unwrap();
        let contents = Contents {
            hob: Some(b"blocks"),
            payload: Some(&boot.payload),
            payload_param: Some(&boot.parameters),
        };
        let regions = image.regions(&contents).unwrap();
        let values = rtmrs(&image, &regions)
            .unwrap()
            .map(|value| *value.as_bytes());
        let first = register(&[b"blocks", &separator]);
        assert_eq!(values, [first, second, [0; 48], [0; 48]]);
    }
}

#[test]
fn registers_of_an_image_without_a_kernel_are_not_known() {
    let file = synthetic::image(SHIM_LEN, Lead::Both, &synthetic::shim_elf_in_bfv());
    let image = Image::parse(&file).unwrap();
    let regions = image.regions(&Contents::default()).unwrap();
    assert!(rtmrs(&image, &regions).is_none());
}
