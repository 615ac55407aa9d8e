//! qcow2 images behind the whole transport. The images are made here, byte by byte from the format's
//! description (QEMU: docs/interop/qcow2.rst), so that the library is not compared with itself; where
//! `qemu-img` is installed, it judges what was written.
#![cfg(test)]
#![expect(clippy::cast_possible_truncation, reason = "small numbers of the test")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tdvmm_devices::virtio::block::{Block, BlockOptions, DiskOptions, ImageFormat, OpenError};

mod driver;
use driver::pci::Card;
use driver::{Driver, ram};

const CLUSTER: u64 = 1 << 16;
const SIZE: u64 = 4 << 20;
const HEADER: u64 = 0x1_0000;
const STATUS: u64 = 0x1_8000;
const DATA: u64 = 0x2_0000;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// An empty image: header, refcount table, one refcount block, L1 table of zeros.
fn empty(backing: Option<(&str, Option<&str>)>) -> Vec<u8> {
    let mut image = vec![0; 4 * CLUSTER as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(24, &SIZE.to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &(3 * CLUSTER).to_be_bytes());
    put(48, &CLUSTER.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    // 16-bit refcounts, header of 104 bytes.
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    if let Some((name, format)) = backing {
        let mut at = 104;
        if let Some(format) = format {
            put(at, &0xe279_2aca_u32.to_be_bytes());
            put(at + 4, &(format.len() as u32).to_be_bytes());
            put(at + 8, format.as_bytes());
            at += 8 + (format.len() as u64).next_multiple_of(8);
        }
        let name_at = at + 8;
        put(8, &name_at.to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(name_at, name.as_bytes());
    }
    put(CLUSTER, &(2 * CLUSTER).to_be_bytes());
    for cluster in 0..4 {
        put(2 * CLUSTER + 2 * cluster, &1u16.to_be_bytes());
    }
    image
}

/// As [`empty`], of the version that knows no clusters of zeros.
fn empty_v2(backing: Option<(&str, Option<&str>)>) -> Vec<u8> {
    let mut image = empty(backing);
    image[4..8].copy_from_slice(&2u32.to_be_bytes());
    image[72..104].fill(0);
    image
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir_in("/var/tmp").unwrap())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn options(path: &Path) -> DiskOptions {
    DiskOptions {
        path: path.to_owned(),
        read_only: false,
        direct: false,
        format: ImageFormat::Qcow2,
        backing_files: true,
    }
}

fn open(path: &Path) -> Result<Block, OpenError> {
    Block::open(&options(path), &BlockOptions::default())
}

/// A guest with the image as its disk.
struct Guest {
    card: Card,
    ring: Driver,
}

impl Guest {
    fn new(path: &Path) -> Self {
        Self::with(open(path).unwrap(), u64::MAX)
    }

    fn with(block: Block, features: u64) -> Self {
        let ring = Driver::new(ram(&[(0, 0x40_0000)]), 0x1000, 128);
        let mut card = Card::new(Box::new(block), ring.view());
        card.start(features, &[&ring]);
        Guest { card, ring }
    }

    /// One request; its status.
    fn run(&mut self, kind: u32, sector: u64, len: u32) -> u8 {
        self.ring.write(HEADER, &kind.to_le_bytes());
        self.ring.write(HEADER + 8, &sector.to_le_bytes());
        self.ring.write(STATUS, &[0xee]);
        let mut parts = vec![(HEADER, 16, false)];
        if len > 0 {
            parts.push((DATA, len, kind == READ));
        }
        parts.push((STATUS, 1, true));
        self.ring.chain(0, &parts);
        self.ring.offer(0);
        self.card.kick(0);
        self.card.collect(&mut self.ring, 1);
        self.ring.read(STATUS, 1)[0]
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) {
        self.ring.write(DATA, bytes);
        assert_eq!(self.run(WRITE, sector, bytes.len() as u32), 0);
    }

    fn read(&mut self, sector: u64, len: u32) -> Vec<u8> {
        self.ring.write(DATA, &vec![0xaa; len as usize]);
        assert_eq!(self.run(READ, sector, len), 0);
        self.ring.read(DATA, len as usize)
    }

    /// DISCARD or WRITE_ZEROES of `sectors` from `sector` on.
    fn drop_range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(sectors.to_le_bytes());
        range.extend(flags.to_le_bytes());
        self.ring.write(DATA, &range);
        assert_eq!(self.run(kind, 0, 16), 0);
    }
}

/// What QEMU's own tool says of an image; nothing where it is not installed.
fn judge(path: &Path) {
    let Ok(output) = Command::new("qemu-img").arg("check").arg(path).output() else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("No errors"),
        "{text}"
    );
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + seed) % 251) as u8).collect()
}

