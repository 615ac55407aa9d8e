//! The form in which values print in a plan: addresses and register contents are hex strings.

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};
    use tdvmm_arch::boot::InitialRegisters;
    use tdvmm_arch::cpuid::CpuidEntry;
    use tdvmm_arch::{Gpa, GpaRange, RamLayout, Topology, VcpuId, e820, map};

    #[test]
    fn addresses_print_as_hex_and_counts_as_numbers() {
        assert_eq!(to_value(Gpa(0xe_0000)).unwrap(), json!("0xe0000"));
        assert_eq!(
            to_value(GpaRange::constant(0x1000, 0x1000)).unwrap(),
            json!({"start": "0x1000", "end": "0x2000"})
        );
        assert_eq!(to_value(VcpuId(12)).unwrap(), json!(12));
        assert_eq!(
            to_value(Topology::new(1, 2, 2).unwrap()).unwrap(),
            json!({"sockets": 1, "cores": 2, "threads": 2})
        );
    }

    #[test]
    fn memory_prints_as_its_ranges() {
        let ram = RamLayout::new(3 << 30).unwrap();
        assert_eq!(
            to_value(ram).unwrap(),
            json!({
                "low": {"start": "0x0", "end": "0x80000000"},
                "high": {"start": "0x100000000", "end": "0x140000000"},
            })
        );
        let map = to_value(e820::boot_map(&ram, map::ACPI_AREA)).unwrap();
        assert_eq!(
            map[2],
            json!({"range": {"start": "0xe0000", "end": "0xff000"}, "kind": "acpi"})
        );
    }

    #[test]
    fn registers_print_as_hex() {
        let entry = CpuidEntry {
            function: 0x4000_0000,
            eax: 0x4000_0001,
            ..Default::default()
        };
        let printed = to_value(entry).unwrap();
        assert_eq!(
            (&printed["function"], &printed["eax"]),
            (&json!("0x40000000"), &json!("0x40000001"))
        );
        let printed = to_value(InitialRegisters::long_mode(Gpa(0x100_0200), Gpa(0x7000))).unwrap();
        assert_eq!(
            (&printed["rip"], &printed["rsi"]),
            (&json!("0x1000200"), &json!("0x7000"))
        );
        assert_eq!(printed["cs"]["selector"], json!("0x10"));
    }
}
