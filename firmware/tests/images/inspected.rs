//! What a report says of synthetic images.

use serde_json::Value;
use tdvmm_firmware::inspect;

use crate::second_mrtd::{TWO_PASS, UPSTREAM, expected};
use crate::synthetic::{self, Lead};
use crate::variables::Store;

fn ovmf() -> Vec<u8> {
    let mut file = synthetic::image(4 << 20, Lead::Table, &synthetic::ovmf());
    file[..0x8_4000].copy_from_slice(&Store::new(0x8_4000).bytes);
    file
}

#[test]
fn json_has_measurements_and_sections() {
    let file = ovmf();
    let json = serde_json::to_value(inspect::report(&file).unwrap()).unwrap();
    let rows = synthetic::ovmf();
    assert_eq!(json["mrtd"], expected(&file, &rows, &[], UPSTREAM));
    assert_eq!(json["mrtd_two_pass"], expected(&file, &rows, &[], TWO_PASS));
    assert_eq!(json["family"], "OVMF");
    let sections = json["sections"].as_array().unwrap();
    assert_eq!(sections.len(), 6);
    let first = serde_json::json!({
        "index": 0, "type": "BFV", "file_offset": "0x84000", "file_size": 0x37_c000,
        "gpa": "0xffc84000", "memory_size": 0x37_c000, "attributes": 1,
        "added": true, "extended": true,
    });
    assert_eq!(sections[0], first);
    assert_eq!(json["variables"]["secure_boot"], "setup-mode");
    assert_eq!(json["file_gaps"], Value::Array(vec![]));
    assert_eq!(
        json["guid_table"][1]["guid"],
        "e47a6535-984a-4798-865e-4685a7bf8ec2"
    );
}

#[test]
fn memory_map_is_drawn_to_scale() {
    let text = inspect::report(&ovmf()).unwrap().to_string();
    let map: Vec<_> = text
        .lines()
        .skip_while(|line| !line.starts_with("memory"))
        .take_while(|line| !line.is_empty())
        .collect();
    let expected = [
        "memory (# measured, = loaded, ~ left to the guest)",
        "  0x800000 to 0x820000, a column is 4 KiB",
        "  |======                          | 5 TempMem, 24 KiB",
        "  |         ==                     | 4 TD_HOB, 8 KiB",
        "  |           ==                   | 3 TempMem, 8 KiB",
        "  |                ================| 2 TempMem, 64 KiB",
        "  ... 4181888 KiB in between",
        "  0xffc00000 to 0x100000000, a column is 64 KiB",
        "  |=========                                                       | 1 CFV, 528 KiB",
        "  |        ########################################################| 0 BFV, 3568 KiB",
    ];
    assert_eq!(map, expected);
}

#[test]
fn bytes_that_are_not_loaded_are_told() {
    let file = synthetic::image(16 << 20, Lead::Both, &synthetic::shim_boot_kernel());
    let report = inspect::report(&file).unwrap();
    let gaps: Vec<_> = report
        .file_gaps
        .iter()
        .map(|g| (g.start.0, g.end.0))
        .collect();
    assert_eq!(gaps, [(0x4_0000, 0xca_e000)]);
    let variables = report.variables.unwrap();
    assert!(variables.unreadable.unwrap().contains("no firmware volume"));
    assert!(report.notes[0].contains("Payload"));
}

#[test]
fn measured_payload_from_the_vmm_leaves_mrtd_unknown() {
    let mut rows = synthetic::shim_boot_kernel();
    rows[6].attributes = 1;
    let file = synthetic::image(16 << 20, Lead::Both, &rows);
    let report = inspect::report(&file).unwrap();
    assert_eq!((report.mrtd, report.mrtd_two_pass), (None, None));
    assert!(report.notes[0].contains("section 6 (Payload) is measured"));
    assert!(report.to_string().contains("MRTD           unknown"));
}

#[test]
fn code_that_is_not_measured_and_variables_that_are_get_a_note() {
    let notes = |change: fn(&mut Vec<synthetic::Row>)| {
        let mut rows = synthetic::ovmf();
        change(&mut rows);
        let file = synthetic::image(4 << 20, Lead::Table, &rows);
        inspect::report(&file).unwrap().notes
    };
    assert!(notes(|_| {}).is_empty());
    let code = "section 0 (BFV) is not measured, so MRTD does not tell what code starts";
    assert_eq!(notes(|rows| rows[0].attributes = 0), [code]);
    let variables = "section 1 (CFV) is measured, so other variables give another MRTD";
    assert_eq!(notes(|rows| rows[1].attributes = 1), [variables]);
}

#[test]
fn file_that_cannot_be_launched_alone_is_refused_on_one_line() {
    let whole = ovmf();
    let refused = |file: &[u8]| inspect::report(file).unwrap_err().to_string();
    let code = refused(&whole[0x8_4000..]);
    assert!(code.contains("CODE only") && !code.contains('\n'), "{code}");
    let mut rows = synthetic::ovmf();
    rows[3].kind = 9;
    let unknown = refused(&synthetic::image(4 << 20, Lead::Table, &rows));
    assert_eq!(unknown, "section 3 (type 9): type 9 is not known");
}
