//! Buffers with CPUID entries at their end, laid out as the kernel reads and writes them.
//!
//! Pure: values to buffers and back. A buffer is a `Vec<u64>`, which gives the alignment that the
//! structures want; the sizes of all parts are multiples of 8. What comes back from the kernel is
//! read with its own count, capped by what the buffer holds.

use std::mem::size_of;

use tdvmm_arch::addr::{GpaRange, PAGE_SIZE};
use tdvmm_arch::cpuid::{CpuidEntry, CpuidTable};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::abi::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_TDX_INIT_MEM_REGION, KVM_TDX_MEASURE_MEMORY_REGION,
    kvm_cpuid_entry2, kvm_cpuid2, kvm_tdx_capabilities, kvm_tdx_cmd, kvm_tdx_init_mem_region,
    kvm_tdx_init_vm,
};
use crate::caps::Capabilities;
use crate::error::{CallError, Command};
use crate::log::Measure;
use crate::ops::Progress;
use crate::pages::PageSource;
use crate::params::{TdAttributes, TdParams, Xfam};

const ENTRY: usize = size_of::<kvm_cpuid_entry2>();

/// A command as it goes to the kernel: `hw_error` is 0, or it would be refused. So each try gets a
/// command of its own.
#[must_use]
pub const fn command(id: u32, flags: u32, data: u64) -> kvm_tdx_cmd {
    kvm_tdx_cmd {
        id,
        flags,
        data,
        hw_error: 0,
    }
}

/// An empty buffer for `KVM_TDX_CAPABILITIES` with room for `capacity` entries.
#[must_use]
pub fn capabilities_buffer(capacity: usize) -> Vec<u64> {
    let mut head = kvm_tdx_capabilities::new_zeroed();
    head.cpuid.nent = count(capacity);
    with_entries(
        head.as_bytes(),
        &vec![kvm_cpuid_entry2::default(); capacity],
    )
}

/// What the kernel wrote into a buffer of [`capabilities_buffer`].
#[must_use]
pub fn parse_capabilities(buffer: &[u64]) -> Option<Capabilities> {
    let (head, rest) = kvm_tdx_capabilities::read_from_prefix(buffer.as_bytes()).ok()?;
    Some(Capabilities {
        attributes: TdAttributes(head.supported_attrs),
        xfam: Xfam(head.supported_xfam),
        kernel_r11: head.kernel_tdvmcallinfo_1_r11,
        user_r11: head.user_tdvmcallinfo_1_r11,
        kernel_r12: head.kernel_tdvmcallinfo_1_r12,
        user_r12: head.user_tdvmcallinfo_1_r12,
        unknown_words: head.reserved.iter().any(|word| *word != 0),
        cpuid: read_entries(head.cpuid.nent, rest),
    })
}

/// The argument of `KVM_TDX_INIT_VM`.
#[must_use]
pub fn init_vm_buffer(params: &TdParams) -> Vec<u64> {
    let entries: Vec<_> = params.cpuid().iter().map(to_abi).collect();
    let ids = params.identities();
    let head = kvm_tdx_init_vm {
        attributes: params.attributes().0,
        xfam: params.xfam().0,
        mrconfigid: ids.mrconfigid.0,
        mrowner: ids.mrowner.0,
        mrownerconfig: ids.mrownerconfig.0,
        reserved: [0; 12],
        cpuid: kvm_cpuid2 {
            nent: count(entries.len()),
            padding: 0,
        },
    };
    with_entries(head.as_bytes(), &entries)
}

/// A CPUID list: a table for `KVM_SET_CPUID2`.
#[must_use]
pub fn cpuid_buffer(table: &CpuidTable) -> Vec<u64> {
    let entries: Vec<_> = table.iter().map(to_abi).collect();
    let head = kvm_cpuid2 {
        nent: count(entries.len()),
        padding: 0,
    };
    with_entries(head.as_bytes(), &entries)
}

/// An empty CPUID list for `KVM_TDX_GET_CPUID` with room for `capacity` entries.
#[must_use]
pub fn empty_cpuid_buffer(capacity: usize) -> Vec<u64> {
    let head = kvm_cpuid2 {
        nent: count(capacity),
        padding: 0,
    };
    with_entries(
        head.as_bytes(),
        &vec![kvm_cpuid_entry2::default(); capacity],
    )
}

/// The table in a CPUID list.
#[must_use]
pub fn parse_cpuid(buffer: &[u64]) -> Option<CpuidTable> {
    let (head, rest) = kvm_cpuid2::read_from_prefix(buffer.as_bytes()).ok()?;
    Some(read_entries(head.nent, rest))
}

