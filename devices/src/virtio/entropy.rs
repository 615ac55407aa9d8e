//! An entropy source (virtio 1.3, 5.4): fills what the driver offers with the host's random bytes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::chain::Chain;
use super::device::{ActivateError, Activation, DeviceType, Token, VirtioDevice, Worker};
use super::queue::{F_EVENT_IDX, F_INDIRECT_DESC, QueueFault};
use super::served::{Served, ServedQueue, Server};
use crate::guest_warn;

const KICK: Token = Token(0);
/// A driver gets at most so many bytes for a buffer; it asks again for more.
const PIECE: usize = 4096;

/// The resting half.
#[derive(Debug)]
pub struct Entropy {
    source: Arc<File>,
}

impl Entropy {
    /// Random bytes from the kernel.
    ///
    /// # Errors
    ///
    /// If `/dev/urandom` cannot be opened.
    pub fn open() -> io::Result<Self> {
        Ok(Self::from_file(File::open("/dev/urandom")?))
    }

    /// Random bytes from `source`, which never ends and never blocks.
    #[must_use]
    pub fn from_file(source: File) -> Self {
        Entropy {
            source: Arc::new(source),
        }
    }
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut with: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let served = ServedQueue::take_from(&mut with, 0)?;
        let server = EntropyServer {
            source: Arc::clone(&self.source),
            chain: served.queue.new_chain(),
            bytes: Box::new([0; PIECE]),
        };
        Ok(vec![Box::new(EntropyWorker { served, server })])
    }
}

struct EntropyWorker {
    served: ServedQueue,
    server: EntropyServer,
}

struct EntropyServer {
    source: Arc<File>,
    chain: Chain,
    bytes: Box<[u8; PIECE]>,
}

impl Worker for EntropyWorker {
    fn event_sources(&self) -> Vec<(Token, &dyn AsRawFd)> {
        vec![(KICK, self.served.kick_source())]
    }

    fn on_event(&mut self, _: Token) -> Result<(), QueueFault> {
        self.served.take_kick();
        self.served.serve(&mut self.server)
    }
}

impl Server for EntropyServer {
    fn chain(&mut self) -> &mut Chain {
        &mut self.chain
    }

    fn serve(&mut self) -> Result<Served, QueueFault> {
        let wanted = usize::try_from(self.chain.writable_len()).unwrap_or(PIECE);
        let piece = self.bytes.get_mut(..wanted.min(PIECE)).unwrap_or_default();
        if piece.is_empty() {
            return Err(QueueFault::Request("no room for random bytes"));
        }
        let count = (&*self.source).read(piece).unwrap_or_else(|error| {
            guest_warn!("no random bytes: {error}");
            0
        });
        let bytes = piece.get(..count).unwrap_or_default();
        let done = self.chain.write_at(0, bytes);
        Ok(Served::Done(u32::try_from(done).unwrap_or(0)))
    }
}
