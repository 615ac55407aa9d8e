//! Disks to boot from: a GPT with an EFI system partition, in which Debian's GRUB is, and an ext4 root with
//! kernel and initramfs. Made without root and without loop devices, by tools from the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian::Packages;
use crate::unpacked::Unpacked;

/// Name of the root's file system, by which GRUB finds it.
pub const ROOT_LABEL: &str = "tdvmm-root";

const SECTOR: usize = 512;
const MIB: usize = 1 << 20;
/// GRUB has 2.7 MB.
const ESP_MIB: usize = 8;
/// Entries of a partition table, and bytes of each (UEFI 2.11, 5.3.3).
const ENTRIES: usize = 128;
const ENTRY_LEN: usize = 128;
/// The same two as they are in a header.
const ENTRY_FIELDS: [u32; 2] = [128, 128];
const HEADER_LEN: u32 = 92;
/// Sectors of the entries.
const TABLE_SECTORS: usize = ENTRIES * ENTRY_LEN / SECTOR;
/// Type GUIDs as they are on the disk: EFI system, Linux file system data.
const ESP: [u8; 16] = guid(0xc12a_7328, 0xf81f, 0x11d2, 0xba4b_00a0_c93e_c93b);
const LINUX: [u8; 16] = guid(0x0fc6_3daf, 0x8483, 0x4772, 0x8e79_3d69_d847_7de4);

/// What a disk boots.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// bzImage.
    pub kernel: &'a Path,
    /// Initramfs.
    pub initramfs: &'a [u8],
    /// Kernel command line.
    pub command_line: &'a str,
    /// Files of the root besides those two, by path.
    pub files: &'a [(&'a str, &'a [u8])],
}

/// Makes the disk in `folder`, where some files stay behind, and gives its path.
pub fn bootable(packages: &Packages, folder: &Path, boot: &Boot<'_>) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let esp = system_partition(packages, folder, boot)?;
    let root = root_file_system(packages, folder, boot)?;
    let image = folder.join("disk.img");
    fs::write(&image, disk(&[(ESP, esp), (LINUX, root)]))?;
    Ok(image)
}

/// A FAT file system with GRUB where firmware looks on any disk, and its configuration.
fn system_partition(packages: &Packages, folder: &Path, boot: &Boot<'_>) -> Result<Vec<u8>> {
    let tools = Unpacked::open(packages, "mtools")?;
    let image = folder.join("esp.img");
    let grub = packages
        .unpack("grub")?
        .join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed");
    let config = folder.join("grub.cfg");
    fs::write(&config, grub_config(boot.command_line))?;
    let run = |tool: &str, arguments: &[&std::ffi::OsStr]| {
        let mut command = tools.command(&format!("usr/bin/{tool}"));
        command.arg("-i").arg(&image).args(arguments);
        finish(command)
    };
    let sectors = (ESP_MIB * MIB / SECTOR).to_string();
    run(
        "mformat",
        &[
            "-C".as_ref(),
            "-T".as_ref(),
            sectors.as_ref(),
            "::".as_ref(),
        ],
    )?;
    let folders = ["::/EFI", "::/EFI/BOOT", "::/EFI/debian"];
    run("mmd", &folders.map(AsRef::as_ref))?;
    run(
        "mcopy",
        &[grub.as_ref(), "::/EFI/BOOT/BOOTX64.EFI".as_ref()],
    )?;
    // Debian's signed GRUB has this place built in.
    run(
        "mcopy",
        &[config.as_ref(), "::/EFI/debian/grub.cfg".as_ref()],
    )?;
    Ok(fs::read(&image)?)
}

fn grub_config(command_line: &str) -> String {
    format!(
        "set timeout=0\n\
         menuentry 'Debian' {{\n\
         \tsearch --no-floppy --label --set=root --hint=hd0,gpt2 {ROOT_LABEL}\n\
         \tlinux /boot/vmlinuz {command_line}\n\
         \tinitrd /boot/initrd.img\n\
         }}\n"
    )
}

fn root_file_system(packages: &Packages, folder: &Path, boot: &Boot<'_>) -> Result<Vec<u8>> {
    let tree = folder.join("root");
    fs::create_dir_all(tree.join("boot"))?;
    fs::copy(boot.kernel, tree.join("boot/vmlinuz"))?;
    fs::write(tree.join("boot/initrd.img"), boot.initramfs)?;
    for (path, content) in boot.files {
        fs::write(tree.join(path.trim_start_matches('/')), content)?;
    }
    let kernel = usize::try_from(fs::metadata(boot.kernel)?.len())?;
    // Journal, tables and some room.
    let size = (kernel + boot.initramfs.len()).next_multiple_of(MIB) + 12 * MIB;
    let image = folder.join("root.img");
    file_system(packages, &image, size / MIB, Some(&tree))?;
    Ok(fs::read(&image)?)
}

