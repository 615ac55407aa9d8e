//! What cannot be handed over is refused when the machine is planned, by one line.

use std::error::Error;

use tdvmm_firmware::fwcfg::{KernelFiles, blob};

use crate::config::{
    ByteSize, CpusConfig, MemoryConfig, PayloadConfig, PlatformConfig, VmConfig, validate,
};
use crate::payload::Firmware;
use crate::plan::{PayloadFacts, Plan};

const LEN: usize = 64 << 10;
const PAYLOAD: u64 = 0x86_1000;
const PAYLOAD_LEN: u64 = 0x10_0000;

type Row = (u32, u32, u64, u64, u32);

/// Type, bytes in the file (from offset 0), address, bytes of memory, attributes.
const BOOT_KERNEL: [Row; 5] = [
    (0, 0x1_0000, 0xffff_0000, 0x1_0000, 1),
    (3, 0, 0xfffe_0000, 0x1_0000, 0),
    (2, 0, 0x80_0000, 0x2_0000, 0),
    (5, 0, PAYLOAD, PAYLOAD_LEN, 0),
    (6, 0, 0x86_0000, 0x1000, 0),
];

/// An image that leads to its descriptor by the pointer of TD-Shim.
fn image(rows: &[Row]) -> Vec<u8> {
    let mut file = vec![0; LEN];
    let at = 0x8000_usize;
    let count = u32::try_from(rows.len()).unwrap();
    let mut put = |at: usize, value: &[u8]| file[at..at + value.len()].copy_from_slice(value);
    put(LEN - 0x20, &0x8000_u32.to_le_bytes());
    put(at, b"TDVF");
    put(at + 4, &(16 + 32 * count).to_le_bytes());
    put(at + 8, &1_u32.to_le_bytes());
    put(at + 12, &count.to_le_bytes());
    for (row, (kind, raw, address, len, attributes)) in rows.iter().enumerate() {
        let at = at + 16 + 32 * row;
        put(at + 4, &raw.to_le_bytes());
        put(at + 8, &address.to_le_bytes());
        put(at + 16, &len.to_le_bytes());
        put(at + 24, &kind.to_le_bytes());
        put(at + 28, &attributes.to_le_bytes());
    }
    file
}

/// The table of GUIDs in the place of the pointer, as TDVF has it.
fn lead_by_table(file: &mut [u8]) {
    const DESCRIPTOR: [u8; 16] =
        *b"\x35\x65\x7a\xe4\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2";
    const FOOTER: [u8; 16] = *b"\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d";
    let mut put = |from_end: usize, value: &[u8]| {
        file[LEN - from_end..][..value.len()].copy_from_slice(value);
    };
    put(0x20, &[0; 4]);
    put(0x30, &FOOTER);
    put(0x32, &40_u16.to_le_bytes());
    put(0x42, &DESCRIPTOR);
    put(0x44, &22_u16.to_le_bytes());
    put(0x48, &0x8000_u32.to_le_bytes());
}

/// A kernel like Debian's: 64-bit entry, 32 MiB from 16 MiB on, 2047 bytes of command line.
fn bzimage() -> Vec<u8> {
    let mut kernel = vec![0; 0x4000];
    kernel[0x1f1] = 1;
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    kernel[0x211] = 1;
    kernel[0x236] = 1;
    kernel[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    kernel[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    kernel[0x260..0x264].copy_from_slice(&(32_u32 << 20).to_le_bytes());
    kernel
}

/// A TD as asked for, and what its files hold.
struct Wanted {
    image: Vec<u8>,
    kernel: Option<Vec<u8>>,
    initramfs: bool,
    shim: bool,
    cmdline: String,
    memory: u64,
    vcpus: u32,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            image: image(&BOOT_KERNEL),
            kernel: Some(bzimage()),
            initramfs: false,
            shim: false,
            cmdline: "quiet".to_owned(),
            memory: 128 << 20,
            vcpus: 1,
        }
    }
}

