//! What a disk's requests cost: random reads of 4 KiB by a guest in ring 3 that polls, natively on
//! `/dev/kvm` (`cargo xtask bench block`).
//!
//! ```text
//! block-bench [--requests N]    all figures; fails when a limit is broken
//! block-bench --calls           system calls between the first request and the last one (lane L2)
//! ```
//!
//! CPU is that of all threads of `tdvmm` but the vCPU's, from the guest's first request to its last one.
//! Beside it stands a plain `pread` loop over the same pages of the same file, which is what the work itself
//! costs. The file is in the page cache; with O_DIRECT it is behind a loop device where one can be had.
#![expect(clippy::print_stdout, reason = "prints its figures")]
#![expect(clippy::print_stderr, reason = "says which limit is broken")]

mod calls;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use tdvmm_tests::native::folder::Folder;
use tdvmm_tests::native::guest;
use tdvmm_tests::native::load::{self, Kind, Load};
use tdvmm_tests::native::needs::Need;
use tdvmm_tests::native::vm::Vm;
use tdvmm_tests::programs;

/// Pages of the file: 256 MiB.
const PAGES: u32 = 65536;
const REQUESTS: u32 = 200_000;
/// Each figure is the best of so many runs, as other work of the machine only ever adds.
const RUNS: u32 = 3;
/// Microseconds of CPU for a request from the page cache, with one in flight.
const SHALLOW: (u32, f64) = (1, 3.3);
/// The same with 32, on a machine whose plain loop takes three quarters of it.
const DEEP: (u32, f64) = (32, 1.0);
/// Where the loop takes longer, a request may take that much of it: most of both is the kernel's copy then.
const SLOW_LOOP_RATIO: f64 = 4.0 / 3.0;
/// And where the loop is quick, no more than that.
const LOOP_RATIO: f64 = 2.0;
const DIRECT_DEPTHS: [u32; 3] = [1, 32, 128];

