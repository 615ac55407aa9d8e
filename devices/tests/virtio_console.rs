//! The console behind the whole transport.
#![cfg(test)]
#![expect(clippy::cast_possible_truncation, reason = "small numbers of the test")]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use tdvmm_devices::virtio::console::{
    Console, ConsoleBackend, ConsoleHandle, LogFile, SocketServer, Stream,
};

mod driver;
use driver::pci::{Card, PATIENCE};
use driver::{Driver, ram};

const IN: u64 = 0x1_0000;
const OUT: u64 = 0x2_0000;

struct Guest {
    card: Card,
    input: Driver,
    output: Driver,
    handle: ConsoleHandle,
}

impl Guest {
    fn new(backend: Box<dyn ConsoleBackend>) -> Self {
        let console = Console::new(backend).unwrap();
        let handle = console.handle();
        let ram = ram(&[(0, 0x10_0000)]);
        let input = Driver::new(Arc::clone(&ram), 0x1000, 16);
        let output = Driver::new(ram, 0x2000, 16);
        let mut card = Card::new(Box::new(console), input.view());
        card.start(u64::MAX, &[&input, &output]);
        Guest {
            card,
            input,
            output,
            handle,
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.output.write(OUT, bytes);
        self.output.chain(0, &[(OUT, bytes.len() as u32, false)]);
        self.output.offer(0);
        self.card.kick(1);
        assert_eq!(self.card.collect(&mut self.output, 1), [(0, 0)]);
    }

    fn offer_input(&mut self, len: u32) {
        self.input.chain(0, &[(IN, len, true)]);
        self.input.offer(0);
        self.card.kick(0);
    }

    fn hear(&mut self) -> Vec<u8> {
        let (_, len) = self.card.collect(&mut self.input, 1)[0];
        self.input.read(IN, len as usize)
    }
}

fn pair() -> (UnixStream, Stream<UnixStream>) {
    let (host, guest) = UnixStream::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    (host, Stream::new(guest).unwrap())
}

#[test]
fn both_directions_work_also_after_a_reset() {
    let (mut host, stream) = pair();
    let mut guest = Guest::new(Box::new(stream));
    for _ in 0..2 {
        guest.say(b"login: ");
        let mut heard = [0; 7];
        host.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"login: ");
        guest.offer_input(64);
        host.write_all(b"root\n").unwrap();
        assert_eq!(guest.hear(), b"root\n");
        guest.card.set_status(0);
        let ram = Arc::clone(&guest.input.ram);
        guest.input = Driver::new(Arc::clone(&ram), 0x3000, 16);
        guest.output = Driver::new(ram, 0x4000, 16);
        guest.card.start(u64::MAX, &[&guest.input, &guest.output]);
    }
}

#[test]
fn input_waits_for_a_buffer_and_comes_in_pieces() {
    let (mut host, stream) = pair();
    let mut guest = Guest::new(Box::new(stream));
    host.write_all(b"abcdef").unwrap();
    guest.say(b"x");
    guest.offer_input(4);
    assert_eq!(guest.hear(), b"abcd");
    guest.offer_input(4);
    assert_eq!(guest.hear(), b"ef");
}

#[test]
fn new_size_is_told_by_a_configuration_interrupt() {
    let mut guest = Guest::new(Box::new(()));
    assert_eq!(guest.card.read_device(0), [80, 0, 25, 0, 1, 0, 0, 0]);
    let [before] = guest.card.read(0x15);
    guest.handle.resize(132, 50);
    let vectors = Arc::clone(&guest.card.vectors);
    vectors.wait_for(0, 1);
    assert_eq!(vectors.count(0), 1);
    assert_eq!(guest.card.read_device(0), [132, 0, 50, 0]);
    let [after] = guest.card.read(0x15);
    assert_ne!(before, after);
    // The same again is no change: neither the generation nor an interrupt says that it is one.
    guest.handle.resize(132, 50);
    assert_eq!(guest.card.read(0x15), [after]);
    guest.handle.resize(133, 50);
    vectors.wait_for(0, 2);
    assert_eq!(vectors.count(0), 2);
}

