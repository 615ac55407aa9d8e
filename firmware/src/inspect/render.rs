//! The report for people.

use alloc::string::ToString;
use core::fmt;

use super::draw::{self, Size};
use super::{Hex, Report, SectionReport, VariablesReport};
use crate::image::FoundBy;
use crate::measure::Digest;
use crate::varstore::{Key, KeyKind};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        head(self, f)?;
        sections(&self.sections, f)?;
        writeln!(f, "\nbytes of the file that are not loaded")?;
        for gap in &self.file_gaps {
            let size = Size(gap.end.0.saturating_sub(gap.start.0));
            writeln!(f, "  {} to {}, {size}", gap.start, gap.end)?;
        }
        if self.file_gaps.is_empty() {
            writeln!(f, "  none")?;
        }
        writeln!(f, "\nmemory (# measured, = loaded, ~ left to the guest)")?;
        draw::memory(f, &self.sections)?;
        guid_table(self, f)?;
        match &self.variables {
            Some(found) => variables(found, f),
            None => writeln!(f, "\nvariables\n  none"),
        }
    }
}

fn head(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let found_by = match report.found_by {
        FoundBy::GuidTable => "the GUID table",
        FoundBy::Pointer => "the legacy pointer",
    };
    let digest = |digest: &Option<Digest>| match digest {
        Some(digest) => digest.to_string(),
        None => "unknown".to_string(),
    };
    writeln!(f, "firmware       {}", report.family)?;
    writeln!(f, "release        {}", report.release.unwrap_or("unknown"))?;
    writeln!(f, "file           {}", Size(report.file_size))?;
    writeln!(f, "descriptor     {} by {found_by}", report.descriptor)?;
    writeln!(f, "MRTD           {}", digest(&report.mrtd))?;
    writeln!(f, "MRTD two-pass  {}", digest(&report.mrtd_two_pass))?;
    for note in &report.notes {
        writeln!(f, "note           {note}")?;
    }
    Ok(())
}

fn sections(sections: &[SectionReport], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "\nsections, in the order of loading")?;
    writeln!(
        f,
        "  {:>2}  {:<12}  {:>10}  {:>10}  {:>14}  {:>10}  attr  added  extended",
        "#", "type", "file at", "bytes", "memory at", "bytes"
    )?;
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    for section in sections {
        writeln!(
            f,
            "  {:>2}  {:<12}  {:>10}  {:>10}  {:>14}  {:>10}  {:>4}  {:<5}  {}",
            section.index,
            section.kind,
            section.file_offset.to_string(),
            Hex(section.file_size).to_string(),
            section.gpa.to_string(),
            Hex(section.memory_size).to_string(),
            section.attributes,
            yes(section.added),
            yes(section.extended),
        )?;
    }
    Ok(())
}

fn guid_table(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "\nGUID table")?;
    for entry in &report.guid_table {
        let meaning = entry.meaning.unwrap_or("unknown");
        writeln!(
            f,
            "  {}  {:>10}  {:>3} bytes  {meaning}",
            entry.guid,
            entry.file_offset.to_string(),
            entry.size
        )?;
    }
    if report.guid_table.is_empty() {
        writeln!(f, "  none")?;
    }
    Ok(())
}

fn variables(found: &VariablesReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "\nvariables")?;
    if let Some(reason) = &found.unreadable {
        return writeln!(f, "  not readable: {reason}");
    }
    if let Some(secure_boot) = found.secure_boot {
        writeln!(f, "  secure boot: {secure_boot}")?;
    }
    let keys = &found.keys;
    for (name, list) in [
        ("PK", &keys.pk),
        ("KEK", &keys.kek),
        ("db", &keys.db),
        ("dbx", &keys.dbx),
    ] {
        key_list(name, list, f)?;
    }
    for variable in &found.list {
        writeln!(
            f,
            "  {:>6} bytes  {}  {}",
            variable.size, variable.vendor, variable.name
        )?;
    }
    Ok(())
}

/// Certificates by name; digests of programs are only counted.
fn key_list(name: &str, keys: &[Key], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let programs = keys
        .iter()
        .filter(|key| key.kind == KeyKind::Sha256)
        .count();
    if keys.is_empty() {
        return writeln!(f, "  {name}: empty");
    }
    writeln!(f, "  {name}:")?;
    for key in keys.iter().filter(|key| key.kind != KeyKind::Sha256) {
        let subject = key.subject.as_deref().unwrap_or("without a name");
        writeln!(f, "    {subject}, SHA-256 {}", key.sha256)?;
    }
    if programs != 0 {
        writeln!(f, "    SHA-256 of {programs} programs")?;
    }
    Ok(())
}
