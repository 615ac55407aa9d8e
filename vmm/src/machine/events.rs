//! What the main thread waits for: the ending, signals, and input for the serial port.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tdvmm_devices::virtio::console::ConsoleHandle;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::ending::{Ending, EndingCell};
use crate::kvm::kick;
use crate::serial::clients::Clients;
use crate::serial::console::fit_to_terminal;
use crate::serial::input::{CHUNK, Input};
use crate::serial::terminal::EscapeFilter;

/// The signals that end the machine in an orderly way.
const ENDING_SIGNALS: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

const ENDING: u32 = 0;
const SIGNAL: u32 = 1;
const STDIN: u32 = 2;
const LISTENER: u32 = 3;
const CLIENT: u32 = 4;
const DRAINED: u32 = 5;

/// The main loop cannot be set up or go on.
#[derive(Debug, Error)]
pub enum LoopError {
    /// A file descriptor cannot be made or waited for.
    #[error("cannot {what}")]
    Setup {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Waiting failed.
    #[error("cannot wait for events: {0}")]
    Wait(event_manager::Error),
}

/// Blocks the ending signals, and SIGWINCH, in this thread and those that it starts, and gives them as a descriptor.
/// SIGXFSZ is blocked too and not among them: a file that reaches the limit of `ulimit -f` would end the process with
/// the terminal raw. The write fails with EFBIG all the same, and each device knows what to make of that.
///
/// No other signal is blocked afterwards: a parent may have blocked all of them and left it at that, and the signal of
/// a kick has to reach the vCPUs.
///
/// # Errors
///
/// If the kernel refuses.
pub fn take_signals() -> Result<SignalFd, LoopError> {
    let failed = |source: nix::Error| LoopError::Setup {
        what: "take over signals",
        source: source.into(),
    };
    // What the parent has set to be ignored (nohup, a job in the background) stays ignored: a blocked
    // signal would be queued all the same.
    let mut set: SigSet = ENDING_SIGNALS
        .into_iter()
        .filter(|signal| !kick::is_ignored(*signal as i32))
        .collect();
    // Says that the terminal has another size; nobody minds if it does not come.
    set.add(Signal::SIGWINCH);
    let mut blocked = set;
    blocked.add(Signal::SIGXFSZ);
    blocked.thread_set_mask().map_err(failed)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map_err(failed)
}

/// Reads what has come until a signal that ends the machine; `None` if there is none. SIGWINCH on the way is taken in
/// without a word: who follows the terminal's size asks for it afterwards.
pub fn ending_signal(signals: &SignalFd) -> Option<i32> {
    while let Ok(Some(came)) = signals.read_signal() {
        let signal = came.ssi_signo.cast_signed();
        if signal != libc::SIGWINCH {
            return Some(signal);
        }
    }
    None
}

/// Where input for the serial port comes from.
#[derive(Debug)]
pub enum InputSource {
    /// There is none.
    None,
    /// Standard input; a terminal has an escape key.
    Stdin {
        /// Where it goes.
        input: Input,
        /// Readable when the guest has read all of it.
        drained: Arc<EventFd>,
        /// Set when it is a terminal.
        escape: Option<EscapeFilter>,
    },
    /// Whoever connects to a socket.
    Socket {
        /// Readable when the guest has read all input.
        drained: Arc<EventFd>,
        /// The socket.
        listener: UnixListener,
        /// Who has connected.
        clients: Clients,
    },
}

struct MainLoop {
    endings: Arc<EndingCell>,
    signals: SignalFd,
    source: InputSource,
    console: Option<ConsoleHandle>,
    /// What could not be waited for.
    unwatched: Option<event_manager::Error>,
}

/// Waits until the machine has ended. `console` is the one on this terminal and follows its size.
///
/// # Errors
///
/// If waiting fails, or something cannot be waited for.
pub fn wait_for_end(
    endings: &Arc<EndingCell>,
    signals: SignalFd,
    source: InputSource,
    console: Option<ConsoleHandle>,
) -> Result<Ending, LoopError> {
    let mut manager = EventManager::new().map_err(LoopError::Wait)?;
    let main_loop = MainLoop {
        endings: Arc::clone(endings),
        signals,
        source,
        console,
        unwatched: None,
    };
    // The terminal may have changed since the console was made, and the signal that said so have been read.
    main_loop.fit_console();
    subscribe(&mut manager, main_loop)?;
    loop {
        if let Some(ending) = endings.get() {
            return Ok(ending.clone());
        }
        manager.run().map_err(LoopError::Wait)?;
    }
}

/// A machine whose ending or signals nobody waits for could only be killed.
fn subscribe(manager: &mut EventManager<MainLoop>, main_loop: MainLoop) -> Result<(), LoopError> {
    let id = manager.add_subscriber(main_loop);
    let main_loop = manager.subscriber_mut(id).map_err(LoopError::Wait)?;
    match main_loop.unwatched.take() {
        Some(error) => Err(LoopError::Wait(error)),
        None => Ok(()),
    }
}

impl MainLoop {
    fn on_signal(&self) {
        match ending_signal(&self.signals) {
            Some(signal) => self.endings.end(Ending::Signal(signal)),
            // What came was SIGWINCH.
            None => self.fit_console(),
        }
    }