#[test]
fn what_is_written_is_there_when_the_image_is_opened_again() {
    let folder = Folder::new();
    let path = folder.put("a.qcow2", &empty(None));
    let (one, two) = (pattern(300 << 10, 1), pattern(512, 2));
    let mut guest = Guest::new(&path);
    assert_eq!(guest.read(0, 4096), vec![0; 4096]);
    guest.write(3, &one);
    guest.write(SIZE / 512 - 1, &two);
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
    drop(guest);
    judge(&path);
    let mut guest = Guest::new(&path);
    assert_eq!(guest.read(3, 300 << 10), one);
    assert_eq!(guest.read(SIZE / 512 - 1, 512), two);
    assert_eq!(guest.read(2, 512), vec![0; 512]);
}

#[test]
fn image_and_its_base_are_served_past_the_page_cache() {
    let folder = Folder::new();
    folder.put("base.raw", &vec![0x5a; SIZE as usize]);
    let path = folder.put("a.qcow2", &empty(Some(("base.raw", Some("raw")))));
    let direct = DiskOptions {
        direct: true,
        ..options(&path)
    };
    let block = Block::open(&direct, &BlockOptions::default()).unwrap();
    assert!(matches!(open(&path), Err(OpenError::InUse(_))));
    let mut guest = Guest::with(block, u64::MAX);
    guest.write(3, &pattern(1024, 1));
    assert_eq!(guest.read(3, 1024), pattern(1024, 1));
    assert_eq!(guest.read(5, 512), vec![0x5a; 512]);
    drop(guest);
    judge(&path);
    assert_eq!(Guest::new(&path).read(3, 1024), pattern(1024, 1));
}

#[test]
fn flushed_write_is_in_the_file_while_the_image_is_open() {
    let folder = Folder::new();
    let path = folder.put("a.qcow2", &empty(None));
    let mut guest = Guest::new(&path);
    guest.write(0, &pattern(4096, 9));
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
    // A copy made now, as after a crash, is a whole image.
    let copy = folder.put("copy.qcow2", &fs::read(&path).unwrap());
    judge(&copy);
    assert_eq!(Guest::new(&copy).read(0, 4096), pattern(4096, 9));
}

#[test]
fn driver_that_cannot_flush_gets_lasting_writes() {
    const F_FLUSH: u64 = 1 << 9;
    let folder = Folder::new();
    let path = folder.put("a.qcow2", &empty(None));
    let mut guest = Guest::with(open(&path).unwrap(), !F_FLUSH);
    guest.write(0, &pattern(4096, 9));
    let copy = folder.put("copy.qcow2", &fs::read(&path).unwrap());
    assert_eq!(Guest::new(&copy).read(0, 4096), pattern(4096, 9));
}

