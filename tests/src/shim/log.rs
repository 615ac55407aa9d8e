//! The event log of the firmware, made on this machine: whoever replays it comes to the RTMRs.

use std::io::Write;
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha384};

use crate::native::folder::Folder;
use crate::native::guest::compiler;
use crate::programs::workspace;

const SPEC_ID: u32 = 3;
const SEPARATOR: u32 = 4;
const CONFIGURATION: u32 = 10;
const BLOB2: u32 = 0x8000_000a;

/// An event of the log.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    register: u32,
    kind: u32,
    digest: Vec<u8>,
    data: Vec<u8>,
}

/// Runs the firmware's own code with `input` for all that it measures.
fn made_log(input: &[u8]) -> Vec<u8> {
    let folder = Folder::create().expect("there is room for a folder");
    let program = folder.join("log");
    let sources = ["host/log.c", "measure.c", "sha384.c"];
    let sources = sources.map(|name| workspace().join("tests/guests/shim").join(name));
    let compiled = Command::new(compiler())
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .args(sources)
        .status()
        .expect("there is a C compiler");
    assert!(compiled.success());
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    stdin.write_all(input).expect("the program reads");
    drop(stdin);
    let output = child.wait_with_output().expect("the program ends");
    assert!(output.status.success());
    output.stdout
}

/// The number at the front of `bytes`, which it leaves.
fn take(bytes: &mut &[u8], len: usize) -> u32 {
    let number = bytes[..len]
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u32::from(*byte));
    *bytes = &bytes[len..];
    number
}

fn take_bytes(bytes: &mut &[u8], len: u32) -> Vec<u8> {
    let (taken, rest) = bytes.split_at(usize::try_from(len).expect("it fits"));
    *bytes = rest;
    taken.to_vec()
}

/// TCG PC Client Platform Firmware Profile, 10.2: a first event in the old form, then the others.
fn parse(log: &[u8]) -> Vec<Event> {
    let mut rest = log;
    assert_eq!((take(&mut rest, 4), take(&mut rest, 4)), (0, SPEC_ID));
    assert_eq!(take_bytes(&mut rest, 20), [0; 20]);
    let len = take(&mut rest, 4);
    let spec = take_bytes(&mut rest, len);
    assert!(spec.starts_with(b"Spec ID Event03\0"));
    // One algorithm: SHA-384 with 48 bytes; no vendor's bytes.
    assert_eq!(spec[24..], [1, 0, 0, 0, 12, 0, 48, 0, 0]);

    let mut events = Vec::new();
    while rest[..4] != [0xff; 4] {
        let (register, kind) = (take(&mut rest, 4), take(&mut rest, 4));
        assert_eq!((take(&mut rest, 4), take(&mut rest, 2)), (1, 12));
        let digest = take_bytes(&mut rest, 48);
        let len = take(&mut rest, 4);
        events.push(Event {
            register,
            kind,
            digest,
            data: take_bytes(&mut rest, len),
        });
    }
    assert!(rest.iter().all(|byte| *byte == 0xff));
    events
}

/// A name of 16 bytes, the length, the data.
fn configuration(name: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    let len = u32::try_from(data.len()).expect("it is short");
    bytes.extend(len.to_le_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn log_holds_each_event_with_the_digest_of_what_was_measured() {
    // Lengths at which the padding of SHA-384 has one block more, and those before and after.
    for len in [0, 1, 111, 112, 127, 128, 129, 333, 1000_u16] {
        let input: Vec<u8> = (0..len).map(|byte| byte.to_le_bytes()[0] ^ 0x5a).collect();
        let (payload, parameters) = (&input[..input.len() / 2], &input[..input.len() / 3]);
        let event = |register, kind, measured: &[u8], data: Vec<u8>| Event {
            register,
            kind,
            digest: Sha384::digest(measured).to_vec(),
            data,
        };
        let mut events = parse(&made_log(&input));
        // The address of the payload is the program's own.
        let blob = events.remove(3);
        assert_eq!(blob.digest, Sha384::digest(payload).to_vec(), "{len}");
        assert_eq!((blob.register, blob.kind), (2, BLOB2));
        assert!(blob.data.starts_with(b"\x0btd_payload\0"));
        assert_eq!(blob.data[20..], (payload.len() as u64).to_le_bytes());
        let zero = vec![0; 4];
        let expected = [
            event(1, CONFIGURATION, &input, configuration("td_hob", &input)),
            event(1, SEPARATOR, &zero, zero.clone()),
            event(2, SEPARATOR, &zero, zero.clone()),
            event(
                2,
                CONFIGURATION,
                parameters,
                configuration("td_payload_info", parameters),
            ),
        ];
        assert_eq!(events, expected, "{len}");
    }
}