impl Wanted {
    fn plan(self) -> Result<Plan, String> {
        let with_kernel = self.kernel.is_some();
        let config = VmConfig {
            payload: PayloadConfig {
                firmware: Some("shim.bin".into()),
                kernel: with_kernel.then(|| "vmlinuz".into()),
                initramfs: self.initramfs.then(|| "initrd".into()),
                shim: self.shim.then(|| "shimx64.efi".into()),
                cmdline: with_kernel.then(|| self.cmdline.clone()),
                ..Default::default()
            },
            platform: PlatformConfig {
                tdx: true,
                ..Default::default()
            },
            cpus: CpusConfig {
                boot: self.vcpus,
                ..Default::default()
            },
            memory: MemoryConfig {
                size: ByteSize(self.memory),
                ..Default::default()
            },
            ..Default::default()
        };
        let machine = validate(&config).expect("the options are well-formed");
        let cmdline = self.cmdline;
        let (initramfs, shim) = (self.initramfs, self.shim);
        let facts = PayloadFacts::Firmware(Firmware {
            image: blob(self.image),
            vars: None,
            kernel: self.kernel.map(|kernel| KernelFiles {
                kernel: blob(kernel),
                initramfs: initramfs.then(|| blob(vec![1])),
                cmdline,
                shim: shim.then(|| blob(vec![1])),
            }),
        });
        Plan::new(&machine, &facts).map_err(|error| line(&error))
    }

    fn refusal(self) -> String {
        self.plan().expect_err("this cannot be started")
    }
}

/// As `main` prints it.
fn line(error: &dyn Error) -> String {
    let cause = error.source().map(|cause| format!(": {}", line(cause)));
    format!("{error}{}", cause.unwrap_or_default())
}

#[test]
fn kernel_and_command_line_go_into_memory_and_not_into_fw_cfg() {
    let plan = Wanted::default().plan().unwrap();
    let regions = &plan.td.as_ref().unwrap().regions;
    let at = |gpa| regions.iter().find(|r| r.range.start().0 == gpa).unwrap();
    assert_eq!(at(PAYLOAD).bytes, bzimage());
    assert_eq!(at(0x86_0000).bytes, b"quiet\0");
    let fw_cfg = &plan.firmware().unwrap().fw_cfg;
    assert!(
        !fw_cfg
            .files
            .iter()
            .any(|(name, _)| name == "etc/boot/kernel")
    );
}

#[test]
fn image_is_not_copied_for_the_plan() {
    let image = image(&BOOT_KERNEL);
    let at = image.as_ptr();
    let wanted = Wanted {
        image,
        ..Default::default()
    };
    let plan = wanted.plan().unwrap();
    assert_eq!(plan.firmware().unwrap().image().as_ptr(), at);
}

#[test]
fn vcpus_that_td_shim_has_no_room_for_are_refused_with_how_many_it_has_room_for() {
    let wanted = |vcpus| Wanted {
        vcpus,
        ..Default::default()
    };
    let refusal = |vcpus| {
        format!(
            "--cpus boot={vcpus}: TD-Shim has room in its ACPI tables for 313 vCPUs; ask for fewer, or take OVMF"
        )
    };
    assert!(wanted(313).plan().is_ok());
    assert_eq!(wanted(314).refusal(), refusal(314));
    assert_eq!(wanted(1000).refusal(), refusal(1000));
}

#[test]
fn image_that_starts_a_kernel_needs_one() {
    let refusal = Wanted {
        kernel: None,
        ..Default::default()
    };
    assert_eq!(
        refusal.refusal(),
        "--firmware shim.bin: starts the kernel of its Payload section, and there is none; \
         give --kernel with a bzImage (vmlinuz)"
    );
}

#[test]
fn image_with_a_payload_of_its_own_takes_no_kernel() {
    let mut rows = BOOT_KERNEL;
    rows[3].1 = 0x1000;
    // The volume leaves the first page of the file to the payload.
    let mut file = image(&rows[..4]);
    file[0x8010..0x8014].copy_from_slice(&0x1000_u32.to_le_bytes());
    file[0x8014..0x8018].copy_from_slice(&0xf000_u32.to_le_bytes());
    file[0x8018..0x8020].copy_from_slice(&0xffff_1000_u64.to_le_bytes());
    file[0x8020..0x8028].copy_from_slice(&0xf000_u64.to_le_bytes());
    let refusal = Wanted {
        image: file,
        ..Default::default()
    }
    .refusal();
    assert!(
        refusal.starts_with("--kernel vmlinuz: this TD-Shim image brings what it starts"),
        "{refusal}"
    );
}

#[test]
fn what_is_no_kernel_is_refused() {
    let text = Wanted {
        kernel: Some(b"MZ and nothing else".to_vec()),
        ..Default::default()
    };
    assert_eq!(
        text.refusal(),
        "--kernel vmlinuz: the kernel is neither a bzImage nor an x86-64 ELF file with segments; \
         give a bzImage (vmlinuz)"
    );
    let mut old = bzimage();
    old[0x236] = 0;
    let old = Wanted {
        kernel: Some(old),
        ..Default::default()
    }
    .refusal();
    assert!(
        old.starts_with("--kernel vmlinuz: is a bzImage without a 64-bit entry point"),
        "{old}"
    );
}

