//! `--disk`: an image that the guest sees as a virtio block device.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::pairs::Pairs;
use super::{ByteSize, ConfigError, parse_size};

/// What `queue_size` may be; the entries of a ring are a power of two.
const QUEUE_SIZES: std::ops::RangeInclusive<u16> = 4..=1024;
const MAX_QUEUES: u16 = 64;
/// What the guest can read of a serial number (virtio 1.3, 5.2.6).
const MAX_SERIAL: usize = 20;
/// Time in which a bucket fills unless said otherwise, in milliseconds: sizes are per second then.
const REFILL_MS: u64 = 1000;

/// A disk as asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// A raw or qcow2 image, or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read. Such an image may be used by several machines.
    #[serde(default)]
    pub readonly: bool,
    /// Whether to go past the host's page cache; the same as `cache=none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
    /// How the host caches; `writeback` unless `direct` is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<DiskCache>,
    /// What the image is. Unless it is said, only what looks like no other format is taken, as raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_type: Option<ImageType>,
    /// Whether to open the files that a qcow2 image names as those below it. The guest can read them then.
    #[serde(default)]
    pub backing_files: bool,
    /// Request queues, 1 to 64; 1 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_queues: Option<u16>,
    /// Entries of each, a power of two from 4 to 1024; 256 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_size: Option<u16>,
    /// Serial number, at most 20 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Its name in messages and in the plan; `disk0` and so on unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Bytes in each `bw_refill_time`, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bw_size: Option<ByteSize>,
    /// Milliseconds; 1000 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bw_refill_time: Option<u64>,
    /// Requests in each `ops_refill_time`, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops_size: Option<u64>,
    /// Milliseconds; 1000 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops_refill_time: Option<u64>,
}

/// How the host caches a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskCache {
    /// In its page cache; what the guest flushed is on the disk.
    Writeback,
    /// Not at all.
    None,
}

/// Formats that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageType {
    /// The bytes of the file are the bytes of the disk.
    #[serde(alias = "Raw")]
    Raw,
    /// qcow2.
    #[serde(alias = "Qcow2")]
    Qcow2,
}

/// A disk that can be, as far as that can be known without opening it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// The image.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// Whether to go past the page cache.
    pub direct: bool,
    /// What it is, if that was said.
    pub image_type: Option<ImageType>,
    /// Whether the files that it names as those below it may be opened, and read by the guest.
    pub backing_files: bool,
    /// Request queues, 1 to 64.
    pub num_queues: u16,
    /// Entries of each, a power of two.
    pub queue_size: u16,
    /// Serial number, at most 20 bytes.
    pub serial: String,
    /// Limit of bytes.
    pub bandwidth: Option<Limit>,
    /// Limit of requests.
    pub operations: Option<Limit>,
}

/// So much in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Bytes or requests, more than 0.
    pub size: u64,
    /// Milliseconds, more than 0.
    pub refill_ms: u64,
}

/// Reads `path=FILE[,readonly=on][,...]`.
///
/// # Errors
///
/// If the text is not of that form.
pub fn parse_disk(text: &str) -> Result<DiskConfig, ConfigError> {
    const KEYS: &[&str] = &[
        "path",
        "readonly",
        "direct",
        "cache",
        "image_type",
        "backing_files",
        "num_queues",
        "queue_size",
        "serial",
        "id",
        "bw_size",
        "bw_refill_time",
        "ops_size",
        "ops_refill_time",
    ];
    let pairs = Pairs::parse("--disk", text, KEYS)?;
    let short = |key| pairs.get(key).map(|n| pairs.number(key, n)).transpose();
    let long = |key| pairs.get(key).map(|n| pairs.number(key, n)).transpose();
    let bw_size = pairs.get("bw_size").map(parse_size).transpose();
    Ok(DiskConfig {
        path: pairs.get("path").unwrap_or_default().into(),
        readonly: pairs.optional_switch("readonly")?.unwrap_or(false),
        direct: pairs.optional_switch("direct")?,
        cache: match pairs.get("cache") {
            None => None,
            Some("writeback") => Some(DiskCache::Writeback),
            Some("none") => Some(DiskCache::None),
            Some(_) => return Err(pairs.problem("cache is writeback or none")),
        },
        image_type: match pairs.get("image_type") {
            None => None,
            Some("raw") => Some(ImageType::Raw),
            Some("qcow2") => Some(ImageType::Qcow2),
            Some(_) => {
                let problem = "image_type is raw or qcow2; convert other images";
                return Err(pairs.problem(problem));
            }
        },
        backing_files: pairs.optional_switch("backing_files")?.unwrap_or(false),
        num_queues: short("num_queues")?,
        queue_size: short("queue_size")?,
        serial: pairs.get("serial").map(str::to_owned),
        id: pairs.get("id").map(str::to_owned),
        bw_size: bw_size.map_err(|problem| pairs.problem(problem))?,
        bw_refill_time: long("bw_refill_time")?,
        ops_size: long("ops_size")?,
        ops_refill_time: long("ops_refill_time")?,
    })
}

