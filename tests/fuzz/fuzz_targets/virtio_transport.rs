//! Any accesses to the registers of a virtio function: none does harm, and a reset always ends.

#![no_main]

use std::io;
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tdvmm_devices::dma::DmaView;
use tdvmm_devices::io_thread::IoThread;
use tdvmm_devices::irq::Msi;
use tdvmm_devices::pci::{MsixVectors, PciDevice};
use tdvmm_devices::virtio::entropy::Entropy;
use tdvmm_devices::virtio::transport::{MemoryAccess, NotifyRegistry, VirtioPciDevice, Wiring};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

#[derive(Debug)]
struct Nothing;

impl MsixVectors for Nothing {
    fn route(&self, _: u16, _: Msi) -> io::Result<()> {
        Ok(())
    }
    fn fire(&self, _: u16) -> io::Result<()> {
        Ok(())
    }
}

impl NotifyRegistry for Nothing {
    fn place(&self, _: u16, _: &EventFd, _: Option<u64>, _: Option<u64>) {}
}

/// What a driver does, with any bytes where it would have its own.
#[derive(Arbitrary, Debug)]
enum Step {
    Common {
        offset: u8,
        data: [u8; 8],
        log: u8,
    },
    Status(u8),
    Features(u64),
    Queue {
        desc: u32,
        avail: u32,
        used: u32,
    },
    Kick(u8),
    Bar {
        offset: u16,
        data: [u8; 8],
        len: u8,
    },
    Read {
        offset: u16,
        len: u8,
    },
    Config {
        register: u8,
        data: [u8; 4],
        log: u8,
    },
    Moved,
}

struct Machine {
    view: DmaView,
    io: IoThread,
}

fuzz_target!(|steps: Vec<Step>| {
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        Machine {
            view: DmaView::all_shared(Arc::new(ram)),
            io: IoThread::spawn("tdvmm-io", || ()).unwrap(),
        }
    });
    let wiring = Wiring {
        memory: machine.view.clone(),
        vectors: Arc::new(Nothing),
        notify: Arc::new(Nothing),
        io_threads: vec![machine.io.handle()],
        access: MemoryAccess::Direct,
    };
    let mut function = VirtioPciDevice::new(Box::new(Entropy::open().unwrap()), wiring).unwrap();
    function.config_mut().place_bar(0, 0x8000_0000);
    function.bars_moved();
    for step in steps.iter().take(256) {
        match *step {
            Step::Common { offset, data, log } => {
                let len = 1 << (log % 4);
                function.bar_write(0, u64::from(offset % 0x40), &data[..len]);
            }
            Step::Status(value) => {
                let value = [0, 1, 3, 11, 15, 128, value][usize::from(value % 7)];
                function.bar_write(0, 0x14, &[value]);
            }
            Step::Features(bits) => {
                let accepted = 1 << 32 | bits & (3 << 28);
                for (half, value) in [(0u32, accepted as u32), (1, (accepted >> 32) as u32)] {
                    function.bar_write(0, 0x08, &half.to_le_bytes());
                    function.bar_write(0, 0x0c, &value.to_le_bytes());
                }
            }
            Step::Queue { desc, avail, used } => {
                for (at, value) in [(0x20, desc), (0x28, avail), (0x30, used)] {
                    let value = u64::from(value & 0x1_fff0);
                    function.bar_write(0, at, &value.to_le_bytes());
                }
                function.bar_write(0, 0x1c, &[1, 0]);
            }
            Step::Kick(queue) => function.bar_write(0, 0x3000 + u64::from(queue), &[0, 0]),
            Step::Bar { offset, data, len } => {
                function.bar_write(0, offset.into(), &data[..usize::from(len % 9)]);
            }
            Step::Read { offset, len } => {
                let mut data = [0; 8];
                function.bar_read(0, offset.into(), &mut data[..usize::from(len % 9)]);
            }
            Step::Config {
                register,
                data,
                log,
            } => {
                let len = 1 << (log % 3);
                let register = u16::from(register) & !3;
                function.config_write(register, &data[..len]);
                let mut back = [0; 4];
                function.config_read(register, &mut back[..len]);
            }
            Step::Moved => function.bars_moved(),
        }
    }
    function.bar_write(0, 0x14, &[0]);
    let mut status = [0xff];
    function.bar_read(0, 0x14, &mut status);
    assert_eq!(status, [0]);
});
