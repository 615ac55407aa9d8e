//! What a guest asks of the machine as a whole: to be switched off or started again.

use std::fmt::Debug;

/// The request of a guest, with the register through which it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// The guest switched itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset; the text names the register, such as `port 0xcf9`.
    Reset(&'static str),
}

/// Takes requests. Called from vCPU threads, any number of times; the first one counts. Must not block.
pub trait PowerSink: Debug + Send + Sync {
    /// Takes note of `event` and returns at once; the vCPU that asked goes on until it is stopped.
    fn request(&self, event: PowerEvent);
}

/// For the tests of the registers: remembers what was asked for.
#[cfg(test)]
pub(crate) mod recorder {
    use std::sync::Mutex;

    use super::{PowerEvent, PowerSink};

    #[derive(Debug, Default)]
    pub(crate) struct Recorder(Mutex<Vec<PowerEvent>>);

    impl Recorder {
        /// What was asked for since the last time.
        pub(crate) fn take(&self) -> Vec<PowerEvent> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl PowerSink for Recorder {
        fn request(&self, event: PowerEvent) {
            self.0.lock().unwrap().push(event);
        }
    }
}
