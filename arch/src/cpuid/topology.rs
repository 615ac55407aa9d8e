//! The vCPU's place: APIC id, numbers of threads and cores, and who shares which cache.
//!
//! Leaf 1, 4, 0xB and 0x1F: SDM volume 2, CPUID. Leaves 0x8000_0008, 0x8000_001D and 0x8000_001E: AMD APM
//! volume 3, appendix E. Leaf 0xB is there for every vendor: Linux prefers it to what it would have to infer.

use super::{CpuidEntry, CpuidTable, SIGNIFICANT_INDEX, Vendor};
use crate::{Topology, VcpuId};

const CACHE_LEAF: u32 = 4;
const TOPOLOGY_LEAF: u32 = 0xb;
const TOPOLOGY_V2_LEAF: u32 = 0x1f;
const AMD_SIZES_LEAF: u32 = 0x8000_0008;
const AMD_CACHE_LEAF: u32 = 0x8000_001d;
const AMD_TOPOLOGY_LEAF: u32 = 0x8000_001e;
const AMD_TOPOLOGY_V2_LEAF: u32 = 0x8000_0026;

/// Leaf 1, EDX: more than one logical processor in the package.
const HTT_EDX: u32 = 1 << 28;

/// Leaf 0x8000_0001, ECX: leaves 0x8000_001D and 0x8000_001E exist.
const TOPOEXT_ECX: u32 = 1 << 22;

/// Level types of leaves 0xB and 0x1F.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Says who `vcpu` is and who its neighbours are.
pub(super) fn place(table: &mut CpuidTable, vcpu: VcpuId, topology: &Topology) {
    let vendor = table.vendor();
    if let Some(leaf) = table.find_mut(1, 0) {
        let logical = id_space(topology.socket_shift()).min(0xff);
        leaf.ebx = (leaf.ebx & 0xffff) | logical << 16 | (vcpu.0 & 0xff) << 24;
        leaf.edx &= !HTT_EDX;
        if topology.threads_per_socket() > 1 {
            leaf.edx |= HTT_EDX;
        }
    }
    table.replace(TOPOLOGY_LEAF, levels(TOPOLOGY_LEAF, vcpu, topology));
    table.raise_highest(0, TOPOLOGY_LEAF);
    table.remove(TOPOLOGY_V2_LEAF);
    match vendor {
        Vendor::Intel => {
            table.replace(TOPOLOGY_V2_LEAF, levels(TOPOLOGY_V2_LEAF, vcpu, topology));
            table.raise_highest(0, TOPOLOGY_V2_LEAF);
            for leaf in table
                .leaf_mut(CACHE_LEAF)
                .filter(|leaf| leaf.eax & 0x1f != 0)
            {
                let cores = id_space(topology.socket_shift() - topology.core_shift());
                leaf.eax = (leaf.eax & !(0x3f << 26)) | (cores - 1).min(0x3f) << 26;
                share_cache(leaf, topology, |shift| id_space(shift) - 1);
            }
        }
        Vendor::Amd => place_amd(table, vcpu, topology),
        Vendor::Other => {}
    }
}

fn place_amd(table: &mut CpuidTable, vcpu: VcpuId, topology: &Topology) {
    // It would describe the host's dies; without it the leaves below are what counts.
    for leaf in table.leaf_mut(AMD_TOPOLOGY_V2_LEAF) {
        (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
    }
    if let Some(leaf) = table.find_mut(AMD_SIZES_LEAF, 0) {
        let threads = (topology.threads_per_socket() - 1).min(0xff);
        leaf.ecx = (leaf.ecx & !0xf0ff) | threads | topology.socket_shift().min(0xf) << 12;
    }
    for leaf in table
        .leaf_mut(AMD_CACHE_LEAF)
        .filter(|leaf| leaf.eax & 0x1f != 0)
    {
        share_cache(leaf, topology, |shift| id_space(shift) - 1);
    }
    let has_leaf = table
        .find(0x8000_0001, 0)
        .is_some_and(|leaf| leaf.ecx & TOPOEXT_ECX != 0);
    table.remove(AMD_TOPOLOGY_LEAF);
    if has_leaf {
        let (socket, core, _) = topology.locate(vcpu);
        table.raise_highest(0x8000_0000, AMD_TOPOLOGY_LEAF);
        table.0.push(CpuidEntry {
            function: AMD_TOPOLOGY_LEAF,
            eax: vcpu.0,
            ebx: (core & 0xff) | (topology.threads() - 1).min(0xff) << 8,
            // One node per socket, numbered as the socket.
            ecx: socket & 0xff,
            ..CpuidEntry::default()
        });
    }
}

/// The subleaves of leaf 0xB or 0x1F: threads of a core, cores of a socket, and the end of the list.
fn levels(function: u32, vcpu: VcpuId, topology: &Topology) -> [CpuidEntry; 3] {
    let level = |index, kind: u32, shift, logical| CpuidEntry {
        function,
        index,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: logical,
        ecx: index | kind << 8,
        edx: vcpu.0,
    };
    [
        level(0, LEVEL_THREAD, topology.core_shift(), topology.threads()),
        level(
            1,
            LEVEL_CORE,
            topology.socket_shift(),
            topology.threads_per_socket(),
        ),
        level(2, 0, 0, 0),
    ]
}

/// Caches of level 1 and 2 belong to a core, those above to a socket (bits 25..14: sharers less one).
fn share_cache(leaf: &mut CpuidEntry, topology: &Topology, sharers: impl Fn(u32) -> u32) {
    let level = leaf.eax >> 5 & 7;
    let shift = if level < 3 {
        topology.core_shift()
    } else {
        topology.socket_shift()
    };
    leaf.eax = (leaf.eax & !(0xfff << 14)) | sharers(shift).min(0xfff) << 14;
}

/// APIC ids that `shift` bits can number: the fields of leaves 1 and 4 count ids, not processors.
const fn id_space(shift: u32) -> u32 {
    1 << shift
}
