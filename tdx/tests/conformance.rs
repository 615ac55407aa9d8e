//! The fake kernel against the list of calls and results that the emulated kernel passes too.
//!
//! `tests/emulated-tdx/conformance.toml` says what each call of a launch, in and out of order, ends
//! with. The fake runs all of it but the steps that need a real kernel or a guest.

use std::fs;
use std::path::Path;

use libtest_mimic::{Arguments, Failed, Trial};
use serde::Deserialize;
use tdvmm_arch::addr::{GpaRange, VcpuId};
use tdvmm_arch::cpuid::{CpuidEntry, CpuidTable};
use tdvmm_tdx::abi::{self, kvm_cpuid_entry2, kvm_tdx_init_mem_region, kvm_tdx_init_vm};
use tdvmm_tdx::error::Command;
use tdvmm_tdx::fake::{self, FakeHost, FakeKernel, Fault, PageStops, Payload};
use tdvmm_tdx::params::has_sub_leaves;
use tdvmm_tdx::wire;
use zerocopy::{FromZeros, IntoBytes};

#[derive(Deserialize)]
struct List {
    prelude: std::collections::HashMap<String, Vec<Step>>,
    case: Vec<Case>,
}

#[derive(Clone, Deserialize)]
struct Case {
    name: String,
    after: String,
    steps: Vec<Step>,
}

/// All keys that any call takes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Step {
    call: String,
    name: String,
    expect: Option<String>,
    nent: Option<u32>,
    nent_updated: bool,
    flags: Option<u32>,
    attributes: Option<String>,
    xfam: Option<String>,
    cpuid: Option<String>,
    reserved: bool,
    pointer: Option<String>,
    hw_error: Option<String>,
    hw_error_in: Option<String>,
    vcpu: u32,
    x2apic: Option<bool>,
    gpaw: Option<u32>,
    ns: Option<u64>,
    rcx: Option<String>,
    gpa: Option<String>,
    pages: u64,
    gmem: Option<bool>,
    private: Option<bool>,
    source: Option<String>,
    left: Option<u64>,
    on: Option<String>,
    id: u32,
    what: Option<String>,
    count: u32,
    every: u64,
    errno: Option<String>,
}