/// The argument of `KVM_TDX_INIT_MEM_REGION`: all of `source` at `at`.
#[must_use]
pub fn mem_region(source: PageSource<'_>, at: GpaRange) -> kvm_tdx_init_mem_region {
    kvm_tdx_init_mem_region {
        source_addr: source.bytes().as_ptr().addr() as u64,
        gpa: at.start().0,
        nr_pages: source.pages(),
    }
}

/// Its command; `data` is the address of the region.
#[must_use]
pub const fn mem_region_command(measure: Measure, data: u64) -> kvm_tdx_cmd {
    let flags = match measure {
        Measure::Yes => KVM_TDX_MEASURE_MEMORY_REGION,
        Measure::No => 0,
    };
    command(KVM_TDX_INIT_MEM_REGION, flags, data)
}

/// How far a try got, from the region as it went in and as the kernel wrote it back.
///
/// # Errors
///
/// If the call failed with anything else than the two errnos that ask for another try.
pub fn progress(
    before: &kvm_tdx_init_mem_region,
    after: &kvm_tdx_init_mem_region,
    result: Result<(), i32>,
) -> Result<Progress, CallError> {
    match result {
        Ok(()) if after.nr_pages == 0 => return Ok(Progress::Done),
        Ok(()) | Err(libc::EINTR | libc::EAGAIN) => {}
        Err(errno) => return Err(CallError::new(Command::InitMemRegion, errno, 0)),
    }
    let follows = before
        .nr_pages
        .checked_sub(after.nr_pages)
        .and_then(|pages| {
            let bytes = pages.checked_mul(PAGE_SIZE)?;
            let moved = before.gpa.checked_add(bytes)? == after.gpa
                && before.source_addr.checked_add(bytes)? == after.source_addr;
            moved.then_some(Progress::Stopped { pages })
        });
    Ok(follows.unwrap_or(Progress::Inconsistent))
}

pub(crate) fn to_abi(entry: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.function,
        index: entry.index,
        flags: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        padding: [0; 3],
    }
}

pub(crate) fn from_abi(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        function: entry.function,
        index: entry.index,
        flags: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

fn count(entries: usize) -> u32 {
    u32::try_from(entries).unwrap_or(u32::MAX)
}

fn with_entries(head: &[u8], entries: &[kvm_cpuid_entry2]) -> Vec<u64> {
    let bytes = [head, entries.as_bytes()].concat();
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_ne_bytes(*word))
        .collect()
}

fn read_entries(nent: u32, bytes: &[u8]) -> CpuidTable {
    let nent = usize::try_from(nent).unwrap_or(usize::MAX);
    CpuidTable(
        bytes
            .chunks_exact(ENTRY)
            .take(nent)
            .filter_map(|chunk| kvm_cpuid_entry2::read_from_bytes(chunk).ok())
            .map(|entry| from_abi(&entry))
            .collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> CpuidTable {
        CpuidTable(vec![
            CpuidEntry {
                function: 1,
                eax: 2,
                ebx: 3,
                ecx: 4,
                edx: 5,
                ..CpuidEntry::default()
            },
            CpuidEntry {
                function: 7,
                index: 1,
                flags: 1,
                eax: 6,
                ..CpuidEntry::default()
            },
        ])
    }

    #[test]
    fn cpuid_list_survives_the_round_trip() {
        let buffer = cpuid_buffer(&table());
        assert_eq!(buffer.len() * 8, 8 + 2 * 40);
        assert_eq!(parse_cpuid(&buffer).unwrap(), table());
    }

    #[test]
    fn count_beyond_the_buffer_reads_what_is_there() {
        let mut buffer = cpuid_buffer(&table());
        buffer[0] = u64::from(u32::MAX);
        assert_eq!(parse_cpuid(&buffer).unwrap().iter().count(), 2);
    }

    #[test]
    fn write_back_that_does_not_follow_is_noticed() {
        let before = kvm_tdx_init_mem_region {
            source_addr: 0x4000,
            gpa: 0x1000,
            nr_pages: 4,
        };
        let stopped = |source_addr, gpa, nr_pages| {
            let after = kvm_tdx_init_mem_region {
                source_addr,
                gpa,
                nr_pages,
            };
            progress(&before, &after, Err(libc::EINTR)).unwrap()
        };
        assert_eq!(stopped(0x4000, 0x1000, 4), Progress::Stopped { pages: 0 });
        assert_eq!(stopped(0x7000, 0x4000, 1), Progress::Stopped { pages: 3 });
        assert_eq!(stopped(0x7000, 0x3000, 1), Progress::Inconsistent);
        assert_eq!(stopped(0x6000, 0x4000, 1), Progress::Inconsistent);
        assert_eq!(stopped(0x4000, 0x1000, 5), Progress::Inconsistent);
    }

    #[test]
    fn short_capabilities_are_refused() {
        assert!(parse_capabilities(&[0; 256]).is_none());
        assert!(parse_capabilities(&capabilities_buffer(0)).is_some());
    }
}
