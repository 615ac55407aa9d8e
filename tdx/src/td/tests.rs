//! The launch over a fake kernel: its order, its retries, its refusals, and what reaches MRTD.

use std::collections::HashSet;

use proptest::prelude::*;
use sha2::{Digest as _, Sha384};
use tdvmm_arch::addr::{Gpa, GpaRange, VcpuId};

use crate::error::{Command, TdxError};
use crate::fake::{self, FakeHost, FakeTd, FakeVcpu, Fault, Lifecycle, Stop};
use crate::log::{Measure, MeasurementLog};
use crate::pages::{Digest, PageBuffer};
use crate::params::{TdRequest, TscFrequency, Xfam, XfamChoice};
use crate::td::{Loading, Runnable, Td, VcpuCount, VmSetup};
use crate::transcript::{CallRecord, Recorder, Transcript};

const HOB: Gpa = Gpa(0x80_9000);

/// A region to load: address, contents, measured or not.
#[derive(Clone, Debug)]
struct Region {
    at: Gpa,
    content: PageBuffer,
    measure: Measure,
}

fn region(at: u64, pages: usize, fill: u8, measure: Measure) -> Region {
    let content: Vec<u8> = (0..pages * 4096)
        .map(|i| fill ^ (i / 97).to_le_bytes()[0])
        .collect();
    let content = PageBuffer::from_content(&content, pages * 4096).unwrap();
    Region {
        at: Gpa(at),
        content,
        measure,
    }
}

/// A measured region behind an unmeasured one: a wrong order shows.
fn image() -> Vec<Region> {
    vec![
        region(0xffc8_4000, 6, 1, Measure::Yes),
        region(0xffc0_0000, 3, 2, Measure::No),
        region(0x80_9000, 2, 0, Measure::No),
        region(0x86_1000, 4, 3, Measure::Yes),
    ]
}

fn loading(td: &FakeTd, vcpus: u32) -> Result<Td<FakeTd, Loading<FakeVcpu>>, TdxError> {
    Td::create(td.clone(), &VmSetup::default())?
        .init(&fake::params())?
        .create_vcpus(VcpuCount::new(vcpus).unwrap(), HOB, fake::wanted_cpuid)
}

fn launch(td: &FakeTd, image: &[Region]) -> Result<Runnable<FakeTd, FakeVcpu>, TdxError> {
    let mut loading = loading(td, 2)?;
    for region in image {
        loading = loading.add_region(region.content.source(), region.at, region.measure)?;
    }
    loading.finalize()
}

/// MRTD by its definition, from a log and the contents, independent of the fake's.
fn mrtd(log: &MeasurementLog, image: &[Region]) -> [u8; 48] {
    let mut stream: Vec<u8> = Vec::new();
    let mut push = |name: &[u8], at: u64, data: &[u8]| {
        let mut block = [0; 128];
        block[..name.len()].copy_from_slice(name);
        block[16..24].copy_from_slice(&at.to_le_bytes());
        stream.extend_from_slice(&block);
        stream.extend_from_slice(data);
    };
    for (entry, region) in log.regions().iter().zip(image) {
        assert_eq!(entry.digest, region.content.source().digest());
        for (page, content) in region.content.bytes().chunks(4096).enumerate() {
            let at = entry.range.start().0 + 4096 * page as u64;
            push(b"MEM.PAGE.ADD", at, &[]);
            if entry.measure == Measure::Yes {
                for (chunk, data) in content.chunks(256).enumerate() {
                    push(b"MR.EXTEND", at + 256 * chunk as u64, data);
                }
            }
        }
    }
    Sha384::digest(&stream).into()
}

#[test]
fn launch_calls_the_kernel_in_the_order_of_its_rules() {
    let td = FakeTd::default();
    let parts = launch(&td, &image()).unwrap().into_parts();
    let calls: Vec<_> = parts
        .transcript
        .calls
        .iter()
        .map(|call| (call.call.as_str(), call.vcpu))
        .collect();
    let mut want = vec![("KVM_TDX_INIT_VM", None)];
    want.extend([
        ("KVM_CREATE_VCPU", Some(0)),
        ("KVM_TDX_GET_CPUID", Some(0)),
        ("KVM_SET_CPUID2", Some(0)),
        ("KVM_TDX_INIT_VCPU", Some(0)),
        ("KVM_CREATE_VCPU", Some(1)),
        ("KVM_SET_CPUID2", Some(1)),
        ("KVM_TDX_INIT_VCPU", Some(1)),
    ]);
    for _ in image() {
        want.push(("KVM_SET_MEMORY_ATTRIBUTES", None));
        want.push(("KVM_TDX_INIT_MEM_REGION", Some(0)));
    }
    want.push(("KVM_TDX_FINALIZE_VM", None));
    assert_eq!(calls, want);
    assert_eq!(td.kernel().lifecycle(), Lifecycle::Runnable);
}

