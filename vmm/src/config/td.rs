//! What belongs to a TD, checked as far as that can be done without the host.

use std::io;
use std::path::Path;

use serde::Serialize;
use tdvmm_arch::Gpa;
use tdvmm_arch::cpuid::CpuidTable;
use tdvmm_tdx::error::one_line;
use tdvmm_tdx::params::{
    AskedBy, Gpaw, Identities, Identity, TdAttributes, TdFeature, TdRequest, TscFrequency, Xfam,
    XfamChoice,
};

use super::features;
use super::{ConfigError, CpusConfig, PlatformConfig, VmConfig};
use crate::payload::PayloadError;
use crate::payload::file::{self, Limit};

/// Of a file with an identity: 48 bytes, or twice as many as text.
const IDENTITY_FILE: Limit = Limit {
    bytes: 4096,
    beyond: "is larger than 4 KiB, so it is no identity",
};

/// What is wanted of a TD.
#[derive(Clone, Debug)]
pub struct TdOptions {
    /// Attributes.
    pub attributes: TdAttributes,
    /// Extended features.
    pub xfam: XfamChoice,
    /// Width of guest-physical addresses.
    pub gpaw: Option<Gpaw>,
    /// What the owner binds the TD to.
    pub identities: Identities,
    /// TSC frequency.
    pub tsc: Option<TscFrequency>,
    /// What goes beyond the plain TD, by the option that asks for it; the host has to report it.
    pub features: Vec<(TdFeature, String)>,
    /// The options that ask for the rest.
    pub asked_by: AskedBy,
}

impl TdOptions {
    /// Reads the options of a TD; `None` for an ordinary VM, which takes none of them.
    pub(super) fn new(config: &VmConfig) -> Result<Option<Self>, ConfigError> {
        let (platform, cpus) = (&config.platform, &config.cpus);
        if !platform.tdx {
            refuse_without_td(platform, cpus)?;
            features::refuse_without_td(config)?;
            return Ok(None);
        }
        let identity = |key, text: Option<&String>| match text {
            None => Ok(Identity::default()),
            Some(text) => Identity::from_option(text, read_identity)
                .map_err(|error| wrong(key, text, &one_line(&error))),
        };
        let (attributes, asked_by) = attributes(platform)?;
        Ok(Some(Self {
            attributes,
            xfam: xfam(platform)?,
            gpaw: platform.gpaw.map(gpaw).transpose()?,
            identities: Identities {
                mrconfigid: identity("mrconfigid", platform.mrconfigid.as_ref())?,
                mrowner: identity("mrowner", platform.mrowner.as_ref())?,
                mrownerconfig: identity("mrownerconfig", platform.mrownerconfig.as_ref())?,
            },
            tsc: cpus.tsc_khz.map(tsc).transpose()?,
            features: features::beyond_attributes(config)?,
            asked_by: AskedBy {
                attributes: asked_by,
                xfam: option_text("xfam", platform.xfam.as_ref()),
                gpaw: option_text("gpaw", platform.gpaw.as_ref()),
            },
        }))
    }

    /// What is asked of a host for a TD with the vCPUs of `cpuid` and RAM up to `ram_top`.
    #[must_use]
    pub fn request(&self, cpuid: CpuidTable, ram_top: Gpa) -> TdRequest {
        TdRequest {
            attributes: self.attributes,
            xfam: self.xfam,
            gpaw: self.gpaw,
            identities: self.identities,
            features: self.features.clone(),
            asked_by: self.asked_by.clone(),
            ..TdRequest::new(cpuid, ram_top)
        }
    }
}

/// Only whether there are any: the plan prints what is decided, and these are wishes.
impl Serialize for TdOptions {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.attributes)
    }
}

