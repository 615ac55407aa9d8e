//! `--console`: where the virtio console, `hvc0` in Linux, leads.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::pairs::Pairs;
use super::{ByteSize, ConfigError, SerialConfig, SerialMode, parse_size};

const FORMS: &str = "write off, tty, pty, file=PATH[,max_size=N] or socket=PATH";

/// A console as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// The kind of backend.
    pub mode: ConsoleMode,
    /// With mode `file`: the file, which is appended to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// With mode `file`: from this size on it becomes `<file>.1`, and a new one begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
    /// With mode `socket`: the unix socket to listen on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// Kinds of backends of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleMode {
    /// There is no console.
    #[serde(alias = "Off")]
    Off,
    /// Standard input and output.
    #[serde(alias = "Tty")]
    Tty,
    /// A new pseudo-terminal.
    #[serde(alias = "Pty")]
    Pty,
    /// Output to a file, no input.
    #[serde(alias = "File")]
    File,
    /// A unix socket on which one client at a time is served.
    #[serde(alias = "Socket")]
    Socket,
}

/// Where a console leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Console {
    /// Standard input and output.
    Tty,
    /// A new pseudo-terminal.
    Pty,
    /// A file that is appended to.
    File {
        /// Its name.
        path: PathBuf,
        /// Bytes from which on it is rotated.
        max_size: Option<u64>,
    },
    /// A unix socket that is created and listened on.
    Socket(PathBuf),
}

/// Reads `off`, `tty`, `pty`, `file=PATH[,max_size=N]` or `socket=PATH`.
///
/// # Errors
///
/// If the text is none of these.
pub fn parse_console(text: &str) -> Result<ConsoleConfig, ConfigError> {
    let of = |mode| ConsoleConfig {
        mode,
        file: None,
        max_size: None,
        socket: None,
    };
    match text {
        "off" => return Ok(of(ConsoleMode::Off)),
        "tty" => return Ok(of(ConsoleMode::Tty)),
        "pty" => return Ok(of(ConsoleMode::Pty)),
        _ => {}
    }
    let wrong = |_| ConfigError::option("--console", text, FORMS);
    let pairs = Pairs::parse("--console", text, &["file", "max_size", "socket"]).map_err(wrong)?;
    let max_size = pairs.get("max_size").map(parse_size).transpose();
    let mode = match pairs.get("socket") {
        Some(_) => ConsoleMode::Socket,
        None => ConsoleMode::File,
    };
    Ok(ConsoleConfig {
        mode,
        file: pairs.get("file").map(PathBuf::from),
        max_size: max_size.map_err(|problem| pairs.problem(problem))?,
        socket: pairs.get("socket").map(PathBuf::from),
    })
}

impl Console {
    /// Checks a console, beside what was asked for as serial port.
    ///
    /// # Errors
    ///
    /// If the backend lacks its file, or both want the terminal.
    pub(super) fn new(
        config: &ConsoleConfig,
        serial: Option<&SerialConfig>,
    ) -> Result<Option<Self>, ConfigError> {
        let ConsoleConfig {
            mode,
            file,
            max_size,
            socket,
        } = config;
        let named = |path: &PathBuf| !path.as_os_str().is_empty();
        Ok(Some(match (mode, file, max_size, socket) {
            (ConsoleMode::Off, None, None, None) => return Ok(None),
            (ConsoleMode::Tty, None, None, None) => {
                if serial.is_some_and(|serial| serial.mode == SerialMode::Tty) {
                    return Err(ConfigError::Conflict {
                        option: "--console",
                        value: "tty".to_owned(),
                        remedy: "the serial port has the terminal: give --serial off or another backend",
                    });
                }
                Self::Tty
            }
            (ConsoleMode::Pty, None, None, None) => Self::Pty,
            (ConsoleMode::File, Some(path), max_size, None) if named(path) => {
                let max_size = max_size.map(|size| size.0);
                if max_size == Some(0) {
                    let problem =
                        "lets nothing be written: give more, or leave it out for no limit";
                    return Err(ConfigError::option("--console", "max_size=0", problem));
                }
                Self::File {
                    path: path.clone(),
                    max_size,
                }
            }
            (ConsoleMode::Socket, None, None, Some(path)) if named(path) => {
                Self::Socket(path.clone())
            }
            _ => {
                return Err(ConfigError::Conflict {
                    option: "--console",
                    value: format!("{mode:?}").to_lowercase(),
                    remedy: FORMS,
                });
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Option<Console>, String> {
        parse_console(text)
            .and_then(|config| Console::new(&config, None))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(checked("off"), Ok(None));
        assert_eq!(checked("tty"), Ok(Some(Console::Tty)));
        assert_eq!(checked("pty"), Ok(Some(Console::Pty)));
        assert_eq!(checked("socket=s"), Ok(Some(Console::Socket("s".into()))));
        let file = |max_size| Console::File {
            path: "a,b".into(),
            max_size,
        };
        assert_eq!(checked("file=\"a,b\""), Ok(Some(file(None))));
        assert_eq!(
            checked("file=\"a,b\",max_size=1M"),
            Ok(Some(file(Some(1 << 20))))
        );
    }

    #[test]
    fn other_forms_are_refused_with_the_forms() {
        for text in [
            "",
            "hvc0",
            "file=",
            "file=a,socket=b",
            "max_size=1",
            "off,tty",
            "socket=",
        ] {
            let message = checked(text).unwrap_err();
            assert!(message.starts_with("--console "), "{text}: {message}");
            assert!(message.contains("write off, tty, pty"), "{text}: {message}");
        }
        let message = checked("file=a,max_size=0").unwrap_err();
        assert!(message.contains("lets nothing be written"), "{message}");
    }

    #[test]
    fn terminal_is_not_given_to_both() {
        let console = parse_console("tty").unwrap();
        let tty = SerialConfig::plain(SerialMode::Tty);
        let error = Console::new(&console, Some(&tty)).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("--console tty: the serial port")
        );
        let off = SerialConfig::plain(SerialMode::Off);
        assert_eq!(Console::new(&console, Some(&off)), Ok(Some(Console::Tty)));
    }
}
