//! One TD with 1 to 4 vCPUs that does what guests do at the worst moments; the code that runs in it is
//! `tests/emulated-tdx/guest/stress.c`, the map of its image `stress.h` there.

use std::fs;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::sys::{self, Bytes, Errno, Mapping};
use super::td::{self, Kvm, Vm, command};
use super::{Failure, Report};

const IMAGE: u64 = 0xfffe_0000;
const IMAGE_SIZE: usize = 0x2_0000;
const RAM: u64 = 256 << 20;
const SHARED_BIT: u64 = 1 << 47;
/// How often each vCPU converts its pages to shared and back.
const STORMS: u32 = 40;

/// What the TD is told to do.
#[derive(Clone, Debug)]
pub struct Orders {
    /// File with the code.
    pub image: String,
    /// 1 to 4.
    pub vcpus: u32,
    /// Pages that all vCPUs accept (or touch) at the same time.
    pub pages: u32,
    /// SEPT_VE_DISABLE off: pages are touched, and accepted by the #VE handler.
    pub touch: bool,
    /// #VEs and self IPIs in a row at the end.
    pub soak: u32,
    /// Instead of all this, what the prober says, call by call.
    pub puppet: bool,
    /// When to give up.
    pub seconds: u64,
}

/// What the guest told through its ports.
#[derive(Debug, Default)]
struct Told {
    results: [Option<u32>; 32],
    fault: Option<(u32, u32)>,
    stopped: Option<u32>,
}

#[derive(Debug)]
struct Running {
    vm: Vm,
    told: Mutex<Told>,
    stop: AtomicBool,
}

pub(super) fn run(report: &mut Report, orders: &Orders) {
    let how = if orders.touch { "touch" } else { "accept" };
    let name = format!(
        "stress/{how}_{}_pages_by_{}_vcpus",
        orders.pages, orders.vcpus
    );
    report.tell(&name, run_one(orders));
}

#[expect(clippy::print_stdout, reason = "figures for whoever reads the log")]
fn run_one(orders: &Orders) -> Result<(), Failure> {
    let started = Instant::now();
    let kvm = Kvm::open();
    let vm =
        launch(&kvm, orders).map_err(|errno| format!("the launch ended with {}", errno.name()))?;
    let running = Arc::new(Running {
        vm,
        told: Mutex::default(),
        stop: AtomicBool::new(false),
    });
    let (ended, end) = mpsc::channel();
    for vcpu in 0..orders.vcpus {
        let (running, ended, size) = (running.clone(), ended.clone(), kvm.run_size());
        thread::spawn(move || {
            let result = run_vcpu(&running, vcpu, size);
            running.stop.store(true, Ordering::Relaxed);
            // The receiver is gone if another vCPU ended the run first.
            let _ = ended.send(result);
        });
    }
    // The other vCPUs spin in the guest; they end with the process.
    end.recv_timeout(Duration::from_secs(orders.seconds))
        .map_err(|_| format!("no end after {} s", orders.seconds))??;
    let told = running.told.lock().expect("no thread panicked");
    let r = told.results.map(|value| value.unwrap_or(u32::MAX));
    println!(
        "   {} pages: accepted {}, already {}, busy {}, #VE {}, timer interrupts {}, {:.1} s",
        orders.pages,
        r[0],
        r[1],
        r[2],
        r[5],
        r[7],
        started.elapsed().as_secs_f64()
    );
    check(orders, &told, &r)
}

fn check(orders: &Orders, told: &Told, r: &[u32; 32]) -> Result<(), Failure> {
    if let Some((rip, error)) = told.fault {
        return Err(format!("the guest faulted at {rip:#x}, error {error:#x}").into());
    }
    if told.stopped != Some(0) {
        return Err(format!("the guest stopped with {:?}", told.stopped).into());
    }
    let others = orders.pages * (orders.vcpus - 1);
    let mut expected = vec![
        ("writes lost", r[3], 0),
        ("other status of an accept", r[4], 0),
        ("events lost or doubled", r[6], 0),
        ("GetTdVmCallInfo leaf 0", r[8], 0),
        ("GetTdVmCallInfo leaf 1", r[9], 0),
        ("its R11", r[10], 2),
        ("SetupEventNotifyInterrupt", r[11], 0),
        ("notifications", r[12], 1),
        ("MapGPA", r[13], 0),
        ("wrong pages in the conversion storm", r[14], 0),
        ("wrong pages after accepts against conversions", r[15], 0),
    ];
    if !orders.touch {
        expected.push(("accepted", r[0], orders.pages));
        expected.push(("already accepted", r[1], others));
    }
    for (what, got, wanted) in expected {
        if got != wanted {
            return Err(format!("{what}: {got}, expected {wanted}").into());
        }
    }
    if matches!(r[7], 0 | u32::MAX) {
        return Err(format!("timer interrupts: {:?}", told.results[7]).into());
    }
    if orders.touch && r[5] < orders.pages {
        return Err(format!("{} #VEs for {} pages", r[5], orders.pages).into());
    }
    Ok(())
}