fn refuse_without_td(platform: &PlatformConfig, cpus: &CpusConfig) -> Result<(), ConfigError> {
    let given = [
        ("attributes", platform.attributes.is_some()),
        ("sept_ve_disable", platform.sept_ve_disable.is_some()),
        ("xfam", platform.xfam.is_some()),
        ("gpaw", platform.gpaw.is_some()),
        ("mrconfigid", platform.mrconfigid.is_some()),
        ("mrowner", platform.mrowner.is_some()),
        ("mrownerconfig", platform.mrownerconfig.is_some()),
    ];
    if let Some((key, _)) = given.iter().find(|(_, given)| *given) {
        return Err(ConfigError::option(
            "--platform",
            *key,
            "is for TDs only; give tdx=on too, or leave it out",
        ));
    }
    match cpus.tsc_khz {
        Some(khz) => Err(ConfigError::option(
            "--cpus",
            format!("tsc_khz={khz}"),
            "is for TDs only; an ordinary VM has the host's TSC frequency",
        )),
        None => Ok(()),
    }
}

/// The attributes, and which option asks for which.
fn attributes(
    platform: &PlatformConfig,
) -> Result<(TdAttributes, Vec<(TdAttributes, String)>), ConfigError> {
    let mut asked_by = Vec::new();
    for name in platform
        .attributes
        .iter()
        .flat_map(|names| names.split('+'))
    {
        let Some(one) = TdAttributes::by_name(name) else {
            let problem = "is no TD attribute; names are such as debug, pks, perfmon, migratable";
            return Err(wrong("attributes", name, problem));
        };
        asked_by.push((one, format!("--platform attributes={name}")));
    }
    let unless_said = match platform.sept_ve_disable {
        Some(false) => TdAttributes::DEFAULT.without(TdAttributes::SEPT_VE_DISABLE),
        _ => TdAttributes::DEFAULT,
    };
    asked_by.extend(features::keys(&asked_by, platform)?);
    let all = asked_by.iter().map(|(one, _)| *one);
    Ok((all.fold(unless_said, TdAttributes::with), asked_by))
}

fn xfam(platform: &PlatformConfig) -> Result<XfamChoice, ConfigError> {
    let Some(text) = &platform.xfam else {
        return Ok(XfamChoice::FromCpuid);
    };
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map(|bits| XfamChoice::Exactly(Xfam(bits)))
        .map_err(|_| wrong("xfam", text, "is no number in hex, such as 0xe7"))
}

fn gpaw(bits: u8) -> Result<Gpaw, ConfigError> {
    Gpaw::from_bits(bits.into()).ok_or_else(|| wrong("gpaw", &bits.to_string(), "is not 48 or 52"))
}

fn tsc(khz: u32) -> Result<TscFrequency, ConfigError> {
    TscFrequency::from_khz(khz)
        .map_err(|error| ConfigError::option("--cpus", format!("tsc_khz={khz}"), error.to_string()))
}

fn option_text(key: &str, value: Option<&impl std::fmt::Display>) -> Option<String> {
    value.map(|value| format!("--platform {key}={value}"))
}

fn wrong(key: &str, value: &str, problem: &str) -> ConfigError {
    ConfigError::option("--platform", format!("{key}={value}"), problem)
}

/// What is wrong, without the option and the path: whoever asks says them.
fn read_identity(path: &str) -> io::Result<Vec<u8>> {
    file::read("--platform", Path::new(path), IDENTITY_FILE).map_err(|error| match error {
        PayloadError::Read { source, .. } => source,
        PayloadError::Unusable { problem, .. } => io::Error::other(problem),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of an MROWNER in `path`.
    fn refusal(path: &str) -> String {
        let mut config = VmConfig::default();
        config.platform.tdx = true;
        config.platform.mrowner = Some(format!("@{path}"));
        TdOptions::new(&config).unwrap_err().to_string()
    }

    #[test]
    fn identity_file_without_an_end_is_refused() {
        assert_eq!(
            refusal("/dev/zero"),
            "--platform mrowner=@/dev/zero: cannot read identity file /dev/zero: is no regular file"
        );
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("long");
        std::fs::write(&file, [b'0'; 4097]).unwrap();
        let said = refusal(file.to_str().unwrap());
        assert!(
            said.ends_with(": is larger than 4 KiB, so it is no identity"),
            "{said}"
        );
    }

    #[test]
    fn identity_file_that_is_missing_is_named_with_the_reason() {
        assert_eq!(
            refusal("/no/such"),
            "--platform mrowner=@/no/such: cannot read identity file /no/such: \
             No such file or directory (os error 2)"
        );
    }
}