#[test]
fn backing_images_show_through_and_stay_as_they_are() {
    let folder = Folder::new();
    let base = pattern(SIZE as usize, 3);
    let base_path = folder.put("base.raw", &base);
    let middle = folder.put("middle.qcow2", &empty(Some(("base.raw", Some("raw")))));
    let top = folder.put("top.qcow2", &empty(Some(("middle.qcow2", Some("qcow2")))));
    // Between a cluster's end and the next one, so that both are copied on the write.
    let (at, len) = (CLUSTER as usize - 1024, 2048);
    let mut guest = Guest::new(&top);
    guest.write(at as u64 / 512, &pattern(len, 8));
    let mut expected = base.clone();
    expected[at..at + len].copy_from_slice(&pattern(len, 8));
    assert_eq!(guest.read(0, 1 << 20), expected[..1 << 20]);
    drop(guest);
    judge(&top);
    assert_eq!(fs::read(base_path).unwrap(), base);
    assert_eq!(
        fs::read(middle).unwrap(),
        empty(Some(("base.raw", Some("raw"))))
    );
    assert_eq!(Guest::new(&top).read(0, 1 << 20), expected[..1 << 20]);
}

#[test]
fn zeroes_and_discards_hide_the_backing_image() {
    let folder = Folder::new();
    folder.put("base.raw", &vec![0x5a; SIZE as usize]);
    let path = folder.put("a.qcow2", &empty(Some(("base.raw", Some("raw")))));
    let mut guest = Guest::new(&path);
    guest.drop_range(WRITE_ZEROES, 1, 3, 0);
    guest.drop_range(WRITE_ZEROES, 256, 256, 1);
    let mut expected = vec![0x5a; 512];
    expected.extend(vec![0; 3 * 512]);
    expected.extend(vec![0x5a; 512]);
    assert_eq!(guest.read(0, 5 * 512), expected);
    assert_eq!(guest.read(256, 128 << 10), vec![0; 128 << 10]);
    guest.drop_range(DISCARD, 1024, 256, 0);
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
    drop(guest);
    judge(&path);
}

#[test]
fn image_and_backing_image_are_locked() {
    let folder = Folder::new();
    let base = folder.put("base.raw", &vec![0; SIZE as usize]);
    let other = folder.put("other.qcow2", &empty(Some(("base.raw", Some("raw")))));
    let path = folder.put("a.qcow2", &empty(Some(("base.raw", Some("raw")))));
    let first = open(&path).unwrap();
    assert!(matches!(open(&path), Err(OpenError::InUse(_))));
    let writer = DiskOptions {
        format: ImageFormat::Raw,
        ..options(&base)
    };
    let refused = Block::open(&writer, &BlockOptions::default());
    assert!(matches!(refused, Err(OpenError::InUse(_))));
    // Two images on the same base are what backing files are for.
    let second = open(&other).unwrap();
    drop((first, second));
    Block::open(&writer, &BlockOptions::default()).unwrap();
}

#[test]
fn image_is_no_qcow2_by_guessing_and_no_raw_one_either() {
    let folder = Folder::new();
    let path = folder.put("a", &empty(None));
    let unsaid = DiskOptions {
        format: ImageFormat::Unsaid,
        ..options(&path)
    };
    let error = Block::open(&unsaid, &BlockOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::Undeclared { .. }));
    let text = error.to_string();
    let (raw, qcow2) = (text.find("image_type=raw"), text.find("image_type=qcow2"));
    assert!(raw.is_some() && raw < qcow2, "{text}");
    assert!(text.contains("a guest may have written"), "{text}");
    let raw = folder.put("b", &[0; 4096]);
    assert!(matches!(open(&raw), Err(OpenError::Qcow2 { .. })));
}

/// Why the file below an image was refused.
fn below(result: Result<Block, OpenError>) -> OpenError {
    match result.unwrap_err() {
        OpenError::Backing { source, .. } => *source,
        other => panic!("{other}"),
    }
}

