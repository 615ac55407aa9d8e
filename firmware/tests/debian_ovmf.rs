//! What is known of Debian's `OVMF.inteltdx.ms.fd` (package ovmf-inteltdx 2026.08+ds-2).
//!
//! The image is the one that `$TDVMM_OVMF_TDX` names; `cargo xtask test` sets it to the testbed's. Without it the
//! cases are reported as ignored with the reason; `TDVMM_REQUIRE=firmware` makes that a failure. With another version
//! they are ignored in any case: the archive drops old ones, and lane L3 goes by what the image itself gives.

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

use libtest_mimic::{Arguments, Failed, Trial};
use sha2::{Digest, Sha256};
use tdvmm_firmware::image::{Contents, Family, FoundBy, Image};
use tdvmm_firmware::inspect;
use tdvmm_firmware::measure::{Order, mrtd};
use tdvmm_firmware::varstore::{Key, SecureBoot, replace_variables};

const SHA256: &str = "a265075b4147a096109e501e76196df1ec8a18659c26f7401492c597ec88f312";
const MRTD: &str = "a7a1f751abc454f9cbab198ca8d2edb2821935df525c74182b5e776cb0929e8c\
                    59aefecce725b0d08a5e9d3d3183bd08";
const MRTD_TWO_PASS: &str = "b90b236113eb4c0d4df4ef590568c14e6028a3a31d7e8ac63dee9845df5008d3\
                             ebf82d4f5974e933798f65d7a279b9a9";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let image = firmware();
    let required = env::var("TDVMM_REQUIRE")
        .is_ok_and(|needs| needs.split(',').any(|need| need.trim() == "firmware"));
    let trials = CASES.iter().map(|(name, case)| match &image {
        Ok(bytes) => {
            let bytes = bytes.clone();
            Trial::test(*name, move || case(&bytes))
        }
        Err(unmet) => {
            let (reason, ignored) = match unmet {
                Unmet::Missing(reason) => (reason.clone(), !required),
                Unmet::OtherVersion(reason) => (reason.clone(), true),
            };
            // The reason stands in the name, the one thing that is shown of an ignored test.
            let shown = format!("{name} (needs {reason})");
            Trial::test(shown, move || Err(Failed::from(reason))).with_ignored_flag(ignored)
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Why there is nothing to hold the reference against.
enum Unmet {
    /// No image was named, or it cannot be read.
    Missing(String),
    /// The archive has another version than the one whose values are known here, which nobody here can help.
    OtherVersion(String),
}

fn firmware() -> Result<Vec<u8>, Unmet> {
    let path = env::var_os("TDVMM_OVMF_TDX").map(PathBuf::from);
    let path = path.ok_or_else(|| {
        Unmet::Missing(
            "Debian's OVMF.inteltdx.ms.fd: name it in TDVMM_OVMF_TDX, as cargo xtask test does"
                .to_owned(),
        )
    })?;
    let bytes = fs::read(&path)
        .map_err(|e| Unmet::Missing(format!("the image {}: {e}", path.display())))?;
    let sha256: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if sha256 == SHA256 {
        Ok(bytes)
    } else {
        Err(Unmet::OtherVersion(format!(
            "{} with SHA-256 {SHA256}, it has {sha256}",
            path.display()
        )))
    }
}

type Case = fn(&[u8]) -> Result<(), Failed>;

const CASES: &[(&str, Case)] = &[
    (
        "mrtd_of_debian_ovmf_is_the_reference_in_both_orders",
        golden,
    ),
    ("sections_of_debian_ovmf_are_recognised", sections),
    ("keys_of_debian_ovmf_are_listed_and_enforced", keys),
    (
        "other_variables_keep_mrtd_and_end_enforcement",
        other_variables,
    ),
    (
        "code_of_debian_ovmf_without_variables_is_refused",
        code_only,
    ),
];

fn golden(file: &[u8]) -> Result<(), Failed> {
    let image = Image::parse(file)?;
    let regions = image.regions(&Contents::default())?;
    assert_eq!(mrtd(Order::PerPage, &regions)?.to_string(), MRTD);
    assert_eq!(mrtd(Order::TwoPass, &regions)?.to_string(), MRTD_TWO_PASS);
    Ok(())
}

fn sections(file: &[u8]) -> Result<(), Failed> {
    let image = Image::parse(file)?;
    assert_eq!(image.family(), Family::Ovmf);
    assert_eq!(image.found_by(), FoundBy::GuidTable);
    assert_eq!(image.sections().len(), 6);
    assert_eq!(image.hob_address().0, 0x80_9000);
    assert_eq!(image.guid_table().len(), 6);
    assert!(!image.wants_payload());
    Ok(())
}

fn keys(file: &[u8]) -> Result<(), Failed> {
    let report = inspect::report(file)?;
    assert_eq!(
        report.mrtd.map(|mrtd| mrtd.to_string()).as_deref(),
        Some(MRTD)
    );
    let release = report.release.unwrap_or_default();
    assert!(release.contains("202608"), "{release}");
    let nameless = report.guid_table.iter().find(|e| e.meaning.is_none());
    assert_eq!(nameless, None);
    let variables = report.variables.ok_or("no variables")?;
    assert_eq!(variables.secure_boot, Some(SecureBoot::Enforced));
    let names = |keys: &[Key]| -> Vec<String> {
        keys.iter().filter_map(|key| key.subject.clone()).collect()
    };
    let debian = "Debian UEFI Secure Boot (PK/KEK key)";
    assert_eq!(names(&variables.keys.pk), [debian]);
    assert_eq!(variables.keys.kek.len(), 3);
    let db = names(&variables.keys.db);
    assert!(
        db.iter().any(|name| name == "Microsoft UEFI CA 2023"),
        "{db:?}"
    );
    assert_eq!(variables.keys.dbx.len(), 443);
    Ok(())
}

fn other_variables(file: &[u8]) -> Result<(), Failed> {
    // The volume and store headers of the file itself, and no variable.
    let mut blank = vec![0xff; 0x8_4000];
    blank[..0x64].copy_from_slice(&file[..0x64]);
    let mut changed = file.to_vec();
    replace_variables(&mut changed, &blank)?;
    let report = inspect::report(&changed)?;
    assert_eq!(
        report.mrtd.map(|mrtd| mrtd.to_string()).as_deref(),
        Some(MRTD)
    );
    let variables = report.variables.ok_or("no variables")?;
    assert_eq!(variables.secure_boot, Some(SecureBoot::SetupMode));
    assert!(variables.list.is_empty());
    assert_eq!(changed[0x8_4000..], file[0x8_4000..]);
    Ok(())
}

fn code_only(file: &[u8]) -> Result<(), Failed> {
    let refused = Image::parse(&file[0x8_4000..]).expect_err("CODE without VARS");
    let said = refused.to_string();
    assert!(said.contains("CODE only"), "{said}");
    let refused = Image::parse(&file[..0x8_4000]).expect_err("VARS without CODE");
    let said = refused.to_string();
    assert!(said.contains("variable store"), "{said}");
    Ok(())
}