impl Disk {
    /// Checks one disk.
    ///
    /// # Errors
    ///
    /// At the first value that cannot be.
    pub(super) fn new(config: &DiskConfig) -> Result<Self, ConfigError> {
        let wrong = |key: &str, value: &dyn std::fmt::Display, problem: &str| {
            ConfigError::option("--disk", format!("{key}={value}"), problem)
        };
        if config.path.as_os_str().is_empty() {
            return Err(ConfigError::Missing {
                option: "--disk path=",
                remedy: "name a raw or qcow2 image, or a block device",
            });
        }
        let direct = match (config.cache, config.direct) {
            (Some(DiskCache::Writeback), Some(true)) => {
                let problem = "direct=on goes past the cache: leave one of the two out";
                return Err(wrong("cache", &"writeback", problem));
            }
            (Some(DiskCache::None), Some(false)) => {
                let problem = "direct=off uses the cache: leave one of the two out";
                return Err(wrong("cache", &"none", problem));
            }
            (Some(DiskCache::None), _) => true,
            (_, direct) => direct.unwrap_or(false),
        };
        if config.backing_files && config.image_type != Some(ImageType::Qcow2) {
            let problem = "only qcow2 images have them: give image_type=qcow2, or leave it out";
            return Err(wrong("backing_files", &"on", problem));
        }
        let num_queues = config.num_queues.unwrap_or(1);
        if !(1..=MAX_QUEUES).contains(&num_queues) {
            return Err(wrong(
                "num_queues",
                &num_queues,
                "a disk has 1 to 64 queues",
            ));
        }
        let queue_size = config.queue_size.unwrap_or(256);
        if !QUEUE_SIZES.contains(&queue_size) || !queue_size.is_power_of_two() {
            let problem = "the size of a queue is a power of two from 4 to 1024";
            return Err(wrong("queue_size", &queue_size, problem));
        }
        let serial = config.serial.clone().unwrap_or_default();
        if serial.len() > MAX_SERIAL || !serial.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            let problem = "a serial number has at most 20 ASCII characters";
            return Err(wrong("serial", &serial, problem));
        }
        let bw_size = config.bw_size.map(|size| size.0);
        Ok(Self {
            path: config.path.clone(),
            readonly: config.readonly,
            direct,
            image_type: config.image_type,
            backing_files: config.backing_files,
            num_queues,
            queue_size,
            serial,
            bandwidth: limit("bw", bw_size, config.bw_refill_time)?,
            operations: limit("ops", config.ops_size, config.ops_refill_time)?,
        })
    }
}