/// A backend that has a size and cannot tell when it changes.
struct WithSize {
    stream: Stream<UnixStream>,
    columns: Arc<AtomicU16>,
}

impl ConsoleBackend for WithSize {
    fn write(&mut self, bytes: &[u8]) {
        self.stream.write(bytes);
    }

    fn source(&self) -> Option<&dyn AsRawFd> {
        self.stream.source()
    }

    fn want_input(&mut self, wanted: bool) {
        self.stream.want_input(wanted);
    }

    fn poll(&mut self, space: &mut [u8]) -> usize {
        self.stream.poll(space)
    }

    fn size(&self) -> Option<(u16, u16)> {
        Some((self.columns.load(Ordering::SeqCst), 25))
    }
}

#[test]
fn size_of_a_backend_that_cannot_tell_is_looked_at_with_its_input() {
    let (mut host, stream) = pair();
    // As many as a console has from the beginning: a look at the backend before there is input tells the driver nothing.
    let columns = Arc::new(AtomicU16::new(80));
    let mut guest = Guest::new(Box::new(WithSize {
        stream,
        columns: Arc::clone(&columns),
    }));
    assert_eq!(guest.card.read_device(0), [80, 0, 25, 0]);
    guest.offer_input(4);
    columns.store(100, Ordering::SeqCst);
    host.write_all(b"a").unwrap();
    assert_eq!(guest.hear(), b"a");
    guest.card.vectors.wait_for(0, 1);
    assert_eq!(guest.card.read_device(0), [100, 0, 25, 0]);
}

#[test]
fn flood_that_nobody_reads_is_dropped_and_the_end_of_it_kept() {
    let (mut host, stream) = pair();
    let mut guest = Guest::new(Box::new(stream));
    for round in 0..600u32 {
        guest.say(&[round as u8; 4096]);
    }
    guest.say(b"the end");
    // The kernel's buffer, then the latest 64 KiB of what was kept. That leaves though the driver offers no buffer for
    // input and says nothing more.
    let mut heard = Vec::new();
    let mut piece = [0; 65536];
    while !heard.ends_with(b"the end") {
        let count = host.read(&mut piece).unwrap();
        heard.extend_from_slice(&piece[..count]);
    }
    assert!(heard.len() < 600 * 4096);
    guest.say(b"still here");
}

#[test]
fn chain_without_end_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut guest = Guest::new(Box::new(LogFile::open(&path, Some(1 << 20)).unwrap()));
    let parts: Vec<_> = (0..16).map(|_| (0, 0x10_0000, false)).collect();
    guest.output.chain(0, &parts);
    guest.output.offer(0);
    guest.card.kick(1);
    guest.card.collect(&mut guest.output, 1);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing was rotated away"
    );
}

#[test]
fn socket_takes_one_peer_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let mut guest = Guest::new(Box::new(SocketServer::new(listener).unwrap()));
    guest.say(b"before");
    guest.offer_input(16);
    for round in 0..3 {
        let mut host = UnixStream::connect(&path).unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        host.write_all(&[b'0' + round]).unwrap();
        assert_eq!(guest.hear(), [b'0' + round]);
        if round == 0 {
            let mut heard = [0; 6];
            host.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"before");
        }
        guest.say(b"hello");
        let mut heard = [0; 5];
        host.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        drop(host);
        guest.offer_input(16);
    }
}

#[test]
fn peer_of_a_driver_without_a_buffer_is_met_and_its_input_waits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let mut guest = Guest::new(Box::new(SocketServer::new(listener).unwrap()));
    guest.say(b"before");
    let mut host = UnixStream::connect(&path).unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut heard = [0; 6];
    host.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"before");
    host.write_all(b"root").unwrap();
    guest.offer_input(16);
    assert_eq!(guest.hear(), b"root");
}

#[test]
fn peer_that_hangs_up_ends_the_input_and_not_the_output() {
    let (host, stream) = pair();
    let mut guest = Guest::new(Box::new(stream));
    guest.offer_input(16);
    drop(host);
    for _ in 0..100 {
        guest.say(b"nobody hears this");
    }
    assert_eq!(guest.input.used_index(), 0);
    assert_eq!(guest.card.status(), 15);
}