/// Makes an ext4 file system in the new file `image`, with the files of `tree`.
pub fn file_system(
    packages: &Packages,
    image: &Path,
    mebibytes: usize,
    tree: Option<&Path>,
) -> Result<()> {
    // The tool would ask whether to write over what is there.
    let _ = fs::remove_file(image);
    let tools = Unpacked::open(packages, "e2fsprogs")?;
    let mut command = tools.command("usr/sbin/mke2fs");
    // The package's own, whatever the machine has.
    command.env("MKE2FS_CONFIG", tools.root().join("etc/mke2fs.conf"));
    // Blocks of a page, which a small file system does not get by itself: GRUB reads block by block.
    command.args(["-q", "-t", "ext4", "-b", "4096", "-J", "size=4"]);
    command.args(["-L", ROOT_LABEL]);
    if let Some(tree) = tree {
        command.arg("-d").arg(tree);
    }
    command.arg(image).arg(format!("{mebibytes}M"));
    finish(command)
}

fn finish(mut command: Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A whole disk with a GUID partition table and these partitions, one after the other.
fn disk(partitions: &[([u8; 16], Vec<u8>)]) -> Vec<u8> {
    let mut image = vec![0; MIB];
    let mut entries = vec![0; ENTRIES * ENTRY_LEN];
    for (number, (kind, content)) in (1u64..).zip(partitions) {
        let first = image.len() / SECTOR;
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(MIB), 0);
        let last = image.len() / SECTOR - 1;
        let unique = guid(0x7464_766d, 0x6d00, 0x4000, 0x8000_0000_0000_0000 | number);
        let start = (usize::try_from(number).unwrap_or(1) - 1) * ENTRY_LEN;
        let entry = [kind, &unique, &sector(first)[..], &sector(last)[..]].concat();
        entries[start..start + entry.len()].copy_from_slice(&entry);
    }
    // Room for the copy of the table at the end.
    image.resize(image.len() + MIB, 0);
    let last = image.len() / SECTOR - 1;
    let (copy, copy_at) = (last, last - TABLE_SECTORS);
    let mut put = |at: usize, bytes: &[u8]| {
        image[at * SECTOR..at * SECTOR + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &protective_mbr(last));
    put(1, &header(1, copy, 2, copy_at - 1, &entries));
    put(2, &entries);
    put(copy_at, &entries);
    put(copy, &header(copy, 1, copy_at, copy_at - 1, &entries));
    image
}

fn sector(number: usize) -> [u8; 8] {
    (number as u64).to_le_bytes()
}

/// One partition over all of the disk, of the type that says that the table is elsewhere.
fn protective_mbr(last: usize) -> Vec<u8> {
    let mut mbr = vec![0; SECTOR];
    let count = u32::try_from(last).unwrap_or(u32::MAX);
    mbr[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
    mbr[458..462].copy_from_slice(&count.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

/// UEFI 2.11, table 5-5.
fn header(at: usize, other: usize, table: usize, last_usable: usize, entries: &[u8]) -> Vec<u8> {
    let [entries_field, length_field] = ENTRY_FIELDS.map(u32::to_le_bytes);
    let parts: [&[u8]; 13] = [
        b"EFI PART",
        &[0, 0, 1, 0],
        &HEADER_LEN.to_le_bytes(),
        &[0; 8],
        &sector(at),
        &sector(other),
        &sector(2 + TABLE_SECTORS),
        &sector(last_usable),
        &guid(0x7464_766d, 0x6d00, 0x4000, 0x8000_0000_0000_0000),
        &sector(table),
        &entries_field,
        &length_field,
        &crc32(entries).to_le_bytes(),
    ];
    let mut header = parts.concat();
    let checksum = crc32(&header);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// The first three fields of a GUID are little endian on the disk, the rest is as written.
const fn guid(first: u32, second: u16, third: u16, rest: u64) -> [u8; 16] {
    let (a, b, c, d) = (
        first.to_le_bytes(),
        second.to_le_bytes(),
        third.to_le_bytes(),
        rest.to_be_bytes(),
    );
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6],
        d[7],
    ]
}

/// The checksum of Ethernet and zip.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_check_value_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn guid_is_mixed_endian() {
        assert_eq!(ESP[..8], [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
        assert_eq!(ESP[8..], [0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]);
    }

    #[test]
    fn both_tables_of_a_disk_have_right_checksums_and_places() {
        let image = disk(&[(ESP, vec![1; MIB]), (LINUX, vec![2; 3 * SECTOR])]);
        let last = image.len() / SECTOR - 1;
        for at in [1, last] {
            let header = &image[at * SECTOR..at * SECTOR + 92];
            assert_eq!(&header[..8], b"EFI PART");
            let mut zeroed = header.to_vec();
            zeroed[16..20].fill(0);
            assert_eq!(header[16..20], crc32(&zeroed).to_le_bytes());
            assert_eq!(header[24..32], sector(at));
            let table = usize::try_from(u64::from_le_bytes(header[72..80].try_into().unwrap()));
            let table = table.unwrap() * SECTOR;
            let entries = &image[table..table + ENTRIES * ENTRY_LEN];
            assert_eq!(header[88..92], crc32(entries).to_le_bytes());
            assert_eq!(entries[32..40], sector(MIB / SECTOR));
            assert_eq!(
                entries[ENTRY_LEN + 32..ENTRY_LEN + 40],
                sector(2 * MIB / SECTOR)
            );
        }
        assert_eq!(image[MIB], 1);
        assert_eq!(image[2 * MIB], 2);
    }
}
