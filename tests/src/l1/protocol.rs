//! What the machine and the agent in L1 say to each other: frames of a 32-bit little-endian length
//! and that many bytes of JSON.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where the image puts [`Setup`].
pub const SETUP_PATH: &str = "/etc/tdvmm-l1.json";
/// The virtio-serial port of the session, in L1.
pub const PORT_PATH: &str = "/dev/vport0p1";
/// A longer frame is a broken stream.
const FRAME_MAX: usize = 64 << 20;

/// What the agent does before it reports [`Event::Up`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Setup {
    /// Module files in load order, each with its parameters.
    pub modules: Vec<(String, String)>,
    /// Folder of the machine to mount at `/host` (9p tag), if any.
    pub share: Option<String>,
}

/// How a program's standard streams are set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Streams {
    /// Pipes; output and error come as one stream.
    #[default]
    Pipes,
    /// A pseudo terminal.
    Terminal,
}

/// From the machine to the agent. Each is answered by one [`Event::Answer`], in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Starts a program.
    Start {
        /// Chosen by the machine, never used again.
        run: u32,
        /// Path in L1.
        program: String,
        /// Arguments without the program's name.
        args: Vec<String>,
        /// Added to the environment.
        env: Vec<(String, String)>,
        /// Kind of its standard streams.
        streams: Streams,
    },
    /// Connects to a listening unix socket; what it sends comes as [`Event::Output`] of `run`.
    Connect {
        /// Chosen by the machine, never used again.
        run: u32,
        /// Path of the socket.
        path: String,
    },
    /// Bytes for the standard input of a program, or for a connection.
    Input {
        /// Of which.
        run: u32,
        /// What.
        #[serde(with = "hex")]
        data: Vec<u8>,
    },
    /// Ends the standard input of a program with pipes.
    CloseInput {
        /// Of which.
        run: u32,
    },
    /// Sends a signal.
    Signal {
        /// To which.
        run: u32,
        /// Signal number.
        signal: i32,
    },
    /// Asks for the content of a file.
    Read {
        /// Path in L1.
        path: String,
    },
    /// Writes a file.
    Write {
        /// Path in L1.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Content.
        #[serde(with = "hex")]
        data: Vec<u8>,
    },
    /// Asks for the kernel log since the last time.
    KernelLog,
    /// Powers off.
    PowerOff,
}

/// From the agent to the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// L1 is ready.
    Up {
        /// Online CPUs.
        cpus: u32,
        /// Whether `/dev/kvm` is there.
        kvm: bool,
        /// What went wrong on the way, for instance a module that was refused.
        troubles: Vec<String>,
    },
    /// A program or connection gave output.
    Output {
        /// Which.
        run: u32,
        /// Since its start, in L1's time.
        micros: u64,
        /// What.
        #[serde(with = "hex")]
        data: Vec<u8>,
    },
    /// A program ended; all of its output was sent before.
    Ended {
        /// Which.
        run: u32,
        /// Since its start, in L1's time.
        micros: u64,
        /// How.
        outcome: Outcome,
    },
    /// The answer to the oldest request that has none.
    Answer(Result<Answer, String>),
}

/// A successful answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// Process id of a started program.
    Started(u32),
    /// Content of a file.
    Content(#[serde(with = "hex")] Vec<u8>),
    /// Lines of the kernel log.
    Lines(Vec<String>),
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// A connection that the other side closed.
    Closed,
}

impl Outcome {
    /// The exit code, if it ended by itself.
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(code),
            Self::Signalled(_) | Self::Closed => None,
        }
    }
}

/// Sends a frame.
pub fn send<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(|_| io::Error::other("frame too long"))?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend_from_slice(&body);
    to.write_all(&frame)?;
    to.flush()
}

/// Receives a frame; `None` at the end of the stream.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    if length > FRAME_MAX {
        return Err(io::Error::other(format!("frame of {length} bytes")));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// Bytes as a hex string: JSON has no bytes.
mod hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        to.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digit = |c: u8| {
            char::from(c)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        text.as_bytes()
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                _ => None,
            })
            .collect::<Option<Vec<u8>>>()
            .ok_or_else(|| D::Error::custom("not a hex string"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_sent() {
        let all: Vec<u8> = (0..=255).collect();
        let mut wire = Vec::new();
        send(
            &mut wire,
            &Event::Output {
                run: 7,
                micros: 12,
                data: all.clone(),
            },
        )
        .unwrap();
        send(&mut wire, &Event::Answer(Err("no".into()))).unwrap();
        let mut wire = wire.as_slice();
        let first = receive::<Event>(&mut wire).unwrap().unwrap();
        assert!(matches!(first, Event::Output { run: 7, micros: 12, data } if data == all));
        let second = receive::<Event>(&mut wire).unwrap().unwrap();
        assert!(matches!(second, Event::Answer(Err(text)) if text == "no"));
        assert!(receive::<Event>(&mut wire).unwrap().is_none());
    }

    #[test]
    fn frame_of_absurd_length_is_refused() {
        let mut wire: &[u8] = &[0xff; 8];
        assert!(receive::<Event>(&mut wire).is_err());
    }
}
