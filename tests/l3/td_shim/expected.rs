//! What a TD's registers have to hold in the end, computed from the files that it is made of.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use tdvmm::config::{ByteSize, PayloadConfig, VmConfig, validate};
use tdvmm::payload::open_payload;
use tdvmm::plan::Plan;
use tdvmm_firmware::image::Image;
use tdvmm_firmware::measure::{Digest, Region};
use tdvmm_firmware::td_shim::rtmrs;
use tdvmm_tests::fixture::witness::EndedTd;

use super::{Boot, COMMAND_LINE};

/// The measurements, computed from the same files without a TD.
pub struct Expected {
    /// With which the TD starts.
    pub mrtd: Digest,
    /// `None` where the image brings its payload, which measures what it likes.
    pub rtmrs: Option<[Digest; 4]>,
}

impl Expected {
    /// Of a TD that is started as `boot` says, with `kernel` where the image takes one.
    pub fn of(boot: &Boot, kernel: Option<PathBuf>) -> Result<Self> {
        let mut config = VmConfig {
            payload: PayloadConfig {
                firmware: Some(boot.file.clone()),
                cmdline: kernel.as_ref().map(|_| COMMAND_LINE.to_owned()),
                kernel,
                ..PayloadConfig::default()
            },
            ..VmConfig::default()
        };
        config.cpus.boot = boot.cpus;
        config.memory.size = ByteSize(boot.memory);
        config.platform.tdx = true;
        let machine = validate(&config)?;
        let (facts, _) = open_payload(&machine.payload)?;
        let plan = Plan::new(&machine, &facts)?;
        let td = plan.td.context("the plan is no TD's")?;
        let regions: Vec<Region<'_>> = td
            .regions
            .iter()
            .map(|region| Region {
                range: region.range,
                measure: region.measure,
                bytes: &region.bytes,
            })
            .collect();
        let file = fs::read(&boot.file)?;
        let image = Image::parse(&file)?;
        Ok(Self {
            mrtd: td.mrtd,
            rtmrs: rtmrs(&image, &regions),
        })
    }

    /// The witness tells of the same, and of a TD that lived to its end.
    pub fn check(&self, ended: &EndedTd, cpus: u32) -> Result<()> {
        ensure!(ended.end.is_empty(), "the TD died: {}", ended.end);
        ensure!(ended.vcpus == cpus, "the TD had {} vCPUs", ended.vcpus);
        let witnessed = [&ended.rtmr0, &ended.rtmr1, &ended.rtmr2, &ended.rtmr3];
        let values = [(&ended.mrtd, &self.mrtd)]
            .into_iter()
            .chain(witnessed.into_iter().zip(self.rtmrs.iter().flatten()));
        for (name, (witnessed, expected)) in ["MRTD", "RTMR0", "RTMR1", "RTMR2", "RTMR3"]
            .iter()
            .zip(values)
        {
            ensure!(
                *witnessed == expected.to_string(),
                "{name} is {witnessed}, not {expected} as computed"
            );
        }
        Ok(())
    }
}