fn limit(key: &str, size: Option<u64>, refill: Option<u64>) -> Result<Option<Limit>, ConfigError> {
    let wrong = |value: String, problem: String| ConfigError::option("--disk", value, problem);
    match (size, refill) {
        (None, None) => Ok(None),
        (None, Some(time)) => Err(wrong(
            format!("{key}_refill_time={time}"),
            format!("is the time of a limit: give {key}_size too"),
        )),
        (Some(0), _) => Err(wrong(
            format!("{key}_size=0"),
            "lets nothing pass: give more, or leave it out for no limit".to_owned(),
        )),
        (_, Some(0)) => Err(wrong(
            format!("{key}_refill_time=0"),
            "is no time: give milliseconds".to_owned(),
        )),
        (Some(size), refill) => Ok(Some(Limit {
            size,
            refill_ms: refill.unwrap_or(REFILL_MS),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Disk, String> {
        parse_disk(text)
            .and_then(|config| Disk::new(&config))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn disk_with_a_path_alone_is_writable_cached_and_of_one_queue() {
        let disk = checked("path=a.raw").unwrap();
        assert_eq!(disk.path, PathBuf::from("a.raw"));
        assert!(!disk.readonly && !disk.direct && disk.image_type.is_none());
        assert_eq!((disk.num_queues, disk.queue_size), (1, 256));
        assert_eq!((disk.bandwidth, disk.operations), (None, None));
    }

    #[test]
    fn all_keys_are_read() {
        let disk = checked(
            "path=\"a,b\",readonly=on,direct=on,image_type=raw,num_queues=4,queue_size=128,serial=s,id=i,\
             bw_size=10M,ops_size=100,ops_refill_time=500",
        )
        .unwrap();
        let expected = Disk {
            path: "a,b".into(),
            readonly: true,
            direct: true,
            image_type: Some(ImageType::Raw),
            backing_files: false,
            num_queues: 4,
            queue_size: 128,
            serial: "s".into(),
            bandwidth: Some(Limit {
                size: 10 << 20,
                refill_ms: 1000,
            }),
            operations: Some(Limit {
                size: 100,
                refill_ms: 500,
            }),
        };
        assert_eq!(disk, expected);
        let qcow2 = checked("path=a,image_type=qcow2").unwrap();
        assert_eq!(qcow2.image_type, Some(ImageType::Qcow2));
        assert!(
            !qcow2.backing_files,
            "no host file that an image names, unless asked"
        );
        let layered = checked("path=a,image_type=qcow2,backing_files=on").unwrap();
        assert!(layered.backing_files);
        assert!(checked("path=a,cache=none").unwrap().direct);
        assert!(!checked("path=a,cache=writeback").unwrap().direct);
    }

    #[test]
    fn every_refusal_names_the_key_the_value_and_the_remedy() {
        for (text, start) in [
            (
                "readonly=on",
                "--disk path= is missing: name a raw or qcow2 image",
            ),
            (
                "path=a,cache=writeback,direct=on",
                "--disk cache=writeback: direct=on",
            ),
            (
                "path=a,cache=none,direct=off",
                "--disk cache=none: direct=off",
            ),
            (
                "path=a,backing_files=on",
                "--disk backing_files=on: only qcow2 images have them",
            ),
            (
                "path=a,num_queues=0",
                "--disk num_queues=0: a disk has 1 to 64",
            ),
            (
                "path=a,num_queues=65",
                "--disk num_queues=65: a disk has 1 to 64",
            ),
            (
                "path=a,queue_size=100",
                "--disk queue_size=100: the size of a queue",
            ),
            (
                "path=a,queue_size=2048",
                "--disk queue_size=2048: the size of a queue",
            ),
            (
                "path=a,serial=123456789012345678901",
                "--disk serial=123456789012345678901: ",
            ),
            ("path=a,bw_size=0", "--disk bw_size=0: lets nothing pass"),
            ("path=a,ops_refill_time=5", "--disk ops_refill_time=5: "),
            (
                "path=a,bw_size=1,bw_refill_time=0",
                "--disk bw_refill_time=0: is no time",
            ),
        ] {
            let message = checked(text).unwrap_err();
            assert!(message.starts_with(start), "{text}: {message}");
        }
        for (text, part) in [
            ("path=a,cache=x", "cache is writeback or none"),
            ("path=a,image_type=vmdk", "image_type is raw or qcow2"),
            ("path=a,bw_size=1Q", "'1Q' is no size"),
            (
                "path=a,num_queues=65536",
                "num_queues: '65536' is no number from 0 to 65535",
            ),
            ("a.raw", "'a.raw' is no key=value; keys are path, "),
        ] {
            let message = checked(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
