//! Features of TDs that hosts of today lack: which options ask for them.
//!
//! Whether the host has one is not known here: `tdx` decides that from what the host reports, so that a newer
//! kernel turns it on. Here each option becomes an attribute, or a wish that is carried to that decision.

use tdvmm_tdx::params::{TdAttributes, TdFeature};

use super::{ConfigError, PlatformConfig, VmConfig};

/// The attributes that are asked for by a key of their own, with that option.
///
/// Refused is a key that says off of what `named` (`attributes=`) has: which of the two holds would be a guess.
pub(super) fn keys(
    named: &[(TdAttributes, String)],
    platform: &PlatformConfig,
) -> Result<Vec<(TdAttributes, String)>, ConfigError> {
    let mut asked_for = Vec::new();
    for (key, wanted, one) in [
        ("debug", platform.debug, TdAttributes::DEBUG),
        ("perfmon", platform.perfmon, TdAttributes::PERFMON),
        ("pks", platform.pks, TdAttributes::PKS),
        ("migratable", platform.migratable, TdAttributes::MIGRATABLE),
        (
            "sept_ve_disable",
            platform.sept_ve_disable,
            TdAttributes::SEPT_VE_DISABLE,
        ),
    ] {
        match wanted {
            Some(true) => asked_for.push((one, format!("--platform {key}=on"))),
            Some(false) if named.iter().any(|(other, _)| other.contains(one)) => {
                return Err(ConfigError::option(
                    "--platform",
                    format!("{key}=off"),
                    "attributes= names it too; leave one out",
                ));
            }
            _ => {}
        }
    }
    Ok(asked_for)
}

/// What is asked for and is no attribute, with the option that asks for it.
pub(super) fn beyond_attributes(
    config: &VmConfig,
) -> Result<Vec<(TdFeature, String)>, ConfigError> {
    let platform = &config.platform;
    let l2_vms = platform.num_l2_vms.filter(|count| *count > 0);
    let l2_bios = platform.l2bios.as_ref().map(|path| path.display());
    if let Some(bios) = l2_bios.as_ref().filter(|_| l2_vms.is_none()) {
        return Err(ConfigError::option(
            "--platform",
            format!("l2bios={bios}"),
            "is for virtual machines inside the TD; give num_l2_vms too",
        ));
    }
    let max = config.cpus.max.filter(|_| adds_vcpus(config));
    let migtd_hash = platform.migtd_hash.as_ref();
    let vtpm_path = platform.vtpm_path.as_ref().map(|path| path.display());
    let snapshot = config.restore.as_ref().map(|from| &from.source_url);
    let wanted = [
        (
            TdFeature::L2Vms,
            l2_vms.map(|count| format!("--platform num_l2_vms={count}")),
        ),
        (
            TdFeature::L2Bios,
            l2_bios.map(|path| format!("--platform l2bios={path}")),
        ),
        (
            TdFeature::ServiceTd,
            migtd_hash.map(|hash| format!("--platform migtd_hash={hash}")),
        ),
        (
            TdFeature::Vtpm,
            vtpm_path.map(|path| format!("--platform vtpm_path={path}")),
        ),
        (
            TdFeature::VcpuHotplug,
            max.map(|max| format!("--cpus max={max}")),
        ),
        (
            TdFeature::Snapshot,
            snapshot.map(|url| format!("--restore source_url={url}")),
        ),
    ];
    let wanted = wanted.into_iter();
    Ok(wanted
        .filter_map(|(feature, option)| Some((feature, option?)))
        .collect())
}

fn adds_vcpus(config: &VmConfig) -> bool {
    config.cpus.max.is_some_and(|max| max > config.cpus.boot)
}

