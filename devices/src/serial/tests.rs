use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Default)]
struct Edges(AtomicUsize);

impl IrqWire for Edges {
    fn pulse(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A wire that is cut.
#[derive(Debug)]
struct Cut;

impl IrqWire for Cut {
    fn pulse(&self) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

#[derive(Clone, Default)]
struct Terminal {
    shown: Arc<Mutex<Vec<u8>>>,
    drained: Arc<AtomicUsize>,
}

impl SerialSink for Terminal {
    fn write(&mut self, bytes: &[u8]) {
        self.shown.lock().unwrap().extend(bytes);
    }
    fn input_drained(&mut self) {
        self.drained.fetch_add(1, Ordering::Relaxed);
    }
}

struct Port {
    serial: Serial,
    edges: Arc<Edges>,
    terminal: Terminal,
}

impl Port {
    fn new() -> Self {
        let edges = Arc::new(Edges::default());
        let terminal = Terminal::default();
        let wire: Arc<dyn IrqWire> = Arc::clone(&edges) as _;
        Self {
            serial: Serial::new(wire, Box::new(terminal.clone())),
            edges,
            terminal,
        }
    }

    fn read(&mut self, register: u8) -> u8 {
        let mut data = [0];
        self.serial.read(register.into(), &mut data).unwrap();
        data[0]
    }

    fn write(&mut self, register: u8, value: u8) {
        self.serial.write(register.into(), &[value]).unwrap();
    }

    /// Edges since the last time.
    fn edges(&self) -> usize {
        self.edges.0.swap(0, Ordering::Relaxed)
    }

    fn drained(&self) -> usize {
        self.terminal.drained.swap(0, Ordering::Relaxed)
    }

    fn shown(&self) -> Vec<u8> {
        std::mem::take(&mut self.terminal.shown.lock().unwrap())
    }
}

#[test]
fn polling_driver_finds_the_transmitter_always_empty() {
    let mut port = Port::new();
    for byte in b"hello" {
        assert_eq!(port.read(LSR) & 0x60, 0x60);
        port.write(DATA, *byte);
    }
    assert_eq!(port.shown(), b"hello");
    assert_eq!(port.edges(), 0, "no interrupt was asked for");
}

#[test]
fn probe_of_linux_finds_a_16550a() {
    let mut port = Port::new();
    port.write(IER, 0);
    assert_eq!(port.read(IER), 0);
    port.write(IER, 0x0f);
    assert_eq!(port.read(IER) & 0x0f, 0x0f);
    port.write(IER, 0);
    // Loopback: RTS and OUT2 come back as CTS and DCD.
    port.write(MCR, 0x1a);
    assert_eq!(port.read(6) & 0xf0, 0x90);
    port.write(MCR, 0);
    assert_eq!(port.read(IIR) >> 6, 0, "FIFO off");
    port.write(FCR, FCR_ENABLE);
    assert_eq!(port.read(IIR) >> 6, 3, "16550A");
    port.write(7, 0x5a);
    assert_eq!(port.read(7), 0x5a);
}

#[test]
fn divisor_latch_hides_data_and_interrupt_enable() {
    let mut port = Port::new();
    port.write(IER, 0x05);
    port.write(LCR, 0x83);
    port.write(DATA, 0x01);
    port.write(IER, 0x02);
    assert_eq!((port.read(DATA), port.read(IER)), (0x01, 0x02));
    port.write(LCR, 0x03);
    assert_eq!(port.read(IER), 0x05);
    assert!(port.shown().is_empty());
    assert_eq!(port.edges(), 0);
}

#[test]
fn transmitter_interrupt_is_an_edge_when_enabled_and_after_a_byte() {
    let mut port = Port::new();
    port.write(FCR, FCR_ENABLE);
    port.write(IER, IER_TRANSMITTER);
    assert_eq!(port.edges(), 1);
    assert_eq!(port.read(IIR), 0xc2);
    assert_eq!(port.read(IIR), 0xc1, "being told clears it");
    port.write(DATA, b'x');
    assert_eq!(port.edges(), 1);
    assert_eq!(port.read(IIR), 0xc2);
    port.write(IER, 0);
    port.write(IER, IER_TRANSMITTER);
    assert_eq!(port.edges(), 1, "enabling it again is an edge again");
}

#[test]
fn disabled_cause_is_not_told() {
    let mut port = Port::new();
    port.write(IER, IER_TRANSMITTER | IER_RECEIVED);
    port.serial.enqueue(b"a");
    port.write(IER, 0);
    assert_eq!(port.read(IIR) & 0x0f, IIR_NONE);
}

#[test]
fn received_data_comes_before_the_transmitter_and_neither_is_lost() {
    let mut port = Port::new();
    port.write(IER, IER_TRANSMITTER | IER_RECEIVED);
    port.serial.enqueue(b"ab");
    assert!(port.edges() >= 1);
    assert_eq!(port.read(IIR), IIR_RECEIVED);
    assert_eq!(port.read(IIR), IIR_RECEIVED, "until it is read");
    assert_eq!((port.read(DATA), port.read(LSR) & 1), (b'a', 1));
    assert_eq!(port.read(IIR), IIR_RECEIVED);
    assert_eq!((port.read(DATA), port.read(LSR) & 1), (b'b', 0));
    assert_eq!(port.read(IIR), IIR_TRANSMITTER);
    assert_eq!(port.read(IIR), IIR_NONE);
}

#[test]
fn input_that_came_while_disabled_interrupts_when_enabled() {
    let mut port = Port::new();
    port.serial.enqueue(b"a");
    assert_eq!(port.edges(), 0);
    port.write(IER, IER_RECEIVED);
    assert_eq!(port.edges(), 1);
    assert_eq!(port.read(IIR), IIR_RECEIVED);
}

#[test]
fn input_beyond_the_fifo_stays_with_the_caller_who_is_told_when_to_go_on() {
    let mut port = Port::new();
    assert_eq!(port.serial.enqueue(&[7; 100]), 64);
    assert_eq!((port.serial.enqueue(&[7]), port.serial.room()), (0, 0));
    for _ in 0..63 {
        assert_eq!(port.read(DATA), 7);
    }
    assert_eq!(port.drained(), 0);
    port.read(DATA);
    assert_eq!((port.drained(), port.serial.room()), (1, 64));
    port.read(DATA);
    assert_eq!(port.drained(), 0, "only once");
}

#[test]
fn receiver_reset_empties_the_fifo_and_leaves_the_divisor_alone() {
    let mut port = Port::new();
    assert_eq!(port.serial.enqueue(&[7; FIFO + 1]), FIFO);
    port.write(LCR, 0x83);
    port.write(DATA, 0x0c);
    port.write(FCR, FCR_ENABLE | FCR_CLEAR_RECEIVER);
    assert_eq!((port.read(LCR), port.read(DATA)), (0x83, 0x0c));
    assert_eq!(port.read(LSR) & 1, 0);
    assert_eq!((port.drained(), port.serial.room()), (1, 64));
}

#[test]
fn loopback_gives_back_what_is_sent_and_takes_no_input() {
    let mut port = Port::new();
    port.write(MCR, MCR_LOOPBACK);
    assert_eq!((port.serial.room(), port.serial.enqueue(b"in")), (0, 0));
    port.write(DATA, 0xae);
    assert_eq!((port.read(LSR) & 1, port.read(DATA)), (1, 0xae));
    assert!(port.shown().is_empty());
    assert_eq!(port.drained(), 0);
    port.write(MCR, 0);
    assert_eq!((port.drained(), port.serial.enqueue(b"in")), (1, 2));
}

#[test]
fn wire_that_is_cut_loses_interrupts_and_nothing_else() {
    let terminal = Terminal::default();
    let mut serial = Serial::new(Arc::new(Cut), Box::new(terminal.clone()));
    serial.write(1, &[3]).unwrap();
    serial.write(0, b"x").unwrap();
    assert_eq!(serial.enqueue(b"y"), 1);
    assert_eq!(*terminal.shown.lock().unwrap(), b"x");
}

#[test]
fn access_that_is_no_byte_or_no_register_is_refused() {
    let mut port = Port::new();
    let error = port.serial.read(0, &mut [0; 2]).unwrap_err();
    assert_eq!(error, AccessError::Size(2));
    assert_eq!(port.serial.write(7, &[]), Err(AccessError::Size(0)));
    let error = port.serial.write(8, &[0]).unwrap_err();
    assert_eq!(error, AccessError::NoRegister(8));
    let error = port.serial.read(0x100, &mut [0]).unwrap_err();
    assert_eq!(error, AccessError::NoRegister(0x100));
}

#[derive(Clone, Debug)]
enum Step {
    Read(u8),
    Write(u8, u8),
    Input(Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_u8..8).prop_map(Step::Read),
        (0_u8..8, any::<u8>()).prop_map(|(register, value)| Step::Write(register, value)),
        proptest::collection::vec(any::<u8>(), 0..100).prop_map(Step::Input),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// An edge-triggered driver never waits for good: when something enabled is pending that it was
    /// not told of, an edge has come since it last saw "none".
    #[test]
    fn pending_cause_always_had_its_edge(steps in steps()) {
        let mut port = Port::new();
        for step in steps {
            let none_before = port.read(IIR) & IIR_NONE != 0;
            port.edges();
            match step {
                Step::Read(register) => { port.read(register); }
                Step::Write(register, value) => port.write(register, value),
                Step::Input(bytes) => { port.serial.enqueue(&bytes); }
            }
            let edges = port.edges();
            if none_before && port.read(IIR) & IIR_NONE == 0 {
                prop_assert!(edges > 0);
            }
        }
    }

    #[test]
    fn input_arrives_in_order_and_whole(chunks in proptest::collection::vec(
        (proptest::collection::vec(any::<u8>(), 0..100), 0_usize..100), 0..20,
    )) {
        let mut port = Port::new();
        let mut expected = VecDeque::new();
        for (bytes, reads) in chunks {
            let taken = port.serial.enqueue(&bytes);
            expected.extend(&bytes[..taken]);
            for _ in 0..reads {
                let ready = port.read(LSR) & 1 != 0;
                prop_assert_eq!(ready, !expected.is_empty());
                if ready {
                    prop_assert_eq!(Some(port.read(DATA)), expected.pop_front());
                }
            }
        }
    }
}