#[test]
fn backing_file_is_opened_only_where_that_was_asked_for() {
    let folder = Folder::new();
    folder.put("secret\nx", &vec![0x5a; SIZE as usize]);
    let path = folder.put("a.qcow2", &empty(Some(("secret\nx", Some("raw")))));
    let alone = DiskOptions {
        backing_files: false,
        ..options(&path)
    };
    let error = Block::open(&alone, &BlockOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::BackingRefused { .. }));
    let text = error.to_string();
    for part in [
        "a.qcow2",
        "\"secret\\nx\"",
        "backing_files=on if the guest may read",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_eq!(Guest::new(&path).read(0, 512), vec![0x5a; 512]);
    let lone = folder.put("b.qcow2", &empty(None));
    let lone = DiskOptions {
        path: lone,
        ..alone
    };
    Block::open(&lone, &BlockOptions::default()).unwrap();
}

#[test]
fn backing_file_that_cannot_be_a_disk_is_refused_at_once() {
    let folder = Folder::new();
    let fifo = folder.0.path().join("fifo");
    // Its other end is never opened: an open that waited would wait for ever.
    let made = Command::new("mkfifo").arg(fifo).status();
    assert!(made.unwrap().success());
    for (name, format) in [("fifo", "raw"), ("fifo", "qcow2"), ("/dev/zero", "raw")] {
        let path = folder.put("a.qcow2", &empty(Some((name, Some(format)))));
        assert!(matches!(below(open(&path)), OpenError::Kind(_)), "{name}");
    }
}

#[test]
fn image_of_version_2_takes_zeroes_and_discards() {
    let folder = Folder::new();
    let path = folder.put("a.qcow2", &empty_v2(None));
    let mut guest = Guest::new(&path);
    let bytes = pattern(512 << 10, 1);
    guest.write(0, &bytes);
    guest.drop_range(DISCARD, 768, 128, 0);
    for flags in [0, 1] {
        guest.drop_range(WRITE_ZEROES, 1 + u64::from(flags) * 256, 200, flags);
    }
    let mut expected = bytes[..384 << 10].to_vec();
    expected[512..201 * 512].fill(0);
    expected[257 * 512..457 * 512].fill(0);
    assert_eq!(guest.read(0, 384 << 10), expected);
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
    drop(guest);
    judge(&path);
}

#[test]
fn image_of_version_2_with_a_backing_file_is_refused_with_the_way_out() {
    let folder = Folder::new();
    folder.put("base.raw", &vec![0; SIZE as usize]);
    let path = folder.put("a.qcow2", &empty_v2(Some(("base.raw", None))));
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("qemu-img amend -o compat=1.1"), "{error}");
}

#[test]
fn discard_of_less_than_a_cluster_writes_nothing() {
    let folder = Folder::new();
    folder.put("base.raw", &vec![0x5a; SIZE as usize]);
    let path = folder.put("a.qcow2", &empty(Some(("base.raw", Some("raw")))));
    let mut guest = Guest::new(&path);
    // discard_sector_alignment (virtio 1.3, 5.2.4) is a cluster.
    assert_eq!(guest.card.read_device::<4>(44), 128u32.to_le_bytes());
    guest.drop_range(DISCARD, 1, 3, 0);
    guest.drop_range(DISCARD, 130, 120, 0);
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
    assert_eq!(fs::metadata(&path).unwrap().len(), 4 * CLUSTER);
    // And one of whole clusters gives their room back.
    guest.write(256, &pattern(128 << 10, 1));
    guest.drop_range(DISCARD, 255, 258, 0);
    assert_eq!(guest.read(256, 128 << 10), vec![0; 128 << 10]);
    assert_eq!(guest.read(255, 512), vec![0x5a; 512]);
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
    drop(guest);
    judge(&path);
}

