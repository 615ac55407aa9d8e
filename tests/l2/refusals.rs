//! What cannot be: refused before anything is created, by a line that names the option.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tdvmm_tests::native::folder::Folder;
use tdvmm_tests::native::guest;
use tdvmm_tests::native::needs::{NEW_MOUNTS, Need};
use tdvmm_tests::native::vm::{End, Vm};

use crate::lab::{Case, Lab};

const HOST_ERROR: i32 = 1;
const BAD_CONFIG: i32 = 152;
const BAD_ARGUMENTS: i32 = 153;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let by_option = [
        ("vcpu_count_of_zero", "--cpus", "boot=0"),
        ("vcpu_count_beyond_every_host", "--cpus", "boot=100000"),
        ("vcpu_count_that_is_none", "--cpus", "boot=two"),
        (
            "topology_with_another_count",
            "--cpus",
            "boot=3,topology=1:2:2",
        ),
        ("memory_of_zero", "--memory", "size=0"),
        ("memory_below_the_least", "--memory", "size=4K"),
        ("memory_of_part_of_a_page", "--memory", "size=67108865"),
        ("memory_beyond_every_host", "--memory", "size=10000000T"),
        ("memory_that_is_none", "--memory", "size=lots"),
        ("serial_backend_that_is_none", "--serial", "modem"),
    ];
    let mut cases: Vec<Case> = by_option
        .into_iter()
        .map(|(name, option, value)| {
            Case::needing(format!("{name}_is_refused"), &[Need::Cc], move |lab| {
                let end = refused(lab, &[option, value], None)?;
                end.expect(BAD_CONFIG, &format!("{option} "))
            })
        })
        .collect();
    cases.extend([
        Case::guest("vcpu_count_beyond_this_host_is_refused", |lab| {
            let end = refused(lab, &["--cpus", "boot=4096"], None)?;
            end.expect(BAD_CONFIG, "--cpus boot=4096: ")
        }),
        Case::guest(
            "disk_queues_beyond_the_limit_of_open_files_are_refused",
            too_many_queues,
        ),
        Case::needing("unknown_option_is_refused", &[Need::Cc], |lab| {
            let end = refused(lab, &["--frobnicate"], None)?;
            let code = end.status.code();
            ensure!(code == Some(BAD_ARGUMENTS), "exit code {code:?}");
            ensure!(end.stderr.contains("--frobnicate"), "{}", end.stderr);
            Ok(())
        }),
        Case::needing("kernel_that_is_none_is_refused", &[], |lab| {
            let folder = Folder::create()?;
            let text = folder.join("text");
            fs::write(&text, "no kernel at all\n".repeat(200))?;
            let end = refused(lab, &[], Some(text))?;
            end.expect(BAD_CONFIG, "--kernel ")?;
            ensure!(end.stderr.contains("is no kernel"), "{}", end.stderr);
            Ok(())
        }),
        Case::needing("kernel_that_is_missing_is_refused", &[], |lab| {
            let end = refused(lab, &[], Some("/no/such/kernel".into()))?;
            end.expect(BAD_CONFIG, "--kernel /no/such/kernel: cannot be read")
        }),
        Case::needing("kernel_for_another_machine_is_refused", &[], arm_kernel),
        Case::needing(
            "plan_to_unwritable_output_fails_without_panic",
            &[Need::Cc],
            full,
        ),
        Case::needing(
            "kvm_that_is_missing_is_said",
            &[Need::Cc, Need::Namespaces],
            without_kvm,
        ),
        Case::needing(
            "kvm_that_is_not_permitted_is_said",
            &[Need::Kvm, Need::Cc, Need::Root, Need::ClosedKvm],
            as_nobody,
        ),
    ]);
    cases
}

/// An ELF file for 64-bit Arm.
fn arm_kernel(lab: &Lab) -> Result<()> {
    let folder = Folder::create()?;
    let elf = folder.join("elf");
    let mut head = vec![0; 4096];
    head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    head[18] = 183;
    fs::write(&elf, head)?;
    let end = refused(lab, &[], Some(elf))?;
    end.expect(BAD_CONFIG, "--kernel ")?;
    ensure!(end.stderr.contains("another machine"), "{}", end.stderr);
    Ok(())
}

/// The limit of open files is looked at before the image.
fn too_many_queues(lab: &Lab) -> Result<()> {
    let folder = Folder::create()?;
    let kernel = guest::assemble("hello", &[], folder.path())?;
    let script = "ulimit -n 256 && exec \"$0\" \"$@\"";
    let vm = Vm::new("sh", folder)?.args(["-c", script]);
    let vm = vm.args([&lab.tdvmm()?, &"--kernel".into(), &kernel]);
    let end = refused_by(vm.args(["--disk", "path=/no/such,num_queues=64"]), false)?;
    end.expect(BAD_CONFIG, "--disk num_queues=64: the machine needs ")
}

/// Runs with `arguments` and checks that nothing was created and one line was written.
fn refused(lab: &Lab, arguments: &[&str], kernel: Option<PathBuf>) -> Result<End> {
    let (vm, hello) = match &kernel {
        // No guest is needed, nor a compiler to make one.
        Some(_) => (Vm::new(lab.tdvmm()?, Folder::create()?)?, PathBuf::new()),
        None => lab.bare("hello")?,
    };
    let vm = vm.args([&"--kernel".into(), &kernel.unwrap_or(hello)]);
    refused_by(vm.args(arguments), arguments.contains(&"--serial"))
}

fn refused_by(mut vm: Vm, has_serial: bool) -> Result<End> {
    let serial = vm.serial_file();
    if !has_serial {
        let option = format!("file={}", serial.display());
        vm = vm.args(["--serial", &option]);
    }
    let end = vm.start()?.wait_watching(|_| {
        ensure!(!serial.exists(), "the serial file was created");
        Ok(())
    })?;
    ensure!(!end.stderr.contains("panic"), "{}", end.stderr);
    Ok(end)
}

fn full(lab: &Lab) -> Result<()> {
    let (mut vm, kernel) = lab.bare("hello")?;
    let full = fs::File::options().write(true).open("/dev/full")?;
    vm.command.stdout(full);
    let end = vm.args(["--print-plan", "--kernel"]).args([kernel]).run()?;
    end.expect(HOST_ERROR, "cannot print")
}

/// In a mount namespace with an empty `/dev`.
fn without_kvm(lab: &Lab) -> Result<()> {
    let folder = Folder::create()?;
    let kernel = guest::assemble("hello", &[], folder.path())?;
    let script = "mount -t tmpfs none /dev && exec \"$0\" \"$@\"";
    let vm = Vm::new("unshare", folder)?.args(NEW_MOUNTS);
    let vm = vm.args(["sh", "-c", script]).args([lab.tdvmm()?]);
    let end = refused_by(vm.args([&"--kernel".into(), &kernel]), false)?;
    end.expect(HOST_ERROR, "cannot open /dev/kvm: the kernel has no KVM")
}

/// As a user who may not open it.
fn as_nobody(lab: &Lab) -> Result<()> {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    let folder = Folder::create()?;
    // Where the user can reach it.
    let program = folder.join("tdvmm");
    fs::copy(lab.tdvmm()?, &program)?;
    let kernel = guest::assemble("hello", &[], folder.path())?;
    let mut vm = Vm::new(program, folder)?;
    vm.command.uid(NOBODY).gid(NOBODY).current_dir("/");
    vm.command.stdout(Stdio::null());
    let end = refused_by(vm.args([&"--kernel".into(), &kernel]), false)?;
    end.expect(HOST_ERROR, "cannot open /dev/kvm: this user may not")
        .context("as nobody")
}
