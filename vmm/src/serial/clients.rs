//! Clients of the serial port's socket: one at a time sends and hears, and what those sent who have gone
//! is read to its end.
//!
//! A client that sends and goes at once leaves its input in the socket while the guest is behind. Such a one
//! is waited for no longer, as it would be told over and over that it has gone; the guest's reading moves
//! its input on. A newcomer's own is read after that.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

use event_manager::{EventOps, EventSet, Events};

use super::backend::ClientSink;
use super::input::{CHUNK, Input};

/// Those who have gone and are not read to the end, at most. The input of one more is lost.
const LEAVING_MAX: usize = 16;

/// See the module's text.
#[derive(Debug)]
pub struct Clients {
    input: Input,
    sink: ClientSink,
    client: Option<UnixStream>,
    /// In the order of their going.
    leaving: VecDeque<UnixStream>,
}

/// What a look at a stream has brought.
enum Passed {
    /// Something that the guest has taken.
    On,
    /// Something that waits for the guest.
    Held,
    /// Nothing for now.
    Nothing,
    /// The end.
    End,
}

impl Clients {
    /// Clients whose input goes to `input` and who hear what `sink` is given.
    #[must_use]
    pub fn new(input: Input, sink: ClientSink) -> Self {
        Self {
            input,
            sink,
            client: None,
            leaving: VecDeque::new(),
        }
    }

    /// Takes `stream` as the client, whose events have `token`. Where there is one, the newcomer sees its connection
    /// closed at once.
    pub fn welcome(&mut self, stream: UnixStream, token: u32, ops: &mut EventOps) {
        if self.client.is_some() {
            return;
        }
        let ours = stream
            .set_nonblocking(true)
            .and_then(|()| stream.try_clone());
        let turn = self.leaving.is_empty() && self.input.advance();
        let events = Events::with_data(&stream, token, wanted(turn));
        if let Ok(ours) = ours
            && ops.add(events).is_ok()
        {
            self.sink.connect(ours);
            self.client = Some(stream);
        }
    }

    /// The client has sent something, or has gone.
    pub fn on_event(&mut self, events: &Events, ops: &mut EventOps) {
        let Some(stream) = &mut self.client else {
            return;
        };
        let (set, token) = (events.event_set(), events.data());
        if set.intersects(EventSet::HANG_UP | EventSet::ERROR) && !set.contains(EventSet::IN) {
            if let Some(gone) = self.let_go(ops)
                && self.leaving.len() < LEAVING_MAX
            {
                self.leaving.push_back(gone);
            }
            return self.advance(token, ops);
        }
        match pass(stream, &mut self.input) {
            Passed::On | Passed::Nothing => {}
            // Until the guest has caught up; that the client has gone is told all the same.
            Passed::Held => drop(ops.modify(Events::with_data(&*stream, token, wanted(false)))),
            Passed::End => drop(self.let_go(ops)),
        }
    }

    /// The guest has read all input: gives it what has been waiting for that. `token` is the client's.
    pub fn advance(&mut self, token: u32, ops: &mut EventOps) {
        while self.input.advance() {
            let Some(gone) = self.leaving.front_mut() else {
                if let Some(client) = &self.client {
                    let _ = ops.modify(Events::with_data(client, token, wanted(true)));
                }
                return;
            };
            if let Passed::Nothing | Passed::End = pass(gone, &mut self.input) {
                self.leaving.pop_front();
            }
        }
    }

    /// Neither waits for the client any more nor sends it anything.
    fn let_go(&mut self, ops: &mut EventOps) -> Option<UnixStream> {
        let client = self.client.take()?;
        let _ = ops.remove(Events::empty(&client));
        self.sink.disconnect();
        Some(client)
    }
}

fn wanted(input: bool) -> EventSet {
    match input {
        true => EventSet::IN,
        false => EventSet::empty(),
    }
}