fn launch(kvm: &Kvm, orders: &Orders) -> Result<Vm, Errno> {
    let vm = kvm.create(5)?;
    vm.enable_cap(201, 1 << 12)?; // MapGPA exits
    build(kvm, vm, orders)
}

/// Makes a new VM a TD that has the image and can run.
pub(super) fn build(kvm: &Kvm, mut vm: Vm, orders: &Orders) -> Result<Vm, Errno> {
    vm.enable_cap(121, 24)?; // split irqchip
    vm.enable_cap(237, 40)?; // APIC bus
    let caps = vm.capabilities(256, 0)?;
    let attributes = if orders.touch { 0 } else { 1 << 28 };
    let mut leaves = td::plain_leaves(&caps);
    for leaf in leaves.iter_mut().filter(|leaf| leaf[0] == 1) {
        leaf[5] |= 1 << 24; // TSC deadline, which the guest's timer uses
    }
    let mut params = td::init_vm(attributes, 3, &leaves);
    command(vm.fd(), td::TDX_INIT_VM, 0, params.address(), 0).0?;
    for (gpa, len) in [(0, RAM), (IMAGE, IMAGE_SIZE as u64)] {
        vm.add_slot(gpa, len, true)?;
        vm.set_private(gpa, len, true)?;
    }
    for vcpu in 0..orders.vcpus {
        vm.create_vcpu(vcpu)?;
        vm.set_cpuid(vcpu, &kvm.vcpu_cpuid(vcpu, true, 48))?;
        command(vm.vcpu(vcpu)?, td::TDX_INIT_VCPU, 0, 0, 0).0?;
    }
    let image = image(orders);
    let pages = (IMAGE_SIZE / 4096) as u64;
    vm.init_mem_region(0, 1, &mut [image.address(), IMAGE, pages])?;
    command(vm.fd(), td::TDX_FINALIZE_VM, 0, 0, 0).0?;
    Ok(vm)
}

/// The 128 KiB of `stress.h`.
fn image(orders: &Orders) -> Mapping {
    let code = fs::read(&orders.image).expect("the stress image");
    assert!(code.len() <= 0x4000);
    let m = Mapping::anonymous(IMAGE_SIZE);
    m.put(0, &code);
    let address = |n: usize| m.get(8 * n, 8);
    let (entry, on_timer, on_ipi) = (address(0), address(1), address(2));
    let (on_ve, on_fault) = (address(3), address(4));
    let jump = entry.wrapping_sub(IMAGE + 0x1_fff5);
    m.put(0x1_fff0, &[0xe9]);
    m.put(0x1_fff1, &jump.to_le_bytes()[..4]);

    let put64 = |at: usize, value: u64| m.put(at, &value.to_le_bytes());
    put64(0x4000, IMAGE + 0x5003);
    for (entry, table) in [(0, 0x6000), (1, 0x7000), (3, 0x8000)] {
        put64(0x5000 + 8 * entry, IMAGE + table + 3);
    }
    for i in 0..512 {
        let (at, gpa) = (8 * i, (i as u64) << 21);
        put64(0x6000 + at, gpa | 0x83);
        put64(0x7000 + at, gpa | SHARED_BIT | 0x83);
        put64(0x8000 + at, ((3 << 30) + gpa) | 0x83);
    }
    let gate = |vector: usize, handler: u64, ist: u64| {
        let low = handler & 0xffff | 8 << 16 | ist << 32 | 0x8e00 << 32;
        put64(0x9000 + 16 * vector, low | (handler >> 16 & 0xffff) << 48);
        put64(0x9008 + 16 * vector, handler >> 32);
    };
    for vector in [8, 10, 11, 12, 13, 14, 17] {
        gate(vector, on_fault, 4);
    }
    gate(20, on_ve, 3);
    gate(0x40, on_timer, 1);
    gate(0x41, on_ipi, 2);
    descriptors(&m, orders.vcpus);
    let words = [
        orders.vcpus,
        orders.pages,
        orders.touch.into(),
        orders.soak,
        STORMS,
        orders.puppet.into(),
    ];
    for (i, order) in words.iter().enumerate() {
        m.put(0xb004 + 4 * i, &order.to_le_bytes());
    }
    m
}

