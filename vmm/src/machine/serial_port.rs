//! The host's side of the serial port: opened before the VM is created, wired to it afterwards.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tdvmm_devices::irq::IrqWire;
use tdvmm_devices::serial::{Serial, SerialSink};
use vmm_sys_util::eventfd::EventFd;

use super::events::InputSource;
use crate::config::SerialBackend;
use crate::serial::backend::{ClientSink, FileSink, StreamSink, WithInput};
use crate::serial::clients::Clients;
use crate::serial::input::Input;
use crate::serial::output::StandardStream;
use crate::serial::terminal::EscapeFilter;

/// Where the port leads.
pub(super) struct SerialEnds {
    sink: Box<dyn SerialSink>,
    source: Source,
}

/// Where its input comes from; `drained` is readable when the guest has read all of it.
enum Source {
    None,
    Stdin {
        drained: Arc<EventFd>,
    },
    Socket {
        drained: Arc<EventFd>,
        listener: UnixListener,
        sink: ClientSink,
    },
}

/// Opens `backend`; `None` if there is no port.
///
/// # Errors
///
/// If the host refuses.
pub(super) fn open(backend: &SerialBackend) -> io::Result<Option<SerialEnds>> {
    let (sink, source): (Box<dyn SerialSink>, _) = match backend {
        SerialBackend::Off => return Ok(None),
        SerialBackend::Null => (Box::new(()), Source::None),
        SerialBackend::File(path) => (open_output(path)?, Source::None),
        SerialBackend::Tty => {
            let drained = event()?;
            let sink = WithInput {
                sink: StreamSink::new(StandardStream::of(io::stdout())),
                drained: Arc::clone(&drained),
            };
            (Box::new(sink), Source::Stdin { drained })
        }
        SerialBackend::Socket(path) => {
            let drained = event()?;
            let listener = listen(path)?;
            let sink = ClientSink::default();
            let with_input = WithInput {
                sink: sink.clone(),
                drained: Arc::clone(&drained),
            };
            let source = Source::Socket {
                drained,
                listener,
                sink,
            };
            (Box::new(with_input), source)
        }
    };
    Ok(Some(SerialEnds { sink, source }))
}

/// As it is written after `--serial`.
pub(super) fn describe(backend: &SerialBackend) -> String {
    match backend {
        SerialBackend::Off => "off".to_owned(),
        SerialBackend::Null => "null".to_owned(),
        SerialBackend::Tty => "tty".to_owned(),
        SerialBackend::File(path) => format!("file={}", path.display()),
        SerialBackend::Socket(path) => format!("socket={}", path.display()),
    }
}

impl SerialEnds {
    /// The port, which raises `irq`, and its input.
    pub fn wire(self, irq: Arc<dyn IrqWire>) -> (Arc<Mutex<Serial>>, InputSource) {
        let port = Arc::new(Mutex::new(Serial::new(irq, self.sink)));
        let input = Input::new(Arc::clone(&port));
        let source = match self.source {
            Source::None => InputSource::None,
            Source::Stdin { drained } => InputSource::Stdin {
                input,
                drained,
                escape: io::stdin().is_terminal().then(EscapeFilter::default),
            },
            Source::Socket {
                drained,
                listener,
                sink,
            } => InputSource::Socket {
                drained,
                listener,
                clients: Clients::new(input, sink),
            },
        };
        (port, source)
    }
}

fn event() -> io::Result<Arc<EventFd>> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new)
}

/// Opens a file for output. One that is not a regular file (a FIFO, a device, the output of this process) may have a
/// reader that stalls, so it is opened not to block.
fn open_output(path: &Path) -> io::Result<Box<dyn SerialSink>> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    Ok(match file.metadata()?.is_file() {
        true => Box::new(FileSink(file)),
        false => Box::new(StreamSink::new(file)),
    })
}

/// Listens on `path`. A socket that an earlier run left behind, and that nobody has any more, is replaced.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    // Asked by a datagram, which the listener of another run refuses as of the wrong type, and does not hear of.
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixDatagram::unbound()?
            .connect(path)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_of_another_run_is_refused_unheard_and_a_stale_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let running = listen(&path).unwrap();
        let refused = listen(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AddrInUse);
        let heard = running.accept().unwrap_err();
        assert_eq!(heard.kind(), ErrorKind::WouldBlock);
        drop(running);
        listen(&path).unwrap();
    }
}
