//! virtio disks under unmodified drivers: Linux's, with file systems and drivers that come and go; OVMF's and
//! GRUB's, which boot from one; and the promise of a flush.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tdvmm_tests::disk_image::{self, Boot};
use tdvmm_tests::fixture::install::{FIRMWARE_BLANK, FIRMWARE_GENERIC};
use tdvmm_tests::guest::{self, MARKER, SCRIPT_END, pattern};
use tdvmm_tests::harness::{Case, Context, L1_KERNEL, MachineKind, Tier};
use tdvmm_tests::kernel;
use tdvmm_tests::l1::{Machine, Outcome, Program, RunId};
use tdvmm_tests::unpacked::Unpacked;

use super::emtdx::{self, TDX};
use super::guests::{KERNEL, PLAIN, TDVMM, with_tdvmm};

const INITRAMFS: &str = "/guest/disk-initramfs";
/// An ext4 file system with [`READ_ONLY_FILE`] in it.
const READ_ONLY_IMAGE: &str = "/guest/read-only.img";
const READ_ONLY_FILE: &str = "pattern";
const BOOT_IMAGE: &str = "/guest/boot.img";
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// Pattern pieces, 1 MiB each, that the guest writes to its file system.
const WRITTEN: u64 = 256;
/// Seeds of the patterns: in the read-only file system, and what the guests of the durability case write.
const READ_ONLY_SEED: u64 = 2;
const FLUSHED_SEED: u64 = 4;
const UNFLUSHED_SEED: u64 = 5;
/// Pieces that those write.
const DURABLE: u64 = 4;
/// Size of the disks that they write to.
const DISK_BYTES: u64 = 8 << 20;

/// Two file systems: one is written, mounted anew and compared, the other one cannot be written.
const TWO_DISKS: &str = r#"
mkdir /a /b
mount -t ext4 /dev/vda /a
mount -t ext4 -o ro /dev/vdb /b
pieces=$(sed 's/.*tdvmm.pieces=\([0-9]*\).*/\1/' /proc/cmdline)
/init check /b/pattern 1 2
/init fill /a/file $pieces 1
umount /a
mount -t ext4 /dev/vda /a
/init check /a/file $pieces 1
test $(cat /sys/block/vdb/ro) = 1
if dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2>/dev/null; then exit 50; fi
umount /a
"#;

/// The driver leaves and comes back under load; what was there before stays as it was.
///
/// The load goes through a node of its own: `/dev/vda` leaves with the driver, and a `dd` that opened it then would
/// make a plain file in its place, write to that for ever and never end.
const UNBIND: &str = r#"
driver=/sys/bus/virtio/drivers/virtio_blk
device=$(basename $(readlink -f /sys/block/vda/device))
/init fill /dev/vda 4 3
mkdir /node
busy() { read reads writes < /sys/block/vda/inflight; test $reads != 0 -o $writes != 0; }
round=0
while test $round -lt 20; do
    rm -f /node/vda
    mknod /node/vda b $(tr : ' ' < /sys/block/vda/dev)
    (while dd if=/node/vda of=/dev/null bs=64k count=64 iflag=direct; do :; done) 2>/dev/null &
    (while dd if=/dev/zero of=/node/vda bs=64k seek=64 count=64 oflag=direct; do :; done) 2>/dev/null &
    until busy; do :; done
    echo $device > $driver/unbind
    wait
    echo $device > $driver/bind
    test -b /dev/vda
    round=$((round + 1))
done
/init check /dev/vda 4 3
echo TDVMM-GUEST rounds $round
"#;

/// Says when fsync has returned and then does nothing more.
const FLUSH: &str = r#"
seed=$(sed 's/.*tdvmm.seed=\([0-9]*\).*/\1/' /proc/cmdline)
/init fill /dev/vda 4 $seed
echo TDVMM-GUEST fsync has returned
while :; do sleep 60; done
"#;

/// What the kernel of the boot disk does: its root is the disk that it came from.
const ROOT: &str = r#"
mkdir /disk
mount -t ext4 -o ro /dev/vda2 /disk
/init check /disk/pattern 1 2
test -d /sys/firmware/efi
"#;

const SCRIPTS: [(&str, &str); 4] = [
    ("two-disks", TWO_DISKS),
    ("unbind", UNBIND),
    ("flush", FLUSH),
    ("root", ROOT),
];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let (quick, full) = (Tier::Representative, Tier::Full);
    vec![
        case(
            "disk-two-file-systems",
            quick,
            &PLAIN,
            with_disks,
            two_disks,
        ),
        case("disk-unbind-under-load", quick, &PLAIN, with_disks, unbind),
        case("disk-boot-ovmf", quick, &TDX, with_boot_disk, |context| {
            boot(context, FIRMWARE_GENERIC, &[])
        }),
        case("disk-boot-td", full, &TDX, with_boot_disk, |context| {
            boot(context, FIRMWARE_BLANK, &["--platform", "tdx=on"])
        }),
        case(
            "disk-flush-outlives-the-host",
            quick,
            &PLAIN,
            with_disks,
            durability,
        ),
    ]
}