#[test]
fn undisturbed_launch_makes_one_region_call_per_region() {
    let td = FakeTd::default();
    let parts = launch(&td, &image()).unwrap().into_parts();
    assert_eq!(td.kernel().region_calls(), 4);
    assert!(
        parts.transcript.calls.iter().all(|call| call.tries <= 2),
        "GET_CPUID grows once"
    );
}

#[test]
fn every_vcpu_starts_with_the_value_of_the_hob_address_and_can_run() {
    let td = FakeTd::default();
    let parts = launch(&td, &image()).unwrap().into_parts();
    let ids: Vec<_> = parts
        .vcpus
        .iter()
        .map(crate::td::RunnableVcpu::id)
        .collect();
    assert_eq!(ids, [VcpuId(0), VcpuId(1)]);
    for vcpu in parts.vcpus {
        let index = vcpu.into_vcpu().index();
        assert_eq!(td.kernel().rcx(index), Some(HOB.0));
        // KVM_RUN with immediate_exit: EINTR means that it would have run.
        assert_eq!(td.kernel().run(index), Err(libc::EINTR));
    }
}

#[test]
fn log_and_transcript_give_the_mrtd_of_the_module() {
    let td = FakeTd::default();
    let image = image();
    let parts = launch(&td, &image).unwrap().into_parts();
    assert_eq!(Digest(mrtd(&parts.log, &image)), td.kernel().mrtd());
    let text = serde_json::to_string_pretty(&parts.transcript).unwrap();
    let read: Transcript = serde_json::from_str(&text).unwrap();
    assert_eq!(read.measurement_log().unwrap(), parts.log);
}

#[test]
fn mrtd_depends_on_the_order_of_regions() {
    let one = FakeTd::default();
    launch(&one, &image()).unwrap();
    let other = FakeTd::default();
    let mut reversed = image();
    reversed.reverse();
    launch(&other, &reversed).unwrap();
    assert_ne!(one.kernel().mrtd(), other.kernel().mrtd());
}

#[test]
fn init_vm_is_repeated_while_entropy_is_low() {
    let td = FakeTd::default();
    for _ in 0..3 {
        td.kernel().faults.faults.push(Fault {
            command: Command::InitVm,
            skip: 0,
            errno: libc::EAGAIN,
            hw_error: 0x8000_0203_0000_0000,
        });
    }
    let parts = launch(&td, &image()).unwrap().into_parts();
    assert_eq!(parts.transcript.calls[0].tries, 4);
}

/// The calls of a launch in which `command` fails with EINVAL after `skip` that did not.
fn failing(command: Command, skip: u32) -> Vec<CallRecord> {
    let td = FakeTd::default();
    td.kernel().faults.faults.push(Fault {
        command,
        skip,
        errno: libc::EINVAL,
        hw_error: 0,
    });
    let recorder = Recorder::default();
    let launched = Td::create_recorded(td.clone(), &VmSetup::default(), recorder.clone())
        .and_then(|mut td| td.capabilities().map(|_| td))
        .and_then(|td| td.init(&fake::params()))
        .and_then(|td| td.create_vcpus(VcpuCount::new(2).unwrap(), HOB, fake::wanted_cpuid))
        .and_then(|td| {
            image().iter().try_fold(td, |td, region| {
                td.add_region(region.content.source(), region.at, region.measure)
            })
        })
        .and_then(Td::finalize);
    assert!(launched.is_err());
    recorder.transcript().calls
}

#[test]
fn call_that_fails_is_the_last_of_those_that_were_recorded() {
    for (command, skip, before) in [
        (Command::Capabilities, 0, 0),
        (Command::InitVm, 0, 1),
        (Command::GetCpuid, 0, 3),
        (Command::InitVcpu, 1, 8),
        (Command::InitMemRegion, 1, 12),
        (Command::FinalizeVm, 0, 17),
    ] {
        let mut calls = failing(command, skip);
        let last = calls.pop().unwrap();
        assert_eq!((last.call.as_str(), calls.len()), (command.name(), before));
        let error = last.error.unwrap();
        assert!(error.ends_with("Invalid argument (os error 22)"), "{error}");
        assert!(calls.iter().all(|call| call.error.is_none()));
    }
}

