use proptest::prelude::*;

use super::*;

const INTEL: (u32, u32, u32) = (0x756e_6547, 0x4965_6e69, 0x6c65_746e);
const AMD: (u32, u32, u32) = (0x6874_7541, 0x6974_6e65, 0x444d_4163);

fn entry(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry {
        function,
        index: 0,
        flags: 0,
        eax,
        ebx,
        ecx,
        edx,
    }
}

fn subleaf(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
    CpuidEntry {
        index,
        flags: SIGNIFICANT_INDEX,
        ..entry(function, registers)
    }
}

/// What KVM reports, as far as it matters here, for a host of `vendor` whose highest leaf is `highest`.
fn supported(vendor: (u32, u32, u32), highest: u32) -> CpuidTable {
    CpuidTable(vec![
        entry(0, [highest, vendor.0, vendor.2, vendor.1]),
        entry(
            1,
            [0x806f8, 0x0310_0800, 0x9ffa_3223 & !(1 << 21), 0x1f8b_fbff],
        ),
        subleaf(4, 0, [0xfc00_4121, 1, 2, 3]),
        subleaf(4, 3, [0xfc1f_c163, 4, 5, 6]),
        subleaf(4, 4, [0; 4]),
        entry(6, [4, 0, 0, 0]),
        subleaf(7, 0, [0, 0xf1bf_27af, 0x5b41_5f6e, 0xbfc0_0420]),
        subleaf(0xb, 0, [0; 4]),
        subleaf(0x12, 0, [1, 2, 3, 4]),
        entry(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(0x4000_0001, [0x0103_fefb, 0, 0, 0]),
        entry(0x8000_0000, [0x8000_0021, vendor.0, vendor.2, vendor.1]),
        entry(0x8000_0001, [0, 0, 0x0040_0107, 0x2c10_0800]),
        entry(0x8000_0008, [0x3030, 0, 0x7007, 0]),
        entry(0x8000_000a, [1, 2, 3, 4]),
        subleaf(0x8000_001d, 3, [0x1c163, 0, 0, 0]),
        entry(0x8000_001f, [0x1000a, 0x33, 0x1fd, 1]),
        subleaf(0x8000_0026, 0, [1, 2, 3, 4]),
    ])
}

fn build(vendor: (u32, u32, u32), vcpu: u32, topology: &Topology) -> CpuidTable {
    for_vcpu(
        &supported(vendor, 0x16),
        VcpuId(vcpu),
        topology,
        &CpuidOptions::default(),
    )
}

#[test]
fn leaf_1_names_the_vcpu_and_its_hypervisor() {
    let table = build(INTEL, 5, &Topology::new(2, 2, 2).unwrap());
    let leaf = table.find(1, 0).unwrap();
    assert_eq!(leaf.ebx, 0x0504_0800);
    assert_ne!(leaf.ecx & 1 << 31, 0, "hypervisor");
    assert_ne!(leaf.ecx & 1 << 24, 0, "TSC deadline");
    assert_ne!(leaf.ecx & 1 << 21, 0, "x2APIC");
    assert_eq!(leaf.ecx & 1 << 27, 0, "OSXSAVE is KVM's");
    assert_eq!(leaf.ecx & 1 << 5, 0, "VMX");
    assert_ne!(leaf.edx & 1 << 28, 0, "HTT");
}

#[test]
fn single_vcpu_has_no_siblings() {
    let table = build(INTEL, 0, &Topology::flat(1).unwrap());
    assert_eq!(table.find(1, 0).unwrap().ebx, 0x0001_0800);
    assert_eq!(table.find(1, 0).unwrap().edx & 1 << 28, 0);
    assert_eq!(table.find(4, 0).unwrap().eax, 0x0000_0121);
    assert_eq!(table.find(0xb, 0).unwrap().ebx, 1);
}

#[test]
fn topology_leaves_describe_two_sockets_of_four_cores_of_two_threads() {
    let table = build(INTEL, 13, &Topology::new(2, 4, 2).unwrap());
    for function in [0xb, 0x1f] {
        assert_eq!(
            table.find(function, 0),
            Some(&subleaf(function, 0, [1, 2, 0x100, 13]))
        );
        assert_eq!(
            table.find(function, 1),
            Some(&subleaf(function, 1, [3, 8, 0x201, 13]))
        );
        assert_eq!(
            table.find(function, 2),
            Some(&subleaf(function, 2, [0, 0, 2, 13]))
        );
    }
    assert_eq!(table.find(0, 0).unwrap().eax, 0x1f);
    // Level 1: two threads share; level 3: the socket does; four cores in it.
    assert_eq!(table.find(4, 0).unwrap().eax, 3 << 26 | 1 << 14 | 0x121);
    assert_eq!(table.find(4, 3).unwrap().eax, 3 << 26 | 7 << 14 | 0x163);
    assert_eq!(table.find(4, 4).unwrap().eax, 0);
}

#[test]
fn topology_of_4096_vcpus_keeps_every_field_in_its_width() {
    let table = build(INTEL, 4095, &Topology::flat(4096).unwrap());
    assert_eq!(table.find(1, 0).unwrap().ebx, 0xffff_0800);
    assert_eq!(
        table.find(0xb, 1),
        Some(&subleaf(0xb, 1, [12, 4096, 0x201, 4095]))
    );
    assert_eq!(
        table.find(4, 3).unwrap().eax,
        0x3f << 26 | 0xfff << 14 | 0x163
    );
}

#[test]
fn amd_gets_leaf_b_and_its_own_topology_leaves() {
    let topology = Topology::new(2, 4, 2).unwrap();
    let table = for_vcpu(
        &supported(AMD, 0xd),
        VcpuId(11),
        &topology,
        &CpuidOptions::default(),
    );
    assert_eq!(table.find(0, 0).unwrap().eax, 0xd);
    assert_eq!(
        table.find(0xb, 1),
        Some(&subleaf(0xb, 1, [3, 8, 0x201, 11]))
    );
    assert_eq!(table.find(0x1f, 0), None);
    assert_eq!(table.find(0x8000_0008, 0).unwrap().ecx, 0x3007);
    assert_eq!(table.find(0x8000_001d, 3).unwrap().eax, 7 << 14 | 0x163);
    assert_eq!(
        table.find(0x8000_001e, 0),
        Some(&entry(0x8000_001e, [11, 0x101, 1, 0]))
    );
    assert_eq!(
        table.find(0x8000_0026, 0),
        Some(&subleaf(0x8000_0026, 0, [0; 4]))
    );
    assert_eq!(table.find(0x8000_0001, 0).unwrap().ecx & 1 << 2, 0, "SVM");
    assert_eq!(table.find(0x8000_000a, 0), None);
}

#[test]
fn amd_processor_with_few_leaves_can_reach_leaf_b() {
    let table = for_vcpu(
        &supported(AMD, 7),
        VcpuId(0),
        &Topology::flat(2).unwrap(),
        &CpuidOptions::default(),
    );
    assert_eq!(table.find(0, 0).unwrap().eax, 0xb);
}

#[test]
fn amd_leaf_without_topoext_is_not_added() {
    let mut base = supported(AMD, 0xd);
    base.find_mut(0x8000_0001, 0).unwrap().ecx = 0;
    let table = for_vcpu(
        &base,
        VcpuId(1),
        &Topology::flat(2).unwrap(),
        &CpuidOptions::default(),
    );
    assert_eq!(table.find(0x8000_001e, 0), None);
}

#[test]
fn nested_virtualization_is_kept_when_asked_for() {
    let options = CpuidOptions {
        nested: true,
        ..CpuidOptions::default()
    };
    let table = for_vcpu(
        &supported(AMD, 0xd),
        VcpuId(0),
        &Topology::flat(1).unwrap(),
        &options,
    );
    assert_ne!(table.find(0x8000_0001, 0).unwrap().ecx & 1 << 2, 0);
    assert_ne!(table.find(1, 0).unwrap().ecx & 1 << 5, 0);
    assert!(table.find(0x8000_000a, 0).is_some());
}

#[test]
fn hypervisor_features_exclude_what_the_vmm_does_not_serve() {
    let table = build(INTEL, 0, &Topology::flat(255).unwrap());
    let features = table.find(0x4000_0001, 0).unwrap().eax;
    assert_eq!(features, 0x0100_3aeb);
    assert_eq!(table.find(0x4000_0000, 0).unwrap().eax, 0x4000_0001);
}

#[test]
fn extended_destinations_are_announced_past_255_vcpus_only() {
    for (vcpus, announced) in [(255, 0), (256, 1 << 15), (4096, 1 << 15)] {
        let table = build(INTEL, 0, &Topology::flat(vcpus).unwrap());
        assert_eq!(
            table.find(0x4000_0001, 0).unwrap().eax & 1 << 15,
            announced,
            "{vcpus}"
        );
    }
}

#[test]
fn memory_encryption_is_taken_away() {
    let table = for_vcpu(
        &supported(AMD, 0xd),
        VcpuId(0),
        &Topology::flat(1).unwrap(),
        &Default::default(),
    );
    assert_eq!(table.find(0x8000_001f, 0), None);
}

#[test]
fn sgx_is_taken_away() {
    let table = build(INTEL, 0, &Topology::flat(1).unwrap());
    assert_eq!(table.find(7, 0).unwrap().ebx & 1 << 2, 0);
    assert_eq!(table.find(7, 0).unwrap().ecx & 1 << 30, 0);
    assert_eq!(table.find(0x12, 0), None);
}

#[test]
fn stated_frequency_survives_the_arithmetic_of_linux() {
    for khz in [
        2_000_000u32,
        2_100_000,
        2_995_200,
        3_700_000,
        2_094_952,
        800_000,
        5_000_001,
    ] {
        let options = CpuidOptions {
            tsc_khz: Some(khz),
            ..CpuidOptions::default()
        };
        let one = Topology::flat(1).unwrap();
        let table = for_vcpu(&supported(INTEL, 0xd), VcpuId(0), &one, &options);
        let timing = table.find(0x4000_0010, 0).unwrap();
        assert_eq!((timing.eax, timing.ebx), (khz, 1_000_000));
        assert_eq!(table.find(0x4000_0000, 0).unwrap().eax, 0x4000_0010);
        if let Some(leaf) = table.find(0x15, 0) {
            // native_calibrate_tsc(): unsigned int arithmetic, in this order.
            assert_eq!((leaf.ecx / 1000).wrapping_mul(leaf.ebx) / leaf.eax, khz);
        }
    }
    let options = CpuidOptions {
        tsc_khz: Some(2_100_000),
        ..CpuidOptions::default()
    };
    let table = for_vcpu(
        &supported(INTEL, 0xd),
        VcpuId(0),
        &Topology::flat(1).unwrap(),
        &options,
    );
    assert_eq!(
        table.find(0x15, 0),
        Some(&entry(0x15, [10, 21, 1_000_000_000, 0]))
    );
}

#[test]
fn without_a_deadline_timer_the_bit_is_clear() {
    let options = CpuidOptions {
        tsc_deadline: false,
        ..CpuidOptions::default()
    };
    let table = for_vcpu(
        &supported(INTEL, 0xd),
        VcpuId(0),
        &Topology::flat(1).unwrap(),
        &options,
    );
    assert_eq!(table.find(1, 0).unwrap().ecx & 1 << 24, 0);
}

proptest! {
    #[test]
    fn no_query_has_two_answers_and_ids_agree(
        intel: bool, vcpus in 1u32..=4096, pick: u32, highest in 1u32..0x24
    ) {
        let vcpu = VcpuId(pick % vcpus);
        let base = supported(if intel { INTEL } else { AMD }, highest);
        let table = for_vcpu(&base, vcpu, &Topology::flat(vcpus).unwrap(), &CpuidOptions::default());
        for entry in &table {
            let same = table.iter().filter(|e| e.answers(entry.function, entry.index)).count();
            prop_assert_eq!(same, 1, "leaf {:#x}.{}", entry.function, entry.index);
        }
        prop_assert_eq!(table.find(1, 0).unwrap().ebx >> 24, vcpu.0 & 0xff);
        for index in 0..3 {
            prop_assert_eq!(table.find(0xb, index).unwrap().edx, vcpu.0);
        }
        if !intel {
            prop_assert_eq!(table.find(0x8000_001e, 0).unwrap().eax, vcpu.0);
        }
    }

    #[test]
    fn features_are_a_subset_but_for_the_documented_ones(leaf1: [u32; 2], leaf7: [u32; 3], extended: [u32; 2]) {
        let mut base = supported(INTEL, 0x16);
        let one = base.find_mut(1, 0).unwrap();
        (one.ecx, one.edx) = (leaf1[0], leaf1[1]);
        let seven = base.find_mut(7, 0).unwrap();
        (seven.ebx, seven.ecx, seven.edx) = (leaf7[0], leaf7[1], leaf7[2]);
        let ext = base.find_mut(0x8000_0001, 0).unwrap();
        (ext.ecx, ext.edx) = (extended[0], extended[1]);
        let table = build_from(&base);
        let added = |new: u32, old: u32| new & !old;
        let new = table.find(1, 0).unwrap();
        prop_assert_eq!(added(new.ecx, leaf1[0]) & !(1 << 31 | 1 << 24 | 1 << 21), 0);
        prop_assert_eq!(added(new.edx, leaf1[1]) & !(1 << 28), 0);
        let new = table.find(7, 0).unwrap();
        prop_assert_eq!(added(new.ebx, leaf7[0]) | added(new.ecx, leaf7[1]) | added(new.edx, leaf7[2]), 0);
        let new = table.find(0x8000_0001, 0).unwrap();
        prop_assert_eq!(added(new.ecx, extended[0]) | added(new.edx, extended[1]), 0);
    }
}

fn build_from(base: &CpuidTable) -> CpuidTable {
    for_vcpu(
        base,
        VcpuId(0),
        &Topology::flat(2).unwrap(),
        &CpuidOptions::default(),
    )
}