/// GDT, the pointers to GDT and IDT, and a TSS with interrupt stacks for each vCPU.
fn descriptors(m: &Mapping, vcpus: u32) {
    let put64 = |at: usize, value: u64| m.put(at, &value.to_le_bytes());
    m.put(0xa000, &0x1ff_u16.to_le_bytes());
    m.put(0xa002, &0xfffe_a100_u32.to_le_bytes());
    m.put(0xa010, &0xfff_u16.to_le_bytes());
    put64(0xa012, IMAGE + 0x9000);
    put64(0xa108, 0x00af_9b00_0000_ffff); // 64-bit code
    put64(0xa110, 0x00cf_9300_0000_ffff); // data
    for i in 0..vcpus as usize {
        let tss = IMAGE + 0xa400 + 0x80 * i as u64;
        let low = 0x67 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        put64(0xa120 + 16 * i, low);
        put64(0xa128 + 16 * i, tss >> 32);
        for k in 1..5 {
            let stack = IMAGE + (0x1_0000 + 0x3800 * i + 0x1800 + 0x800 * k) as u64;
            put64(0xa400 + 0x80 * i + 0x1c + 8 * k, stack);
        }
    }
}

fn run_vcpu(running: &Running, vcpu: u32, size: usize) -> Result<(), Failure> {
    let fd = running.vm.vcpus.get(&vcpu).expect("created").as_fd();
    let run = Mapping::of_file(fd, size);
    while !running.stop.load(Ordering::Relaxed) {
        let result = running.vm.run(vcpu);
        let exit = run.get(8, 4);
        match (result, exit) {
            (Err(Errno(libc::EINTR)), _) => {}
            (Err(Errno(libc::EFAULT)), 39) => {
                let (flags, gpa, len) = (run.get(32, 8), run.get(40, 8), run.get(48, 8));
                convert(running, gpa, len, flags & 8 != 0)?;
            }
            (Ok(()), 2) => port(running, &run),
            (Ok(()), 3) => {
                let (gpa, pages, how) = (run.get(40, 8), run.get(48, 8), run.get(56, 8));
                convert(running, gpa, pages * 4096, how & 16 != 0)?;
                run.put(88, &0_u64.to_le_bytes());
            }
            (Ok(()), 40) => tdx_exit(running, &run)?,
            _ => return Err(format!("vCPU {vcpu}: KVM_RUN gave {result:?}, exit {exit}").into()),
        }
    }
    Ok(())
}

fn convert(running: &Running, gpa: u64, len: u64, private: bool) -> Result<(), Failure> {
    let result = running.vm.convert(gpa, len, private);
    result.map_err(|errno| format!("conversion of {gpa:#x}: {}", errno.name()).into())
}

/// KVM_EXIT_IO: results, faults, and the end.
fn port(running: &Running, run: &Mapping) {
    let (out, size, port) = (run.get(32, 1) == 1, run.get(33, 1), run.get(34, 2));
    let at = usize::try_from(run.get(40, 8)).expect("inside of the mapping");
    if !out {
        run.put(at, &[0xff; 4][..usize::try_from(size).expect("1 to 4")]);
        return;
    }
    let value = u32::try_from(run.get(at, 4)).expect("4 bytes");
    let mut told = running.told.lock().expect("no thread panicked");
    match port {
        0x500..0x520 => {
            if let Some(slot) = told
                .results
                .get_mut(usize::try_from(port - 0x500).expect("small"))
            {
                *slot = Some(value);
            }
        }
        0x5fe => told.fault = Some((value, 0)),
        0x5ff => told.fault = told.fault.map(|(rip, _)| (rip, value)),
        0xf4 => {
            told.stopped = Some(value);
            running.stop.store(true, Ordering::Relaxed);
        }
        _ => {}
    }
}

/// KVM_EXIT_TDX: GetTdVmCallInfo leaf 1 and SetupEventNotifyInterrupt, answered by an MSI to vCPU 0.
fn tdx_exit(running: &Running, run: &Mapping) -> Result<(), Failure> {
    match run.get(40, 8) {
        0x10000 => run.put(64, &2_u64.to_le_bytes()),
        0x10004 => {
            let vector = run.get(56, 8);
            let mut msi = Bytes::new(32)
                .u32(0, 0xfee0_0000)
                .u32(8, u32::try_from(vector).expect("a vector"));
            sys::ioctl(running.vm.fd(), td::KVM_SIGNAL_MSI, &mut msi)
                .map_err(|errno| format!("SIGNAL_MSI: {}", errno.name()))?;
            run.put(48, &0_u64.to_le_bytes());
        }
        nr => return Err(format!("KVM_EXIT_TDX with nr {nr:#x}").into()),
    }
    Ok(())
}