fn main() {
    let arguments = Arguments::from_args();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/emulated-tdx/conformance.toml");
    let text = fs::read_to_string(&path).expect("the list is part of the repository");
    let list: List = toml::from_str(&text).expect("the list is well-formed");
    let trials = list.case.iter().map(|case| {
        let mut steps = list.prelude.get(&case.after).cloned().unwrap_or_default();
        steps.extend(case.steps.iter().cloned());
        match steps.iter().find_map(needs_a_kernel) {
            Some(why) => Trial::test(format!("{} (needs a kernel: {why})", case.name), || Ok(()))
                .with_ignored_flag(true),
            None => Trial::test(case.name.clone(), move || run(&steps)),
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// What the fake has no part in: ordinary ioctls, module parameters, limits of several VMs.
fn needs_a_kernel(step: &Step) -> Option<&str> {
    match step.call.as_str() {
        "ioctl" if khz(&step.name).is_some() => None,
        "ioctl" => Some(&step.name),
        other => ["parameter", "extension", "close_vm"]
            .contains(&other)
            .then_some(other),
    }
}

/// The frequency that an `ioctl` step gives the VM.
fn khz(name: &str) -> Option<u32> {
    Some(match name {
        "vm_set_tsc_khz" => 2_000_000,
        "vm_set_tsc_khz_50_mhz" => 50_000,
        "vm_set_tsc_khz_10025_mhz" => 10_025_000,
        _ => return None,
    })
}

/// One VM, and the region command that may be resumed.
struct Bench {
    kernel: FakeKernel,
    /// Indices of the fake by vCPU number.
    vcpus: Vec<(u32, usize)>,
    slots: u32,
    region: kvm_tdx_init_mem_region,
    region_flags: u32,
    memory: Vec<u8>,
}

/// What a step left behind.
#[derive(Default)]
struct Outcome {
    hw_error: u64,
    left: Option<u64>,
    nent_updated: bool,
}

fn run(steps: &[Step]) -> Result<(), Failed> {
    let mut bench = Bench {
        kernel: FakeKernel::new(FakeHost {
            max_vcpus: 8,
            ..FakeHost::default()
        }),
        vcpus: Vec::new(),
        slots: 0,
        region: kvm_tdx_init_mem_region::new_zeroed(),
        region_flags: 0,
        memory: vec![0x5a; 16 * 4096],
    };
    for (number, step) in steps.iter().enumerate() {
        let mut outcome = Outcome::default();
        let result = bench.step(step, &mut outcome)?;
        let got = result.map_or_else(errno_name, |()| "ok".to_owned());
        let want = step.expect.as_deref().unwrap_or("ok");
        let place = format!("step {number}: {step:?}");
        if got != want {
            return Err(format!("{got} instead of {want} at {place}").into());
        }
        if let Some(hw_error) = &step.hw_error {
            assert_eq!(outcome.hw_error, number64(hw_error), "hw_error at {place}");
        }
        if step.left.is_some() {
            assert_eq!(outcome.left, step.left, "pages left at {place}");
        }
        assert!(
            !step.nent_updated || outcome.nent_updated,
            "count not told at {place}"
        );
    }
    Ok(())
}

impl Bench {
    /// `Err` for a step that is malformed, `Ok(Err(errno))` for a call that failed.
    fn step(&mut self, step: &Step, out: &mut Outcome) -> Result<Result<(), i32>, Failed> {
        let gpa = step.gpa.as_deref().map_or(0, number64);
        Ok(match step.call.as_str() {
            "create_vm" => Ok(()),
            "split_irqchip" => self.kernel.enable_cap(abi::KVM_CAP_SPLIT_IRQCHIP, 24),
            "apic_bus_cycles" => self
                .kernel
                .enable_cap(abi::KVM_CAP_X86_APIC_BUS_CYCLES_NS, step.ns.unwrap_or(40)),
            "capabilities" => {
                let nent = step.nent.unwrap_or(256);
                let mut buffer = wire::capabilities_buffer(nent as usize);
                let flags = step.flags.unwrap_or(0);
                let mut cmd = wire::command(abi::KVM_TDX_CAPABILITIES, flags, 0);
                let head = buffer.get(256).copied();
                let result = self
                    .kernel
                    .vm_command(&mut cmd, Payload::Words(&mut buffer));
                if result == Err(libc::E2BIG) {
                    assert_eq!(buffer.get(256).copied(), head, "E2BIG leaves the count");
                }
                result
            }
            "init_vm" => self.init_vm(step, out)?,
            "add_slot" => {
                let flags = if step.gmem.unwrap_or(true) {
                    abi::KVM_MEM_GUEST_MEMFD
                } else {
                    0
                };
                let range = GpaRange::constant(gpa, step.pages * 4096);
                self.slots += 1;
                self.kernel.add_slot(self.slots, range, flags)
            }
            "set_private" => {
                let attributes = if step.private.unwrap_or(true) { 8 } else { 0 };
                self.kernel
                    .set_attributes(gpa, step.pages * 4096, attributes, 0)
            }
            "finalize" => {
                let mut cmd = wire::command(abi::KVM_TDX_FINALIZE_VM, step.flags.unwrap_or(0), 0);
                let result = self.kernel.vm_command(&mut cmd, Payload::Unmapped);
                out.hw_error = cmd.hw_error;
                result
            }
            "command" => {
                let mut cmd = wire::command(step.id, step.flags.unwrap_or(0), 0);
                cmd.hw_error = step.hw_error_in.as_deref().map_or(0, number64);
                if step.on.as_deref() == Some("vcpu") {
                    self.kernel
                        .vcpu_command(self.vcpu(step)?, cmd, Payload::Unmapped)
                } else {
                    self.kernel.vm_command(&mut cmd, Payload::Unmapped)
                }
            }
            "inject" => self.inject(step)?,
            "ioctl" => {
                let khz = khz(&step.name).ok_or("an ioctl that the fake has")?;
                self.kernel.set_tsc_khz(khz)
            }
            _ => self.vcpu_step(step, out)?,
        })
    }

    fn vcpu_step(&mut self, step: &Step, out: &mut Outcome) -> Result<Result<(), i32>, Failed> {
        let gpa = step.gpa.as_deref().map_or(0, number64);
        Ok(match step.call.as_str() {
            "create_vcpu" => self
                .kernel
                .create_vcpu(step.vcpu)
                .map(|index| self.vcpus.push((step.vcpu, index))),
            "set_cpuid" => {
                let gpaw = step.gpaw.unwrap_or(48);
                let table = vcpu_table(step.vcpu, step.x2apic.unwrap_or(true), gpaw);
                self.kernel.set_cpuid(self.vcpu(step)?, &table)
            }
            "td_cpuid" => {
                let nent = step.nent.unwrap_or(256);
                let mut buffer = wire::empty_cpuid_buffer(nent as usize);
                let cmd = wire::command(abi::KVM_TDX_GET_CPUID, step.flags.unwrap_or(0), 0);
                let vcpu = self.vcpu(step)?;
                let result = self
                    .kernel
                    .vcpu_command(vcpu, cmd, Payload::Words(&mut buffer));
                out.nent_updated = buffer[0] > u64::from(nent);
                result
            }
            "init_vcpu" => {
                let rcx = step.rcx.as_deref().map_or(0x80_9000, number64);
                let cmd = wire::command(abi::KVM_TDX_INIT_VCPU, step.flags.unwrap_or(0), rcx);
                self.kernel
                    .vcpu_command(self.vcpu(step)?, cmd, Payload::Unmapped)
            }
            "init_mem_region" => {
                let source_addr = match step.source.as_deref() {
                    Some("null") => 0,
                    Some("unaligned") => 0x10_0001,
                    _ => 0x10_0000,
                };
                self.region = kvm_tdx_init_mem_region {
                    source_addr,
                    gpa,
                    nr_pages: step.pages,
                };
                self.region_flags = step.flags.unwrap_or(1);
                self.add_region(step, out)?
            }
            "resume_mem_region" => self.add_region(step, out)?,
            "run" => match self.kernel.run(self.vcpu(step)?) {
                // The fake runs no guest: with immediate_exit this is what "it runs" looks like.
                Err(libc::EINTR) => Ok(()),
                other => other,
            },
            "prefault" => self
                .kernel
                .pre_fault(self.vcpu(step)?, gpa, step.pages * 4096),
            other => return Err(format!("unknown call {other}").into()),
        })
    }

    fn vcpu(&self, step: &Step) -> Result<usize, Failed> {
        let found = self.vcpus.iter().find(|(id, _)| *id == step.vcpu);
        found
            .map(|(_, index)| *index)
            .ok_or_else(|| format!("no vCPU {}", step.vcpu).into())
    }

    fn init_vm(&mut self, step: &Step, out: &mut Outcome) -> Result<Result<(), i32>, Failed> {
        let choice = step.cpuid.as_deref().unwrap_or("default");
        let entries: Vec<kvm_cpuid_entry2> = init_table(choice)?;
        let mut head = kvm_tdx_init_vm::new_zeroed();
        head.attributes = step.attributes.as_deref().map_or(1 << 28, number64);
        head.xfam = step.xfam.as_deref().map_or(3, number64);
        head.reserved[0] = u64::from(step.reserved);
        head.cpuid.nent = u32::try_from(entries.len())?;
        head.cpuid.padding = u32::from(choice == "padding");
        let bytes = [head.as_bytes(), entries.as_bytes()].concat();
        let mut buffer: Vec<u64> = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_ne_bytes(*word))
            .collect();
        let mut cmd = wire::command(abi::KVM_TDX_INIT_VM, step.flags.unwrap_or(0), 0);
        let payload = match step.pointer.as_deref() {
            Some("bad") => Payload::Unmapped,
            _ => Payload::Words(&mut buffer),
        };
        let result = self.kernel.vm_command(&mut cmd, payload);
        out.hw_error = cmd.hw_error;
        Ok(result)
    }

    fn add_region(&mut self, step: &Step, out: &mut Outcome) -> Result<Result<(), i32>, Failed> {
        let vcpu = self.vcpu(step)?;
        let cmd = wire::command(abi::KVM_TDX_INIT_MEM_REGION, self.region_flags, 0);
        let source = (step.source.as_deref() != Some("unmapped")).then_some(&self.memory[..]);
        let payload = match step.pointer.as_deref() {
            Some("bad") => Payload::Unmapped,
            _ => Payload::Region(&mut self.region, source),
        };
        let result = self.kernel.vcpu_command(vcpu, cmd, payload);
        out.left = Some(self.region.nr_pages);
        Ok(result)
    }

    fn inject(&mut self, step: &Step) -> Result<Result<(), i32>, Failed> {
        let faults = &mut self.kernel.faults;
        match step.what.as_deref() {
            Some("init_vm_eagain") => faults.faults.extend(vec![
                Fault {
                    command: Command::InitVm,
                    skip: 0,
                    errno: libc::EAGAIN,
                    hw_error: 0x8000_0203_0000_0000,
                };
                step.count as usize
            ]),
            Some("finalize_busy") => faults.faults.extend(vec![
                Fault {
                    command: Command::FinalizeVm,
                    skip: 0,
                    errno: libc::EBUSY,
                    hw_error: 0x8000_0200_0000_0001,
                };
                step.count as usize
            ]),
            Some("mem_region") => {
                let errno = errno_number(step.errno.as_deref().unwrap_or("EAGAIN"))?;
                faults.page_stops = PageStops::every(step.every, errno);
            }
            other => return Err(format!("unknown injection {other:?}").into()),
        }
        Ok(Ok(()))
    }
}

/// The table of INIT_VM that `choice` names.
fn init_table(choice: &str) -> Result<Vec<kvm_cpuid_entry2>, Failed> {
    let blank = |entry: &CpuidEntry| kvm_cpuid_entry2 {
        function: entry.function,
        index: entry.index,
        flags: u32::from(has_sub_leaves(entry.function)),
        eax: if entry.function == 0x8000_0008 {
            48 << 16
        } else {
            0
        },
        ..kvm_cpuid_entry2::default()
    };
    let mut table: Vec<_> = fake::capabilities().cpuid.iter().map(blank).collect();
    let find = |table: &[kvm_cpuid_entry2], function| {
        table
            .iter()
            .position(|entry| entry.function == function)
            .expect("the fake reports it")
    };
    let (one, seven) = (find(&table, 1), find(&table, 7));
    let sizes = find(&table, 0x8000_0008);
    match choice {
        "default" | "padding" => {}
        "empty" => table.clear(),
        "only_gpaw" => table.retain(|entry| entry.function == 0x8000_0008),
        "gpaw_255" => table[sizes].eax = 0xff << 16,
        "gpaw_0" => table[sizes].eax = 0,
        "gpaw_52" => table[sizes].eax = 52 << 16,
        "extra_leaf" => table.push(kvm_cpuid_entry2 {
            function: 0x4000_0000,
            ..table[one]
        }),
        "duplicate_leaf" => table.push(table[one]),
        "outside_mask" => table[one].eax |= 1,
        "tsx" => table[seven].ebx |= 1 << 11,
        "waitpkg" => table[seven].ecx |= 1 << 5,
        "unflagged" => {
            let four = find(&table, 4);
            table[four].edx |= 1 << 31;
            table.iter_mut().for_each(|entry| entry.flags = 0);
        }
        "other_index" => {
            table[one].index = 5;
            table[one].flags = 1;
        }
        "nent_257" => table.resize(257, kvm_cpuid_entry2::default()),
        other => return Err(format!("unknown table {other}").into()),
    }
    Ok(table)
}

fn vcpu_table(vcpu: u32, x2apic: bool, gpaw: u32) -> CpuidTable {
    let mut table = fake::wanted_cpuid(VcpuId(vcpu));
    for entry in &mut table.0 {
        match entry.function {
            1 if x2apic => entry.ecx |= 1 << 21,
            1 => entry.ecx &= !(1 << 21),
            0x8000_0008 => entry.eax = (entry.eax & !0x00ff_0000) | gpaw << 16,
            _ => {}
        }
    }
    table
}

fn number64(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("numbers are in hex")
}

const ERRNOS: &[(&str, i32)] = &[
    ("E2BIG", libc::E2BIG),
    ("EAGAIN", libc::EAGAIN),
    ("EBUSY", libc::EBUSY),
    ("EEXIST", libc::EEXIST),
    ("EFAULT", libc::EFAULT),
    ("EINTR", libc::EINTR),
    ("EINVAL", libc::EINVAL),
    ("EIO", libc::EIO),
    ("ENOSPC", libc::ENOSPC),
    ("ENXIO", libc::ENXIO),
    ("EOPNOTSUPP", libc::EOPNOTSUPP),
];

fn errno_name(errno: i32) -> String {
    let known = ERRNOS.iter().find(|(_, number)| *number == errno);
    known.map_or_else(|| format!("errno {errno}"), |(name, _)| (*name).to_owned())
}

fn errno_number(name: &str) -> Result<i32, Failed> {
    let known = ERRNOS.iter().find(|(known, _)| *known == name);
    known
        .map(|(_, number)| *number)
        .ok_or_else(|| format!("unknown errno {name}").into())
}