/// Reads once, and gives that to the guest.
fn pass(stream: &mut UnixStream, input: &mut Input) -> Passed {
    let mut sent = [0; CHUNK];
    match stream.read(&mut sent) {
        Ok(len) if len > 0 => match input.offer(sent.get(..len).unwrap_or_default()) {
            true => Passed::On,
            false => Passed::Held,
        },
        Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
            Passed::Nothing
        }
        _ => Passed::End,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
    use tdvmm_devices::bus::BusDevice;
    use tdvmm_devices::irq::IrqWire;
    use tdvmm_devices::serial::Serial;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::super::backend::WithInput;
    use super::*;

    const CLIENT: u32 = 0;
    const DRAINED: u32 = 1;
    const NEWCOMER: u32 = 2;

    #[derive(Debug)]
    struct Unwired;

    impl IrqWire for Unwired {
        fn pulse(&self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Loop {
        clients: Clients,
        drained: Arc<EventFd>,
        /// Written when there is a newcomer.
        comes: EventFd,
        newcomers: Arc<Mutex<VecDeque<UnixStream>>>,
    }

    impl MutEventSubscriber for Loop {
        fn init(&mut self, ops: &mut EventOps) {
            for (event, token) in [(&*self.drained, DRAINED), (&self.comes, NEWCOMER)] {
                let events = Events::with_data(event, token, EventSet::IN);
                ops.add(events).unwrap();
            }
        }

        fn process(&mut self, events: Events, ops: &mut EventOps) {
            match events.data() {
                CLIENT => self.clients.on_event(&events, ops),
                DRAINED => {
                    self.drained.read().unwrap();
                    self.clients.advance(CLIENT, ops);
                }
                _ => {
                    self.comes.read().unwrap();
                    let newcomer = self.newcomers.lock().unwrap().pop_front().unwrap();
                    self.clients.welcome(newcomer, CLIENT, ops);
                }
            }
        }
    }

    struct Bench {
        manager: EventManager<Loop>,
        port: Arc<Mutex<Serial>>,
        comes: EventFd,
        newcomers: Arc<Mutex<VecDeque<UnixStream>>>,
    }

    impl Bench {
        fn new() -> Self {
            let drained = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            let comes = EventFd::new(EFD_NONBLOCK).unwrap();
            let sink = ClientSink::default();
            let out = WithInput {
                sink: sink.clone(),
                drained: Arc::clone(&drained),
            };
            let port = Serial::new(Arc::new(Unwired), Box::new(out));
            let port = Arc::new(Mutex::new(port));
            let newcomers = Arc::default();
            let mut manager = EventManager::new().unwrap();
            manager.add_subscriber(Loop {
                clients: Clients::new(Input::new(Arc::clone(&port)), sink),
                drained,
                comes: comes.try_clone().unwrap(),
                newcomers: Arc::clone(&newcomers),
            });
            Bench {
                manager,
                port,
                comes,
                newcomers,
            }
        }

        /// All that is to be done is done when this returns; a loop without end is not.
        fn run(&mut self) {
            for _ in 0..100 {
                if self.manager.run_with_timeout(0).unwrap() == 0 {
                    return;
                }
            }
            panic!("events without end");
        }

        /// A client comes, sends and goes.
        fn visit(&mut self, text: &[u8]) {
            let (mut client, ours) = UnixStream::pair().unwrap();
            self.newcomers.lock().unwrap().push_back(ours);
            self.comes.write(1).unwrap();
            self.run();
            client.write_all(text).unwrap();
            self.run();
            drop(client);
            self.run();
        }

        /// What the guest reads until there is no more.
        fn read_all(&mut self) -> Vec<u8> {
            let mut read = Vec::new();
            loop {
                let count = read.len();
                let register = |offset| {
                    let mut value = [0];
                    let mut port = self.port.lock().unwrap();
                    port.read(offset, &mut value).unwrap();
                    value[0]
                };
                while register(5) & 1 != 0 {
                    read.push(register(0));
                }
                if read.len() == count {
                    return read;
                }
                self.run();
            }
        }
    }

    #[test]
    fn client_that_sends_and_goes_loses_none_of_its_input() {
        let mut bench = Bench::new();
        let text: Vec<u8> = (0..=u8::MAX).cycle().take(2048).collect();
        bench.visit(&text);
        assert_eq!(bench.read_all(), text);
        bench.visit(b"another");
        assert_eq!(bench.read_all(), b"another");
    }

    #[test]
    fn clients_that_go_one_after_the_other_are_read_in_their_order() {
        let mut bench = Bench::new();
        let mut sent = Vec::new();
        for letter in b"abcd" {
            bench.visit(&[*letter; 1000]);
            sent.extend([*letter; 1000]);
        }
        assert_eq!(bench.read_all(), sent);
    }

    #[test]
    fn input_of_too_many_clients_that_have_gone_is_dropped() {
        let mut bench = Bench::new();
        for _ in 0..LEAVING_MAX + 5 {
            bench.visit(&[b'x'; 1000]);
        }
        assert_eq!(bench.read_all().len(), LEAVING_MAX * 1000);
    }
}
