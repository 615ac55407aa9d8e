//! ACPI tables compared with the files in `golden/`.
//!
//! A guest measures these bytes, so a change of them is a change of the machine. After one that is meant,
//! `TDVMM_BLESS=1 cargo test -p tdvmm-arch --test acpi_golden` writes the files anew; `dsdt.dsl` then follows by
//! `iasl -d`, and the test `acpi_iasl` checks it.

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tdvmm_arch::Gpa;
    use tdvmm_arch::acpi::{AcpiInput, build};

    fn check(name: &str, bytes: &[u8]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(name);
        if std::env::var_os("TDVMM_BLESS").is_some() {
            std::fs::write(&path, bytes).unwrap();
        }
        let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            golden == bytes,
            "{name} differs; the bytes now are {bytes:02x?}"
        );
    }

    fn check_table(signature: [u8; 4], vcpus: u32, name: &str) {
        let tables = build(&AcpiInput::new(vcpus), Gpa(0xe_0000));
        let span = tables
            .tables
            .iter()
            .find(|table| table.signature == signature)
            .unwrap();
        check(name, &tables.blob[span.offset..span.offset + span.len]);
    }

    #[test]
    fn rsdp_is_the_golden_one() {
        check("rsdp.bin", &build(&AcpiInput::new(2), Gpa(0xe_0000)).rsdp);
    }

    #[test]
    fn dsdt_is_the_golden_one_whatever_the_number_of_vcpus() {
        check_table(*b"DSDT", 2, "dsdt.bin");
        check_table(*b"DSDT", 4096, "dsdt.bin");
    }

    #[test]
    fn xsdt_fadt_and_mcfg_are_the_golden_ones() {
        check_table(*b"XSDT", 2, "xsdt.bin");
        check_table(*b"FACP", 2, "facp.bin");
        check_table(*b"MCFG", 2, "mcfg.bin");
    }

    #[test]
    fn madts_of_two_and_of_300_vcpus_are_the_golden_ones() {
        check_table(*b"APIC", 2, "apic-2.bin");
        check_table(*b"APIC", 300, "apic-300.bin");
    }
}