#[test]
fn kernel_larger_than_its_section_is_refused() {
    let mut kernel = bzimage();
    kernel.resize(0x10_0001, 0);
    let refusal = Wanted {
        kernel: Some(kernel),
        ..Default::default()
    };
    assert_eq!(
        refusal.refusal(),
        "--kernel vmlinuz: kernel of 0x100001 bytes does not fit the Payload section of 0x100000 bytes; \
         take a smaller kernel, or firmware with a larger section"
    );
}

#[test]
fn kernel_that_needs_more_memory_than_there_is_is_refused() {
    let refusal = Wanted {
        memory: 40 << 20,
        ..Default::default()
    };
    assert_eq!(
        refusal.refusal(),
        "--memory size=41943040: the kernel needs RAM up to 0x3000000 to start, and RAM ends at 0x2800000; \
         give the guest more memory"
    );
}

#[test]
fn memory_without_room_for_the_sections_is_refused() {
    let refusal = Wanted {
        memory: 9 << 20,
        ..Default::default()
    };
    // The kernel's own need is looked at first where both lack room.
    assert!(refusal.refusal().starts_with("--memory size=9437184: "));
    let mut kernel = bzimage();
    kernel[0x258..0x264].fill(0);
    let refusal = Wanted {
        memory: 9 << 20,
        kernel: Some(kernel),
        ..Default::default()
    };
    assert_eq!(
        refusal.refusal(),
        "--memory size=9437184: section 3 (Payload) at [0x861000, 0x961000) needs RAM that the guest does not have; \
         give the guest more memory"
    );
}

#[test]
fn initramfs_and_shim_are_refused() {
    let initramfs = Wanted {
        initramfs: true,
        ..Default::default()
    };
    assert_eq!(
        initramfs.refusal(),
        "--initramfs initrd: TD-Shim takes no separate initramfs; build it into the kernel, or take OVMF"
    );
    let shim = Wanted {
        shim: true,
        ..Default::default()
    }
    .refusal();
    assert!(
        shim.starts_with("--shim shimx64.efi: ") && shim.ends_with("; leave it out"),
        "{shim}"
    );
}

#[test]
fn command_line_longer_than_section_or_kernel_takes_is_refused() {
    let refusal = |len| {
        let wanted = Wanted {
            cmdline: "x".repeat(len),
            ..Default::default()
        };
        wanted.refusal()
    };
    let start = format!("--cmdline \"{}\": ", "x".repeat(40));
    assert_eq!(
        refusal(4096),
        format!(
            "{start}command line of 0x1001 bytes with its NUL does not fit the PayloadParam section of 0x1000 bytes; \
             shorten it"
        )
    );
    assert_eq!(
        refusal(2048),
        format!("{start}has 2048 bytes, and the kernel takes 2047; shorten it")
    );
    let fits = Wanted {
        cmdline: "x".repeat(2047),
        ..Default::default()
    };
    assert!(fits.plan().is_ok());
}

#[test]
fn image_without_metadata_is_refused_by_name_and_cause() {
    let refusal = Wanted {
        image: vec![0; LEN],
        ..Default::default()
    }
    .refusal();
    assert!(
        refusal.starts_with("--firmware shim.bin: no TDX metadata"),
        "{refusal}"
    );
}

#[test]
fn elf_kernel_is_refused_where_firmware_starts_efi_programs() {
    let mut rows = BOOT_KERNEL;
    // Without TD-Shim's sections the kernel is offered through fw_cfg.
    rows[3] = (3, 0, 0x90_0000, 0x1000, 0);
    rows[4] = (3, 0, 0x91_0000, 0x1000, 0);
    let mut image = image(&rows);
    lead_by_table(&mut image);
    let mut kernel = vec![0; 0x4000];
    kernel[..6].copy_from_slice(b"\x7fELF\x02\x01");
    kernel[18] = 62;
    let refusal = Wanted {
        image,
        kernel: Some(kernel),
        ..Default::default()
    };
    assert_eq!(
        refusal.refusal(),
        "--kernel vmlinuz: is no EFI program; firmware starts a bzImage (vmlinuz) with an EFI stub"
    );
}