#[test]
fn refcount_table_that_no_image_needs_is_refused_where_the_image_is_written() {
    let folder = Folder::new();
    let table = CLUSTER as usize;
    let block = 2 * CLUSTER;
    let entry = |entries: &[u64]| {
        let mut image = empty(None);
        for (i, entry) in entries.iter().enumerate() {
            let at = table + 8 * i;
            image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        }
        image
    };
    let mut long = empty(None);
    long[56..60].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut outside = empty(None);
    outside[48..56].copy_from_slice(&(1u64 << 62).to_be_bytes());
    for (image, part) in [
        (entry(&[block, 0, block]), "0x20000 twice"),
        (entry(&[block, 1 << 40]), "behind the end of the file"),
        (long, "at most 33554432 are taken"),
        (outside, "is not in the file"),
    ] {
        let path = folder.put("a.qcow2", &image);
        match open(&path).unwrap_err() {
            OpenError::Qcow2 { source, .. } => {
                assert!(source.to_string().contains(part), "{source}");
            }
            other => panic!("{other}"),
        }
    }
    let twice = folder.put("a.qcow2", &entry(&[block, block]));
    let reading = DiskOptions {
        read_only: true,
        ..options(&twice)
    };
    // Nobody allocates there.
    Block::open(&reading, &BlockOptions::default()).unwrap();
}

/// Why an image is refused.
fn problem(path: &Path) -> String {
    match open(path).unwrap_err() {
        OpenError::Qcow2 { source, .. } => source.to_string(),
        other => panic!("{other}"),
    }
}