fn case(
    name: &str,
    tier: Tier,
    machine: &'static MachineKind,
    prepare: for<'a, 'b> fn(&'a mut Machine<'b>) -> Result<()>,
    run: fn(&mut Context<'_>) -> Result<()>,
) -> Case {
    Case {
        name: name.to_owned(),
        tier,
        machine,
        prepare,
        // The longest, a boot from a disk, takes two and a half minutes where other work is on the machine.
        deadline: Duration::from_secs(480),
        run: Box::new(run),
    }
}

/// Adds `tdvmm`, a guest with the drivers, what L1 makes and checks file systems with, and disks of L1 that outlive it.
fn with_disks(machine: &mut Machine<'_>) -> Result<()> {
    with_tdvmm(machine)?;
    let packages = machine.packages();
    let initramfs = guest::initramfs_with_scripts(packages, L1_KERNEL, &MODULES, &SCRIPTS)?;
    let tools = Unpacked::open(packages, "e2fsprogs")?;
    let folder = machine.log_folder.join("read-only");
    let tree = folder.join("tree");
    fs::create_dir_all(&tree)?;
    fs::write(tree.join(READ_ONLY_FILE), pattern::piece(READ_ONLY_SEED, 0))?;
    let image = folder.join("image");
    disk_image::file_system(packages, &image, 16, Some(&tree))?;
    for image in durable_images(&machine.log_folder) {
        machine.add_disk(&image, DISK_BYTES);
    }
    let archive = machine.archive();
    archive.file(INITRAMFS, 0o644, initramfs);
    archive.copy(READ_ONLY_IMAGE, 0o644, &image)?;
    let config = "etc/mke2fs.conf";
    archive.copy(&format!("/{config}"), 0o644, &tools.root().join(config))?;
    tools.install(archive, "usr/sbin/mke2fs")?;
    tools.install(archive, "usr/sbin/e2fsck")
}

/// Adds `tdvmm` and a disk that boots.
fn with_boot_disk(machine: &mut Machine<'_>) -> Result<()> {
    with_tdvmm(machine)?;
    let packages = machine.packages();
    let initramfs = guest::initramfs_with_scripts(packages, L1_KERNEL, &MODULES, &SCRIPTS)?;
    let kernel = kernel::image(&packages.kernel_parts(L1_KERNEL, &["image"])?)?;
    let boot = Boot {
        kernel: &kernel,
        initramfs: &initramfs,
        command_line: &guest::script_command_line("root"),
        files: &[(READ_ONLY_FILE, &pattern::piece(READ_ONLY_SEED, 0))],
    };
    let folder = machine.log_folder.join("boot-disk");
    let image = disk_image::bootable(packages, &folder, &boot)?;
    machine.archive().copy(BOOT_IMAGE, 0o644, &image)?;
    Ok(())
}

/// `tdvmm` with a guest that runs a script.
fn tdvmm(script: &str, words: &str, disks: &[String]) -> Program {
    let command_line = format!("{} {words}", guest::script_command_line(script));
    let program = Program::new(TDVMM)
        .args(["--kernel", KERNEL, "--initramfs", INITRAMFS])
        .args(["--cmdline", &command_line])
        .args(["--memory", "size=512M", "--serial", "tty"]);
    disks
        .iter()
        .fold(program, |program, disk| program.args(["--disk", disk]))
}

/// Runs `program` until its guest's script has ended well and the guest is off.
fn succeed(context: &mut Context<'_>, program: &Program) -> Result<RunId> {
    let run = context.l1.start(program)?;
    let up = context.l1.wait_for(run, MARKER, context.left())?;
    let done = context.l1.wait_for(run, SCRIPT_END, context.left())?;
    let end = context.l1.wait_end(run, context.left())?;
    let output = context.l1.output(run);
    let (_, code) = output
        .split_once(SCRIPT_END)
        .context("the end of the script")?;
    ensure!(
        code.trim_start().starts_with("0\r") || code.trim_start().starts_with("0\n"),
        "the guest's script failed:\n{output}"
    );
    ensure!(
        end.outcome == Outcome::Exited(0),
        "tdvmm ended with {:?}",
        end.outcome
    );
    context.note(format!(
        "marker after {:.1} s, script done after {:.1} s",
        up.as_secs_f64(),
        done.as_secs_f64()
    ));
    Ok(run)
}

/// Runs a command of L1's shell that must succeed.
fn shell(context: &mut Context<'_>, text: &str) -> Result<String> {
    let left = context.left();
    let (end, output) = context.l1.run(&Program::script(text), left)?;
    ensure!(end.outcome.code() == Some(0), "{text}:\n{output}");
    Ok(output)
}

fn two_disks(context: &mut Context<'_>) -> Result<()> {
    let size = WRITTEN + 64;
    shell(
        context,
        &format!(
            "truncate -s {size}M /tmp/data.img && /usr/sbin/mke2fs -q -t ext4 -J size=8 /tmp/data.img && \
             cp {READ_ONLY_IMAGE} /tmp/read-only.img && sha256sum /tmp/read-only.img > /tmp/sum"
        ),
    )?;
    let disks = [
        "path=/tmp/data.img".to_owned(),
        "path=/tmp/read-only.img,readonly=on".to_owned(),
    ];
    let words = format!("tdvmm.pieces={WRITTEN}");
    let program = tdvmm("two-disks", &words, &disks).args(["--cpus", "boot=2"]);
    succeed(context, &program)?;
    // What the guest left behind is a file system without a fault, and the other disk is as it was.
    shell(
        context,
        "/usr/sbin/e2fsck -fn /tmp/data.img && sha256sum -c /tmp/sum && rm /tmp/data.img",
    )
    .map(drop)
}

fn unbind(context: &mut Context<'_>) -> Result<()> {
    shell(context, "truncate -s 16M /tmp/unbind.img")?;
    let disks = ["path=/tmp/unbind.img,num_queues=2".to_owned()];
    let program = tdvmm("unbind", "", &disks).args(["--cpus", "boot=2"]);
    let run = succeed(context, &program)?;
    let output = context.l1.output(run);
    ensure!(output.contains("TDVMM-GUEST rounds 20"), "{output}");
    shell(context, "rm /tmp/unbind.img").map(drop)
}

/// Firmware finds GRUB on a disk, GRUB its configuration and the kernel, and the kernel its root.
fn boot(context: &mut Context<'_>, firmware: &str, more: &[&str]) -> Result<()> {
    emtdx::hold(context)?;
    shell(context, &format!("cp {BOOT_IMAGE} /tmp/boot.img"))?;
    let program = Program::new(TDVMM)
        .args(["--firmware", firmware, "--disk", "path=/tmp/boot.img"])
        .args(["--memory", "size=512M", "--cpus", "boot=2"])
        .args(["--serial", "tty"])
        .args(more.iter().copied());
    succeed(context, &program).map(drop)
}

/// The images of L1's own disks, in the folder of its logs: one whose guest flushes, one whose flushes do nothing.
fn durable_images(folder: &Path) -> [PathBuf; 2] {
    ["flushed", "unflushed"].map(|name| folder.join(name))
}

/// L0's QEMU is killed when the guests' fsync has returned. What was flushed is on L1's disk; what was
/// written under a VMM whose fsync does nothing is not, so this case would notice a flush that is none.
fn durability(context: &mut Context<'_>) -> Result<()> {
    // L1 writes nothing back by itself.
    shell(
        context,
        "echo 0 > /proc/sys/vm/dirty_writeback_centisecs && \
         echo 90 > /proc/sys/vm/dirty_ratio && echo 90 > /proc/sys/vm/dirty_background_ratio",
    )?;
    let guest = |disk: &str, seed: u64| {
        let disks = [format!("path={disk}")];
        tdvmm("flush", &format!("tdvmm.seed={seed}"), &disks)
    };
    let flushed = context.l1.start(&guest("/dev/vda", FLUSHED_SEED))?;
    let stubbed = Program::new("/init")
        .args(["without-fsync"])
        .args(guest("/dev/vdb", UNFLUSHED_SEED).words());
    let unflushed = context.l1.start(&stubbed)?;
    for run in [flushed, unflushed] {
        let left = context.left();
        context.l1.wait_for(run, "fsync has returned", left)?;
    }
    context.l1.kill()?;
    let folder = context.l1.console().parent().context("a folder")?;
    let [flushed, unflushed] = durable_images(folder);
    let on_disk = pieces_on(&flushed, FLUSHED_SEED)?;
    ensure!(
        on_disk == DURABLE,
        "{on_disk} of {DURABLE} flushed MiB are on L1's disk"
    );
    let on_disk = pieces_on(&unflushed, UNFLUSHED_SEED)?;
    ensure!(
        on_disk == 0,
        "{on_disk} MiB are on L1's disk without a flush, so this case shows nothing"
    );
    Ok(())
}

/// How many pieces of a pattern an image starts with.
fn pieces_on(image: &Path, seed: u64) -> Result<u64> {
    let bytes = fs::read(image)?;
    let pieces = (0..).zip(bytes.chunks(pattern::PIECE));
    let same = pieces.take_while(|(index, bytes)| *bytes == pattern::piece(seed, *index));
    match u64::try_from(same.count())? {
        count if count > DURABLE => bail!("{} has {count} pieces", image.display()),
        count => Ok(count),
    }
}
