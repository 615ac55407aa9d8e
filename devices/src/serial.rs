//! COM1: a 16550A on 8 ports.
//!
//! The registers are those of `vm-superio`; this module adds what a driver can tell apart from a real
//! 16550A: FIFO control (reset of the receive FIFO, no FIFO bits in the interrupt identification while
//! it is off), and an identification that names one enabled cause at a time, highest first, and keeps
//! the other for the next read. The transmitter is always empty, so its interrupt comes as an edge when
//! it is enabled and after each byte.
//!
//! Output goes to a [`SerialSink`] on the vCPU thread. Input is at most one FIFO of 64 bytes; what does
//! not fit stays with the caller, who is told by [`SerialSink::input_drained`] when to go on.

use std::fmt;
use std::io;
use std::sync::Arc;

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial as Uart, Trigger};

use crate::bus::{AccessError, BusDevice};
use crate::guest_warn;
use crate::irq::IrqWire;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER: u8 = 1 << 1;
const IIR_NONE: u8 = 1 << 0;
const IIR_TRANSMITTER: u8 = 0b010;
const IIR_RECEIVED: u8 = 0b100;
const IIR_FIFO: u8 = 0xc0;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
const LCR_DLAB: u8 = 1 << 7;
const MCR_LOOPBACK: u8 = 1 << 4;
const LSR_DATA_READY: u8 = 1 << 0;
/// Bytes of the receive FIFO of `vm-superio`.
const FIFO: usize = 64;

/// Where the output of the guest goes. Called from vCPU threads; must not block for long.
pub trait SerialSink: Send {
    /// Takes bytes, or drops them.
    fn write(&mut self, bytes: &[u8]);
    /// The guest has read all input, so that [`Serial::enqueue`] has room again. Called under the
    /// lock of the port: to wake another thread, not to enqueue.
    fn input_drained(&mut self) {}
}

/// Drops everything.
impl SerialSink for () {
    fn write(&mut self, _: &[u8]) {}
}

/// The wire as `vm-superio` wants it. It cannot fail: an interrupt that the host refuses is logged.
struct Wire(Arc<dyn IrqWire>);

impl Trigger for Wire {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        if let Err(error) = self.0.pulse() {
            guest_warn!("serial interrupt lost: {error}");
        }
        Ok(())
    }
}

struct Output(Box<dyn SerialSink>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The state is followed by looking at registers, so nothing is needed here.
struct Unobserved;

impl SerialEvents for Unobserved {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {}
}

/// See the module's text.
pub struct Serial {
    uart: Uart<Wire, Unobserved, Output>,
    /// Copies of what was last written, for looking at without touching the divisor latch.
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    fifo_enabled: bool,
    /// The transmitter became empty, and no read of the identification has told so yet.
    transmitter_untold: bool,
}

impl Serial {
    /// Ports that it answers.
    pub const PORTS: u64 = 8;

    /// A port that sends to `out` and raises `irq`.
    #[must_use]
    pub fn new(irq: Arc<dyn IrqWire>, out: Box<dyn SerialSink>) -> Self {
        let mut uart = Uart::with_events(Wire(irq), Unobserved, Output(out));
        Self {
            interrupt_enable: uart.read(IER),
            line_control: uart.read(LCR),
            modem_control: uart.read(MCR),
            uart,
            fifo_enabled: false,
            transmitter_untold: false,
        }
    }

    /// Takes input for the guest: the first bytes of `input`, as many as [`Serial::room`] says.
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        if self.room() == 0 {
            return 0;
        }
        // The only errors are a full FIFO and one of the wire, which has none.
        self.uart.enqueue_raw_bytes(input).unwrap_or(0)
    }

    /// Bytes of input that there is room for; none in loopback mode.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.modem_control & MCR_LOOPBACK != 0 {
            return 0;
        }
        self.uart.fifo_capacity()
    }

    fn data_ready(&mut self) -> bool {
        self.uart.read(LSR) & LSR_DATA_READY != 0
    }

    /// One enabled cause, received data before transmitter empty (PC16550D data sheet, 8.6.3). Being
    /// told clears the latter; the former goes when the data has been read.
    fn identify(&mut self) -> u8 {
        let told = self.uart.read(IIR);
        self.transmitter_untold |= told & (IIR_NONE | IIR_TRANSMITTER) == IIR_TRANSMITTER;
        let fifo = if self.fifo_enabled { IIR_FIFO } else { 0 };
        if self.interrupt_enable & IER_RECEIVED != 0 && self.data_ready() {
            return fifo | IIR_RECEIVED;
        }
        if self.interrupt_enable & IER_TRANSMITTER != 0 && self.transmitter_untold {
            self.transmitter_untold = false;
            return fifo | IIR_TRANSMITTER;
        }
        fifo | IIR_NONE
    }

    /// Runs `access` and tells the sink if that made room for input where there was none to read.
    fn watch_input<R>(&mut self, access: impl FnOnce(&mut Self) -> R) -> R {
        let busy = self.data_ready() || self.room() == 0;
        let result = access(self);
        if busy && !self.data_ready() && self.room() != 0 {
            self.uart.writer_mut().0.input_drained();
        }
        result
    }

    fn read_register(&mut self, register: u8) -> u8 {
        match register {
            IIR => self.identify(),
            DATA => self.watch_input(|port| port.uart.read(DATA)),
            other => self.uart.read(other),
        }
    }

    fn write_register(&mut self, register: u8, value: u8) {
        match register {
            FCR => return self.watch_input(|port| port.control_fifo(value)),
            MCR => return self.watch_input(|port| port.control_modem(value)),
            IER if self.line_control & LCR_DLAB == 0 => self.interrupt_enable = value,
            LCR => self.line_control = value,
            _ => {}
        }
        self.pass(register, value);
    }

    fn control_modem(&mut self, value: u8) {
        self.modem_control = value;
        self.pass(MCR, value);
    }

    fn control_fifo(&mut self, value: u8) {
        self.fifo_enabled = value & FCR_ENABLE != 0;
        if value & FCR_CLEAR_RECEIVER == 0 {
            return;
        }
        // Reading is the only way to empty the FIFO, and is possible with the divisor latch off only.
        self.pass(LCR, self.line_control & !LCR_DLAB);
        for _ in 0..FIFO {
            self.uart.read(DATA);
        }
        self.pass(LCR, self.line_control);
    }

    /// `vm-superio` has two errors here, of the sink and of the wire, and ours have none.
    fn pass(&mut self, register: u8, value: u8) {
        let result: Result<(), _> = self.uart.write(register, value);
        debug_assert!(result.is_ok(), "neither sink nor wire can fail");
    }
}

impl BusDevice for Serial {
    fn name(&self) -> &str {
        "serial"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let register = register(offset)?;
        let len = data.len();
        let [value] = data else {
            return Err(AccessError::Size(len));
        };
        *value = self.read_register(register);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let register = register(offset)?;
        let &[value] = data else {
            return Err(AccessError::Size(data.len()));
        };
        self.write_register(register, value);
        Ok(())
    }
}

fn register(offset: u64) -> Result<u8, AccessError> {
    u8::try_from(offset)
        .ok()
        .filter(|register| u64::from(*register) < Serial::PORTS)
        .ok_or(AccessError::NoRegister(offset))
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("interrupt_enable", &self.interrupt_enable)
            .field("line_control", &self.line_control)
            .field("modem_control", &self.modem_control)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