#[test]
fn image_with_a_table_where_room_counts_as_free_is_refused_where_it_is_written() {
    let folder = Folder::new();
    // An L2 table of zeros in cluster 4, and how often each cluster is counted.
    let image = |counts: [u16; 5]| {
        let mut image = empty(None);
        image.resize(5 * CLUSTER as usize, 0);
        let l1 = 3 * CLUSTER as usize;
        let entry = (1 << 63) | (4 * CLUSTER);
        image[l1..l1 + 8].copy_from_slice(&entry.to_be_bytes());
        for (number, count) in counts.iter().enumerate() {
            let at = 2 * CLUSTER as usize + 2 * number;
            image[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        folder.put("a.qcow2", &image)
    };
    let path = image([1; 5]);
    open(&path).unwrap();
    for (counts, part) in [
        ([0, 1, 1, 1, 1], "its header at 0x0 "),
        ([1, 0, 1, 1, 1], "its refcount table at 0x10000 "),
        ([1, 1, 0, 1, 1], "a refcount block at 0x20000 "),
        ([1, 1, 1, 0, 1], "its L1 table at 0x30000 "),
        ([1, 1, 1, 1, 0], "an L2 table at 0x40000 "),
    ] {
        let text = problem(&image(counts));
        assert!(text.starts_with(part), "{text}");
        assert!(
            text.contains("`qemu-img check -r all \"") && text.contains("a.qcow2"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
        let reading = DiskOptions {
            read_only: true,
            ..options(&path)
        };
        Block::open(&reading, &BlockOptions::default()).unwrap();
    }
    // The last one, as it is told to be repaired.
    let repaired = Command::new("qemu-img")
        .args(["check", "-q", "-r", "all"])
        .arg(&path)
        .status();
    if repaired.is_ok() {
        open(&path).unwrap();
    }
}

#[test]
fn table_that_is_longer_than_any_image_needs_is_refused_where_the_image_is_written() {
    let folder = Folder::new();
    let mut image = empty(None);
    image[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
    let text = problem(&folder.put("a.qcow2", &image));
    assert!(
        text.contains("its L1 table has 34359738360 bytes"),
        "{text}"
    );
}

#[test]
fn copy_as_after_a_kill_before_the_first_flush_is_refused() {
    let folder = Folder::new();
    let path = folder.put("a.qcow2", &empty(None));
    let mut guest = Guest::new(&path);
    guest.write(0, &pattern(4096, 9));
    // The file names the new table by now, and does not count it.
    let text = problem(&folder.put("copy.qcow2", &fs::read(&path).unwrap()));
    assert!(text.starts_with("an L2 table at "), "{text}");
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
    open(&folder.put("copy.qcow2", &fs::read(&path).unwrap())).unwrap();
}

/// Where QEMU's tool is installed; nothing is shown elsewhere.
#[test]
fn images_as_qemu_makes_them_are_taken_again_after_their_tables_have_grown() {
    let folder = Folder::new();
    for options in [
        "cluster_size=512",
        "compat=0.10",
        "cluster_size=2M",
        "preallocation=metadata",
        "refcount_bits=1",
    ] {
        let path = folder.0.path().join("made.qcow2");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o", options])
            .arg(&path)
            .arg("64M")
            .status();
        let Ok(made) = made else { return };
        assert!(made.success(), "{options}");
        // With clusters of 512 bytes, a cluster of the refcount table is enough for 8 MiB.
        let (len, bytes) = (512 << 10, pattern(512 << 10, 5));
        let mut guest = Guest::new(&path);
        for n in 0..20 {
            guest.write(n * (len / 512), &bytes);
        }
        drop(guest);
        judge(&path);
        let mut guest = Guest::new(&path);
        for n in 0..20 {
            assert_eq!(guest.read(n * (len / 512), len as u32), bytes, "{options}");
        }
    }
}

#[test]
fn what_an_image_may_not_do_is_refused() {
    let folder = Folder::new();
    let own = folder.put("own.qcow2", &empty(Some(("own.qcow2", Some("qcow2")))));
    // Its own base: the lock says so, as it would of any other writer.
    assert!(matches!(below(open(&own)), OpenError::InUse(_)));
    folder.put("base.raw", &[0; 4096]);
    let unnamed = folder.put("unnamed.qcow2", &empty(Some(("base.raw", None))));
    let error = open(&unnamed).unwrap_err().to_string();
    assert!(
        error.contains("qemu-img rebase -u -b \"base.raw\" -F raw"),
        "{error}"
    );
    let odd = folder.put("odd.qcow2", &empty(Some(("base.raw", Some("vmdk")))));
    assert!(matches!(below(open(&odd)), OpenError::Qcow2 { .. }));
    let missing = folder.put("missing.qcow2", &empty(Some(("no", Some("raw")))));
    assert!(matches!(below(open(&missing)), OpenError::Host { .. }));
    // Two that are based on each other, read only: no lock ends that.
    folder.put("x.qcow2", &empty(Some(("y.qcow2", Some("qcow2")))));
    let y = folder.put("y.qcow2", &empty(Some(("x.qcow2", Some("qcow2")))));
    let reading = DiskOptions {
        read_only: true,
        ..options(&y)
    };
    let refused = Block::open(&reading, &BlockOptions::default());
    let mut error = below(refused);
    while let OpenError::Backing { source, .. } = error {
        error = *source;
    }
    assert!(matches!(error, OpenError::Qcow2 { .. }));
    let external = folder.put("external.qcow2", &empty(None));
    let file = fs::File::options().write(true).open(&external).unwrap();
    // Incompatible feature bit 2: an external data file; bit 40: nothing that anybody knows.
    for bit in [2, 40] {
        let bits: u64 = 1 << bit;
        file.write_all_at(&bits.to_be_bytes(), 72).unwrap();
        assert!(matches!(open(&external), Err(OpenError::Qcow2 { .. })));
    }
}

#[test]
fn table_that_points_outside_leaves_the_disk_answering() {
    let folder = Folder::new();
    let mut image = empty(None);
    let l1 = 3 * CLUSTER as usize;
    // An L2 table far behind the end of the file.
    let entry: u64 = 1 << 63 | 1 << 40;
    image[l1..l1 + 8].copy_from_slice(&entry.to_be_bytes());
    let path = folder.put("a.qcow2", &image);
    let reading = DiskOptions {
        read_only: true,
        ..options(&path)
    };
    let block = Block::open(&reading, &BlockOptions::default()).unwrap();
    let mut guest = Guest::with(block, u64::MAX);
    // Zeros or an error, but an answer.
    let status = guest.run(READ, 0, 4096);
    assert!(status < 2, "{status}");
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
}