    fn fit_console(&self) {
        if let Some(console) = &self.console {
            fit_to_terminal(console);
        }
    }

    fn on_stdin(&mut self, ops: &mut EventOps) {
        let InputSource::Stdin { input, escape, .. } = &mut self.source else {
            return;
        };
        let mut typed = [0; CHUNK];
        let stdin = io::stdin();
        // Not through the library's buffer: what it took beyond this chunk would wake nobody.
        match nix::unistd::read(&stdin, &mut typed).map_err(io::Error::from) {
            Ok(0) => ignore(ops, stdin.as_raw_fd(), STDIN),
            Ok(len) => {
                let typed = typed.get(..len).unwrap_or_default();
                let mut passed = Vec::new();
                let ends = escape
                    .as_mut()
                    .is_some_and(|filter| filter.feed(typed, &mut passed));
                let bytes = if escape.is_some() { &passed } else { typed };
                // A pipe can wait until the guest has caught up (`on_drained`). A terminal is read on, since
                // the escape key has to work whatever the guest does.
                if !input.offer(bytes) && escape.is_none() {
                    ignore(ops, stdin.as_raw_fd(), STDIN);
                }
                if ends {
                    self.endings.end(Ending::Operator);
                }
            }
            Err(error) if is_transient(&error) => {}
            Err(_) => ignore(ops, stdin.as_raw_fd(), STDIN),
        }
    }

    fn on_connection(&mut self, ops: &mut EventOps) {
        let InputSource::Socket {
            listener, clients, ..
        } = &mut self.source
        else {
            return;
        };
        match listener.accept() {
            Ok((stream, _)) => clients.welcome(stream, CLIENT, ops),
            Err(error) if is_transient(&error) => {}
            Err(error) => {
                // Out of file descriptors, mostly; asking again at once would not end.
                log::warn!("the serial port's socket takes no more clients: {error}");
                ignore(ops, listener.as_raw_fd(), LISTENER);
            }
        }
    }