/// What an ordinary VM cannot have.
pub(super) fn refuse_without_td(config: &VmConfig) -> Result<(), ConfigError> {
    let platform = &config.platform;
    let given = [
        ("debug", platform.debug.is_some()),
        ("perfmon", platform.perfmon.is_some()),
        ("pks", platform.pks.is_some()),
        ("migratable", platform.migratable.is_some()),
        ("migtd_hash", platform.migtd_hash.is_some()),
        ("num_l2_vms", platform.num_l2_vms.is_some()),
        ("l2bios", platform.l2bios.is_some()),
        ("vtpm_path", platform.vtpm_path.is_some()),
    ];
    if let Some((key, _)) = given.iter().find(|(_, given)| *given) {
        return Err(ConfigError::option(
            "--platform",
            *key,
            "is for TDs only; give tdx=on too, or leave it out",
        ));
    }
    if adds_vcpus(config) {
        let (boot, max) = (config.cpus.boot, config.cpus.max.unwrap_or(0));
        return Err(ConfigError::option(
            "--cpus",
            format!("boot={boot},max={max}"),
            "this tdvmm adds no vCPUs to a running machine; start with all of them",
        ));
    }
    match &config.restore {
        Some(restore) => Err(ConfigError::option(
            "--restore",
            format!("source_url={}", restore.source_url),
            "this tdvmm has no snapshots; start the machine afresh",
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tdvmm_arch::Gpa;
    use tdvmm_arch::cpuid::CpuidTable;
    use tdvmm_tdx::caps::Capabilities;
    use tdvmm_tdx::fake;
    use tdvmm_tdx::params::TdParams;

    use super::super::{PayloadConfig, RestoreConfig, parse_cpus, parse_platform, validate};
    use super::*;

    fn td(platform: &str) -> VmConfig {
        VmConfig {
            payload: PayloadConfig {
                firmware: Some("fw".into()),
                ..Default::default()
            },
            platform: parse_platform(platform).unwrap(),
            ..Default::default()
        }
    }

    /// What a host with `caps` says to `config`.
    fn ask(config: &VmConfig, caps: &Capabilities) -> Result<TdParams, String> {
        let options = validate(config).unwrap().td.unwrap();
        let request = options.request(CpuidTable::default(), Gpa(1 << 30));
        request.resolve(caps).map_err(|refused| refused.to_string())
    }

    #[test]
    fn attribute_key_follows_what_the_host_reports() {
        for (key, bit, name) in [
            ("debug", TdAttributes::DEBUG, "DEBUG (bit 0)"),
            ("perfmon", TdAttributes::PERFMON, "PERFMON (bit 63)"),
            ("pks", TdAttributes::PKS, "PKS (bit 30)"),
            (
                "migratable",
                TdAttributes::MIGRATABLE,
                "MIGRATABLE (bit 29)",
            ),
        ] {
            let config = td(&format!("tdx=on,{key}=on"));
            let mut caps = fake::capabilities();
            let text = ask(&config, &caps).unwrap_err();
            assert!(text.contains(name), "{text}");
            assert!(text.contains(&format!(": --platform {key}=on: ")), "{text}");
            let named = td(&format!("tdx=on,attributes={key}"));
            let text_of_named = ask(&named, &caps).unwrap_err();
            let option = format!(": --platform attributes={key}: ");
            assert!(text_of_named.contains(&option), "{text_of_named}");
            assert!(
                text.contains("this kernel or this TDX module lacks it"),
                "{text}"
            );
            assert!(text.contains("it would come from"), "{text}");
            assert!(!text.contains('\n'), "{text}");
            caps.attributes = caps.attributes.with(bit);
            assert!(ask(&config, &caps).unwrap().attributes().contains(bit));
            let off = td(&format!("tdx=on,{key}=off"));
            assert!(ask(&off, &fake::capabilities()).is_ok());
        }
    }

    #[test]
    fn key_that_says_off_of_a_named_attribute_is_refused() {
        for key in ["debug", "perfmon", "pks", "migratable", "sept_ve_disable"] {
            let both = |state| validate(&td(&format!("tdx=on,attributes={key},{key}={state}")));
            let text = both("off").unwrap_err().to_string();
            let told = format!("--platform {key}=off: attributes= names it too; leave one out");
            assert_eq!(text, told);
            assert!(both("on").is_ok());
        }
    }

    #[test]
    fn feature_without_an_attribute_is_refused_with_its_name() {
        let mut more_vcpus = td("tdx=on");
        more_vcpus.cpus = parse_cpus("boot=1,max=2").unwrap();
        let mut restored = td("tdx=on");
        restored.restore = Some(RestoreConfig {
            source_url: "file:///s".into(),
        });
        for (config, option, told) in [
            (
                td("tdx=on,num_l2_vms=1"),
                "--platform num_l2_vms=1",
                "num-l2-vms",
            ),
            (
                td("tdx=on,num_l2_vms=1,l2bios=b"),
                "--platform l2bios=b",
                "a BIOS for virtual machines",
            ),
            (
                td("tdx=on,migtd_hash=00"),
                "--platform migtd_hash=00",
                "binding a service TD",
            ),
            (
                td("tdx=on,vtpm_path=s"),
                "--platform vtpm_path=s",
                "a virtual TPM",
            ),
            (more_vcpus, "--cpus max=2", "KVM_TDX_FINALIZE_VM"),
            (
                restored,
                "--restore source_url=file:///s",
                "MIGRATABLE (bit 29)",
            ),
            (
                td("tdx=on,xfam=0x800000003"),
                "--platform xfam=0x800000003",
                "extended feature unnamed (bit 35)",
            ),
        ] {
            let text = ask(&config, &fake::capabilities()).unwrap_err();
            assert!(text.contains(&format!(" {option}: ")), "{text}");
            assert!(text.contains(told), "{text}");
            assert!(text.contains("it would come from"), "{text}");
        }
    }

    #[test]
    fn ordinary_vm_is_refused_what_is_for_tds() {
        let message = |change: &dyn Fn(&mut VmConfig)| {
            let mut config = VmConfig {
                payload: PayloadConfig {
                    kernel: Some("k".into()),
                    ..Default::default()
                },
                ..Default::default()
            };
            change(&mut config);
            validate(&config).unwrap_err().to_string()
        };
        for key in ["debug=on", "pks=off", "num_l2_vms=0", "vtpm_path=s"] {
            let text = message(&|config| config.platform = parse_platform(key).unwrap());
            assert!(text.contains("is for TDs only"), "{text}");
        }
        let text = message(&|config| config.cpus = parse_cpus("boot=1,max=2").unwrap());
        assert!(text.starts_with("--cpus boot=1,max=2: "), "{text}");
        let text = message(&|config| config.cpus = parse_cpus("boot=2,max=1").unwrap());
        assert!(text.starts_with("--cpus boot=2,max=1: "), "{text}");
    }

    #[test]
    fn l2_bios_alone_is_refused() {
        let error = validate(&td("tdx=on,l2bios=b")).unwrap_err().to_string();
        assert!(error.contains("give num_l2_vms too"), "{error}");
    }
}