#[test]
fn setting_that_fails_is_recorded() {
    let td = FakeTd::default();
    let setup = VmSetup::default();
    Td::create(td.clone(), &setup).unwrap();
    let recorder = Recorder::default();
    // There is an irqchip now.
    Td::create_recorded(td, &setup, recorder.clone()).unwrap_err();
    let calls = recorder.transcript().calls;
    let [call] = &calls[..] else {
        panic!("{calls:?}")
    };
    assert_eq!(call.call, Command::EnableSplitIrqchip.name());
    let error = call.error.as_deref().unwrap();
    assert!(error.ends_with("File exists (os error 17)"), "{error}");
}

#[test]
fn region_that_failed_is_told_and_not_replayed() {
    let calls = failing(Command::InitMemRegion, 1);
    let gpa = calls.last().unwrap().region.as_ref().unwrap().gpa.clone();
    assert_eq!(gpa, "0xffc00000");
    let log = Transcript { calls }.measurement_log().unwrap();
    assert_eq!(log.regions().len(), 1);
}

#[test]
fn region_call_that_never_gets_on_is_given_up() {
    let td = FakeTd::default();
    td.kernel().faults.stop_always = Some(Stop {
        after: 0,
        errno: libc::EINTR,
    });
    let error = launch(&td, &image()).unwrap_err();
    assert!(matches!(
        error,
        TdxError::NoProgress {
            command: Command::InitMemRegion,
            ..
        }
    ));
    assert!(td.kernel().added().is_empty());
}

#[test]
fn region_is_not_added_twice() {
    let td = FakeTd::default();
    let buffer = PageBuffer::zeroed(2);
    let loading = loading(&td, 1).unwrap();
    let loading = loading
        .add_region(buffer.source(), Gpa(0x1000), Measure::No)
        .unwrap();
    let error = loading
        .add_region(buffer.source(), Gpa(0x2000), Measure::No)
        .unwrap_err();
    let earlier = GpaRange::constant(0x1000, 0x2000);
    assert!(matches!(error, TdxError::RegionTwice { earlier: met, .. } if met == earlier));
    assert!(!td.kernel().is_dead());
}

#[test]
fn region_in_the_shared_half_is_refused_before_the_kernel_is_asked() {
    for at in [1 << 47, (1 << 47) - 0x1000, u64::MAX - 0xfff] {
        let td = FakeTd::default();
        let buffer = PageBuffer::zeroed(2);
        let loading = loading(&td, 1).unwrap();
        let error = loading
            .add_region(buffer.source(), Gpa(at), Measure::No)
            .unwrap_err();
        assert!(
            matches!(error, TdxError::RegionShared { gpaw: 48, .. }),
            "{error}"
        );
        assert_eq!(td.kernel().region_calls(), 0);
    }
}

#[test]
fn unaligned_target_is_refused() {
    let td = FakeTd::default();
    let buffer = PageBuffer::zeroed(1);
    let error = loading(&td, 1)
        .unwrap()
        .add_region(buffer.source(), Gpa(0x1800), Measure::No);
    assert!(matches!(error.unwrap_err(), TdxError::RegionSize { .. }));
}

#[test]
fn more_vcpus_than_the_host_gives_are_refused_before_any_is_made() {
    let td = FakeTd::new(FakeHost {
        max_vcpus: 2,
        ..FakeHost::default()
    });
    let error = loading(&td, 3).unwrap_err();
    assert!(matches!(error, TdxError::TooManyVcpus { asked: 3, max: 2 }));
    assert!(error.to_string().contains("KVM_CAP_MAX_VCPUS"));
    assert_eq!(td.kernel().create_vcpu(0), Ok(0));
}

#[test]
fn host_without_free_key_ids_is_named() {
    let td = FakeTd::new(FakeHost {
        key_ids: 0,
        ..FakeHost::default()
    });
    let error = loading(&td, 1).unwrap_err();
    assert_eq!(error.call().unwrap().errno(), libc::ENOSPC);
    assert!(error.to_string().contains("key id"));
}

#[test]
fn module_refusal_carries_status_and_operand() {
    let td = FakeTd::default();
    // A module that follows stricter rules than it reports: the host's TSC is out of its range.
    td.kernel().set_tsc_khz(99_999).unwrap();
    let error = loading(&td, 1).unwrap_err();
    let status = error.call().unwrap().status().unwrap();
    assert_eq!(status.operand(), Some("TSC_FREQUENCY"));
    assert!(error.to_string().contains("steps of 25 MHz"));
}

