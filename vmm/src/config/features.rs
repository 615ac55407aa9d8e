//! Features of TDs that hosts of today lack: which options ask for them.
//!
//! Whether the host has one is not known here: `tdx` decides that from what the host reports, so that a newer
//! kernel turns it on. Here each option becomes an attribute, or a wish that is carried to that decision.

use tdvmm_tdx::params::{TdAttributes, TdFeature};

use super::{ConfigError, PlatformConfig, VmConfig};

/// `named`, with the attributes that have a key of their own and are asked for by it.
///
/// Refused is a key that says off of what `named` (`attributes=`) has: which of the two holds would be a guess.
pub(super) fn with_keys(
    named: TdAttributes,
    platform: &PlatformConfig,
) -> Result<TdAttributes, ConfigError> {
    let mut all = named;
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
            Some(true) => all = all.with(one),
            Some(false) if named.contains(one) => {
                return Err(ConfigError::option(
                    "--platform",
                    format!("{key}=off"),
                    "attributes= names it too; leave one out",
                ));
            }
            _ => {}
        }
    }
    Ok(all)
}

/// What is asked for and is no attribute.
pub(super) fn beyond_attributes(config: &VmConfig) -> Result<Vec<TdFeature>, ConfigError> {
    let platform = &config.platform;
    let l2_vms = platform.num_l2_vms.unwrap_or(0) > 0;
    if let Some(bios) = platform.l2bios.as_ref().filter(|_| !l2_vms) {
        return Err(ConfigError::option(
            "--platform",
            format!("l2bios={}", bios.display()),
            "is for virtual machines inside the TD; give num_l2_vms too",
        ));
    }
    let wanted = [
        (l2_vms, TdFeature::L2Vms),
        (platform.l2bios.is_some(), TdFeature::L2Bios),
        (platform.migtd_hash.is_some(), TdFeature::ServiceTd),
        (platform.vtpm_path.is_some(), TdFeature::Vtpm),
        (adds_vcpus(config), TdFeature::VcpuHotplug),
        (config.restore.is_some(), TdFeature::Snapshot),
    ];
    let wanted = wanted.into_iter().filter(|(wanted, _)| *wanted);
    Ok(wanted.map(|(_, feature)| feature).collect())
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
        for (config, told) in [
            (td("tdx=on,num_l2_vms=1"), "num-l2-vms"),
            (
                td("tdx=on,num_l2_vms=1,l2bios=b"),
                "a BIOS for virtual machines",
            ),
            (td("tdx=on,migtd_hash=00"), "binding a service TD"),
            (td("tdx=on,vtpm_path=s"), "a virtual TPM"),
            (more_vcpus, "KVM_TDX_FINALIZE_VM"),
            (restored, "MIGRATABLE (bit 29)"),
        ] {
            let text = ask(&config, &fake::capabilities()).unwrap_err();
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