    fn on_drained(&mut self, ops: &mut EventOps) {
        match &mut self.source {
            InputSource::None => {}
            InputSource::Stdin { input, drained, .. } => {
                let _ = drained.read();
                if input.advance() {
                    // Refused when it is being watched already, which is what is wanted.
                    let _ = watch(ops, &io::stdin(), STDIN);
                }
            }
            InputSource::Socket {
                drained, clients, ..
            } => {
                let _ = drained.read();
                clients.advance(CLIENT, ops);
            }
        }
    }
}

impl MutEventSubscriber for MainLoop {
    fn init(&mut self, ops: &mut EventOps) {
        // None of these can fail but for want of memory; a standard input that cannot be waited for (a
        // regular file, /dev/null) gives the guest no input.
        let mut watched = vec![
            watch(ops, self.endings.wake(), ENDING),
            watch(ops, &self.signals, SIGNAL),
        ];
        match &self.source {
            InputSource::None => {}
            InputSource::Stdin { drained, .. } => {
                let _ = watch(ops, &io::stdin(), STDIN);
                watched.push(watch(ops, drained, DRAINED));
            }
            InputSource::Socket {
                listener, drained, ..
            } => {
                watched.push(watch(ops, listener, LISTENER));
                watched.push(watch(ops, drained, DRAINED));
            }
        }
        self.unwatched = watched.into_iter().find_map(Result::err);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            SIGNAL => self.on_signal(),
            STDIN => self.on_stdin(ops),
            LISTENER => self.on_connection(ops),
            CLIENT => {
                if let InputSource::Socket { clients, .. } = &mut self.source {
                    clients.on_event(&events, ops);
                }
            }
            DRAINED => self.on_drained(ops),
            // ENDING only has to wake the loop, which looks for the ending itself.
            _ => {}
        }
    }
}

fn watch(ops: &mut EventOps, fd: &impl AsRawFd, token: u32) -> event_manager::Result<()> {
    ops.add(Events::with_data_raw(fd.as_raw_fd(), token, EventSet::IN))
}

fn ignore(ops: &mut EventOps, fd: RawFd, token: u32) {
    // Refused when it is not being watched, which is what is wanted.
    let _ = ops.remove(Events::with_data_raw(fd, token, EventSet::IN));
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;
    use vmm_sys_util::signal::get_blocked_signals;

    use super::*;

    #[test]
    fn signals_that_the_parent_blocked_come_through_but_for_our_own() {
        // The mask is this thread's own.
        SigSet::all().thread_block().unwrap();
        let _signals = take_signals().unwrap();
        let mut blocked = get_blocked_signals().unwrap();
        blocked.retain(|signal| {
            !ENDING_SIGNALS
                .iter()
                .any(|ending| *ending as i32 == *signal)
        });
        assert_eq!(blocked, [libc::SIGXFSZ, libc::SIGWINCH]);
    }

    #[test]
    fn main_loop_that_cannot_wait_for_the_ending_does_not_go_on() {
        let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let endings = Arc::new(EndingCell::new(wake));
        let main_loop = || MainLoop {
            endings: Arc::clone(&endings),
            signals: SignalFd::new(&SigSet::empty()).unwrap(),
            source: InputSource::None,
            console: None,
            unwatched: None,
        };
        let mut manager = EventManager::new().unwrap();
        subscribe(&mut manager, main_loop()).unwrap();
        // A descriptor can be waited for once in one place, so the second one is refused.
        let refused = subscribe(&mut manager, main_loop()).unwrap_err();
        assert!(matches!(refused, LoopError::Wait(_)), "{refused}");
    }

    #[test]
    fn change_of_the_terminal_is_no_order_to_end() {
        // Signals are blocked, sent and read by this one thread; others of the tests do not see them.
        let signals = take_signals().unwrap();
        raise(Signal::SIGWINCH).unwrap();
        assert_eq!(ending_signal(&signals), None);
        raise(Signal::SIGWINCH).unwrap();
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(ending_signal(&signals), Some(libc::SIGTERM));
        assert_eq!(ending_signal(&signals), None);
    }

    #[test]
    fn file_at_its_limit_is_no_order_to_end() {
        let signals = take_signals().unwrap();
        // As a write beyond the limit does, to the thread that writes. Unblocked it ends the process.
        raise(Signal::SIGXFSZ).unwrap();
        assert_eq!(ending_signal(&signals), None);
    }
}