#[test]
fn failure_of_any_call_ends_the_launch_with_its_name() {
    let commands = [
        Command::InitVm,
        Command::CreateVcpu,
        Command::GetCpuid,
        Command::SetCpuid2,
        Command::InitVcpu,
        Command::SetMemoryAttributes,
        Command::InitMemRegion,
        Command::FinalizeVm,
    ];
    for command in commands {
        let td = FakeTd::default();
        let fault = Fault {
            command,
            skip: 0,
            errno: libc::EIO,
            hw_error: 0,
        };
        td.kernel().faults.faults.push(fault);
        let error = launch(&td, &image()).unwrap_err();
        assert_eq!(error.call().unwrap().command(), command);
        assert!(error.to_string().starts_with(command.name()));
        assert!(td.kernel().is_dead());
    }
}

#[test]
fn capabilities_grow_until_they_fit() {
    let mut host = FakeHost::default();
    let masks: Vec<_> = (0..100)
        .map(|i| tdvmm_arch::cpuid::CpuidEntry {
            function: 7,
            index: i,
            ..Default::default()
        })
        .collect();
    host.capabilities.cpuid = tdvmm_arch::cpuid::CpuidTable(masks);
    let expected = host.capabilities.clone();
    let mut td = Td::create(FakeTd::new(host), &VmSetup::default()).unwrap();
    assert_eq!(td.capabilities().unwrap(), expected);
}

#[test]
fn amx_is_permitted_before_the_first_vcpu() {
    let mut host = FakeHost {
        amx_permitted: false,
        ..FakeHost::default()
    };
    host.capabilities.xfam = Xfam(0x6_0207);
    let mut request = TdRequest::new(fake::wanted_cpuid(VcpuId(0)), Gpa(1 << 32));
    request.xfam = XfamChoice::Exactly(Xfam(0x6_0007));
    let params = request.resolve(&host.capabilities).unwrap();
    let td = FakeTd::new(host);
    let count = VcpuCount::new(1).unwrap();
    Td::create(td, &VmSetup::default())
        .unwrap()
        .init(&params)
        .unwrap()
        .create_vcpus(count, HOB, fake::wanted_cpuid)
        .unwrap();
}

#[test]
fn set_tsc_frequency_is_in_the_cpuid_of_the_td() {
    let td = FakeTd::default();
    let tsc = Some(TscFrequency::from_khz(1_500_000).unwrap());
    let setup = VmSetup {
        tsc,
        ..VmSetup::default()
    };
    Td::create(td.clone(), &setup)
        .unwrap()
        .init(&fake::params())
        .unwrap()
        .create_vcpus(VcpuCount::new(1).unwrap(), HOB, fake::wanted_cpuid)
        .unwrap();
    let kernel = td.kernel();
    assert_eq!(kernel.vcpu_cpuid(0).unwrap().find(0x15, 0).unwrap().ebx, 60);
}

fn any_image() -> impl Strategy<Value = Vec<Region>> {
    proptest::collection::vec((1usize..6, any::<u8>(), any::<bool>()), 1..6).prop_map(|shapes| {
        let mut at = 0x10_0000;
        shapes
            .into_iter()
            .map(|(pages, fill, measured)| {
                let measure = if measured { Measure::Yes } else { Measure::No };
                let region = region(at, pages, fill, measure);
                at += 0x10_0000;
                region
            })
            .collect()
    })
}

fn any_stop() -> impl Strategy<Value = Stop> {
    (0u64..5, prop_oneof![Just(libc::EINTR), Just(libc::EAGAIN)])
        .prop_map(|(after, errno)| Stop { after, errno })
}

proptest! {
    #[test]
    fn any_interruption_gives_the_mrtd_of_an_undisturbed_launch(
        image in any_image(),
        stops in proptest::collection::vec(any_stop(), 0..40),
        busy in 0u32..3,
    ) {
        let calm = FakeTd::default();
        let calm_log = launch(&calm, &image).unwrap().into_parts().log;

        let td = FakeTd::default();
        td.kernel().faults.stops = stops.into();
        for command in [Command::InitVm, Command::InitVcpu, Command::FinalizeVm] {
            for skip in 0..busy {
                let errno = if skip % 2 == 0 { libc::EINTR } else { libc::EAGAIN };
                td.kernel().faults.faults.push(Fault { command, skip: 0, errno, hw_error: 0 });
            }
        }
        let log = launch(&td, &image).unwrap().into_parts().log;

        let kernel = td.kernel();
        prop_assert_eq!(&log, &calm_log);
        prop_assert_eq!(kernel.mrtd(), calm.kernel().mrtd());
        prop_assert_eq!(kernel.mrtd(), Digest(mrtd(&log, &image)));
        let mut seen = HashSet::new();
        for (page, _) in kernel.added() {
            prop_assert!(seen.insert(*page), "{} was added twice", page);
        }
        prop_assert!(!kernel.is_dead());
    }
}