/// Microseconds per request.
#[derive(Clone, Copy, Debug)]
struct Cost {
    cpu: f64,
    wall: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        [] => bench(REQUESTS),
        ["--calls"] => calls::check(),
        ["--requests", count] => count
            .parse()
            .context("--requests wants a number")
            .and_then(bench),
        _ => Err(anyhow::anyhow!(
            "usage: block-bench [--requests N | --calls]"
        )),
    };
    match outcome {
        Ok(broken) if broken.is_empty() => ExitCode::SUCCESS,
        Ok(broken) => {
            broken
                .iter()
                .for_each(|line| eprintln!("limit broken: {line}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("block-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(requests: u32) -> Result<Vec<String>> {
    needs()?;
    let folder = Folder::create()?;
    let image = folder.join("image");
    fs::write(&image, load::image(PAGES))?;
    File::open(&image)?.sync_all()?;
    let tdvmm = programs::build(programs::TDVMM)?;
    let mut broken = Vec::new();
    println!("random reads of 4 KiB, {requests} each      cpu us   wall us   cpu / loop");
    let [plain, shallow, deep] = best_of_each([
        &|| plain_loop(&image, requests),
        &|| in_guest(&tdvmm, &image, "", SHALLOW.0, requests),
        &|| in_guest(&tdvmm, &image, "", DEEP.0, requests),
    ])?;
    print("plain pread loop, page cache", plain, plain);
    let deep_limit = DEEP.1.max(SLOW_LOOP_RATIO * plain.cpu);
    let deep_limit = deep_limit.min(LOOP_RATIO * plain.cpu);
    for (cost, (depth, limit)) in [(shallow, SHALLOW), (deep, (DEEP.0, deep_limit))] {
        print(&format!("page cache, depth {depth}"), cost, plain);
        if cost.cpu > limit {
            broken.push(format!(
                "depth {depth}: {:.2} us of CPU, at most {limit:.2}",
                cost.cpu
            ));
        }
    }
    let device = LoopDevice::over(&image);
    let (direct, what) = match &device {
        Some(device) => (device.0.as_path(), "loop device"),
        None => (image.as_path(), "file"),
    };
    for depth in DIRECT_DEPTHS {
        let [cost] =
            best_of_each([&|| in_guest(&tdvmm, direct, ",direct=on", depth, requests / 4)])?;
        print(&format!("O_DIRECT on a {what}, depth {depth}"), cost, plain);
    }
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    println!("load of the machine: {load}; the limits are for one that has nothing else to do");
    println!(
        "limits in us: {:.2} at depth {}, {deep_limit:.2} at depth {}",
        SHALLOW.1, SHALLOW.0, DEEP.0
    );
    Ok(broken)
}

fn needs() -> Result<()> {
    for need in [Need::Kvm, Need::Cc] {
        if let Some(reason) = need.missing() {
            bail!("{reason}");
        }
    }
    Ok(())
}

/// All subjects in turns, so that the machine's other work meets them alike.
fn best_of_each<const N: usize>(subjects: [&dyn Fn() -> Result<Cost>; N]) -> Result<[Cost; N]> {
    let mut best = [Cost {
        cpu: f64::INFINITY,
        wall: f64::INFINITY,
    }; N];
    for _ in 0..RUNS {
        for (best, run) in best.iter_mut().zip(subjects) {
            let next = run()?;
            if next.cpu < best.cpu {
                *best = next;
            }
        }
    }
    Ok(best)
}

fn print(name: &str, cost: Cost, plain: Cost) {
    println!(
        "{name:40} {:8.2} {:9.2} {:12.2}",
        cost.cpu,
        cost.wall,
        cost.cpu / plain.cpu
    );
}

fn per_request(cpu: Duration, wall: Duration, requests: u32) -> Cost {
    let per = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(requests);
    Cost {
        cpu: per(cpu),
        wall: per(wall),
    }
}

/// The same pages in the same order as the guest asks for.
fn plain_loop(image: &Path, requests: u32) -> Result<Cost> {
    let file = File::open(image)?;
    let mut page = [0; load::PAGE];
    let mut state: u64 = 88_172_645_463_325_252;
    let (cpu, start) = (thread_time(), Instant::now());
    for _ in 0..requests {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let number = state & u64::from(PAGES - 1);
        file.read_exact_at(&mut page, number * load::PAGE as u64)?;
    }
    Ok(per_request(thread_time() - cpu, start.elapsed(), requests))
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.cast_unsigned(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

fn in_guest(tdvmm: &Path, disk: &Path, more: &str, depth: u32, requests: u32) -> Result<Cost> {
    let folder = Folder::create()?;
    let load = Load {
        depth,
        irq: false,
        kind: Kind::Read,
        requests,
        pages: PAGES,
        ends: false,
    };
    let defines = load.defines();
    let defines: Vec<&str> = defines.iter().map(String::as_str).collect();
    let kernel = guest::assemble("blk_load", &defines, folder.path())?;
    let disk = format!(
        "path={},readonly=on,queue_size={}{more}",
        disk.display(),
        load.queue_size()
    );
    let vm = Vm::new(tdvmm, folder)?
        .machine(&kernel)
        .args(["--disk", &disk]);
    let mut running = vm.start()?;
    running.wait_for_serial("s")?;
    let (cpu, start) = (cpu_but_vcpus(running.id())?, Instant::now());
    running.wait_for_serial("se")?;
    let wall = start.elapsed();
    Ok(per_request(
        cpu_but_vcpus(running.id())?.saturating_sub(cpu),
        wall,
        requests,
    ))
}

/// CPU time of all threads of a process but its vCPUs', and of the kernel threads that work for it.
fn cpu_but_vcpus(process: u32) -> Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?.path();
        // A thread of io_uring may have just ended.
        let Ok(name) = fs::read_to_string(task.join("comm")) else {
            continue;
        };
        if name.contains("-vcpu") {
            continue;
        }
        let stat = fs::read_to_string(task.join("schedstat"))?;
        let ran: u64 = stat.split(' ').next().unwrap_or_default().parse()?;
        sum += ran;
    }
    Ok(Duration::from_nanos(sum))
}

/// A loop device, given back when dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    /// `None` where there is none, or only for others.
    fn over(image: &Path) -> Option<Self> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--read-only"]).arg(image);
        let output = command.output().ok().filter(|o| o.status.success())?;
        let path = String::from_utf8(output.stdout).ok()?;
        let device = Self(path.trim().into());
        // A machine may have the devices and yet refuse to read them.
        let mut file = File::open(&device.0).ok()?;
        file.seek(SeekFrom::Start(0)).ok()?;
        file.read_exact(&mut [0; load::PAGE]).ok()?;
        Some(device)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // What cannot be detached is seen in the list of loop devices.
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}
