//! Wiring: the devices of the plan, put on the two buses.

use std::fs::File;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tdvmm_arch::map::{self, gsi};
use tdvmm_devices::bus::{BusBuilder, MapError, SharedDevice};
use tdvmm_devices::clock::HostClock;
use tdvmm_devices::debugcon::DebugCon;
use tdvmm_devices::dma::DmaView;
use tdvmm_devices::fwcfg::{FwCfg, FwCfgError};
use tdvmm_devices::io_thread::IoThread;
use tdvmm_devices::ioapic::IoApic;
use tdvmm_devices::pci::{
    BarError, ConfigMechanism1, Ecam, HostBridge, LpcBridge, MmioWindow, PciRoot, SlotError,
};
use tdvmm_devices::pit::StoppedTimer;
use tdvmm_devices::pm::PowerBlock;
use tdvmm_devices::power::PowerSink;
use tdvmm_devices::reset::{I8042, Port92, ResetControl};
use tdvmm_devices::rtc::Rtc;
use tdvmm_devices::serial::{Serial, SerialSink};
use tdvmm_devices::virtio::device::VirtioDevice;
use tdvmm_devices::virtio::transport::{MemoryAccess, TransportError};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::events::InputSource;
use super::functions;
use crate::config::SerialBackend;
use crate::kvm::KvmError;
use crate::kvm::routes::IrqRoutes;
use crate::kvm::vm::VmHandles;
use crate::plan::Plan;
use crate::plan::platform::{Device, Place, Space};
use crate::serial::backend::{ClientSink, FileSink, StreamSink, WithInput};
use crate::serial::clients::Clients;
use crate::serial::input::Input;
use crate::serial::output::StandardOutput;
use crate::serial::terminal::EscapeFilter;
use crate::vcpu::run_loop::{Buses, TdServices};

/// The devices cannot be wired.
#[derive(Debug, Error)]
pub enum BoardError {
    /// The address map is wrong: a mistake of this program.
    #[error("the address map is wrong")]
    Map(#[source] MapError),
    /// The PCI bus is wrong: a mistake of this program.
    #[error("the PCI bus is wrong")]
    Slot(#[source] SlotError),
    /// The memory of PCI devices does not fit its window.
    #[error("the PCI devices need more address space than there is")]
    Bars(#[source] BarError),
    /// The contents of fw_cfg cannot be offered: a mistake of this program.
    #[error("cannot offer the contents of fw_cfg")]
    FwCfg(#[source] FwCfgError),
    /// KVM refuses an interrupt.
    #[error("cannot wire an interrupt")]
    Irq(#[source] KvmError),
    /// The backend of the serial port cannot be opened.
    #[error("--serial {}: cannot be opened", path.display())]
    Serial {
        /// The file or socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread for a device cannot be started.
    #[error("cannot start an I/O thread")]
    IoThread(#[source] std::io::Error),
    /// A virtio device cannot be wired.
    #[error("cannot wire a virtio device")]
    Virtio(#[source] TransportError),
    /// An event file descriptor cannot be made.
    #[error("cannot make an event file descriptor")]
    EventFd(#[source] std::io::Error),
}

/// The wired devices.
#[derive(Debug)]
pub struct Board {
    /// Where vCPU exits are served.
    pub buses: Arc<Buses>,
    /// Where input for the serial port comes from.
    pub input: InputSource,
    /// Where the work of virtio devices is done; it stops when they are dropped.
    pub io_threads: Vec<IoThread>,
}

impl Board {
    /// Wires the devices of `plan`, of which `devices` are behind the PCI functions. They see guest memory
    /// through `memory`, `td` serves a TD's exits, and what the guest asks of the machine goes to `power`.
    ///
    /// # Errors
    ///
    /// If a backend cannot be opened or KVM refuses an interrupt.
    pub fn wire(
        plan: &Plan,
        devices: Vec<Box<dyn VirtioDevice>>,
        handles: &VmHandles,
        memory: &DmaView,
        td: Option<Arc<dyn TdServices>>,
        power: &Arc<dyn PowerSink>,
    ) -> Result<Self, BoardError> {
        let routes = &handles.routes;
        let mut root = pci_root()?;
        let access = match td {
            Some(_) => MemoryAccess::Restricted,
            None => MemoryAccess::Direct,
        };
        let io_threads = functions::wire(&mut root, &plan.pci, devices, handles, memory, access)?;
        let pci = Arc::new(root);
        if plan.firmware().is_none() {
            pci.assign_bars(map::PCI_WINDOW.start().0, map::PCI_WINDOW.len())
                .map_err(BoardError::Bars)?;
        }
        let (mut ports, mut mmio) = (BusBuilder::default(), BusBuilder::default());
        let mut input = InputSource::None;
        for Place {
            device,
            space,
            base,
            len,
        } in &plan.platform
        {
            let power = Arc::clone(power);
            let pci = Arc::clone(&pci);
            let device: SharedDevice = match device {
                Device::Com1 => {
                    let wired = wire_serial(&plan.serial, routes)?;
                    input = wired.input;
                    wired.port
                }
                Device::Rtc => shared(Rtc::new(Box::new(HostClock::new()))),
                Device::Timer => shared(StoppedTimer),
                Device::I8042 => shared(I8042::new(power)),
                Device::Port92 => shared(Port92::new(power)),
                Device::PciConfig => shared(ConfigMechanism1::new(pci, ResetControl::new(power))),
                Device::PowerBlock => shared(PowerBlock::new(power, Box::new(HostClock::new()))),
                Device::FwCfg => shared(fw_cfg(plan, memory)?),
                Device::DebugCon => shared(DebugCon::new()),
                Device::IoApic => shared(IoApic::new(Arc::<IrqRoutes>::clone(routes))),
                Device::Ecam => shared(Ecam::new(pci)),
                Device::PciWindow => shared(MmioWindow::new(pci, *base)),
            };
            let bus = match space {
                Space::Port => &mut ports,
                Space::Memory => &mut mmio,
            };
            *bus = std::mem::take(bus)
                .insert(*base, *len, device)
                .map_err(BoardError::Map)?;
        }
        let buses = Buses {
            ports: ports.build(),
            mmio: mmio.build(),
            td,
        };
        Ok(Self {
            buses: Arc::new(buses),
            input,
            io_threads,
        })
    }
}

fn shared<D: tdvmm_devices::bus::BusDevice + 'static>(device: D) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

fn fw_cfg(plan: &Plan, memory: &DmaView) -> Result<FwCfg, BoardError> {
    let contents = plan
        .firmware()
        .map(|firmware| firmware.fw_cfg.clone())
        .unwrap_or_default();
    FwCfg::build(contents.items, contents.files, memory.clone()).map_err(BoardError::FwCfg)
}

fn pci_root() -> Result<PciRoot, BoardError> {
    let mut root = PciRoot::new();
    root.insert(HostBridge::SLOT, Arc::new(Mutex::new(HostBridge::new())))
        .map_err(BoardError::Slot)?;
    let lpc = LpcBridge::new(map::port::PMBASE);
    root.insert(LpcBridge::SLOT, Arc::new(Mutex::new(lpc)))
        .map_err(BoardError::Slot)?;
    Ok(root)
}

struct WiredSerial {
    port: SharedDevice,
    input: InputSource,
}

fn wire_serial(
    backend: &SerialBackend,
    routes: &Arc<IrqRoutes>,
) -> Result<WiredSerial, BoardError> {
    let irq = routes.wire(gsi::COM1).map_err(BoardError::Irq)?;
    let port = |sink: Box<dyn SerialSink>| Arc::new(Mutex::new(Serial::new(irq, sink)));
    Ok(match backend {
        SerialBackend::Off | SerialBackend::Null => WiredSerial {
            port: port(Box::new(())),
            input: InputSource::None,
        },
        SerialBackend::File(path) => {
            let (file, regular) = open_output(path).map_err(|source| unopened(path, source))?;
            let sink: Box<dyn SerialSink> = if regular {
                Box::new(FileSink(file))
            } else {
                Box::new(StreamSink::new(file))
            };
            WiredSerial {
                port: port(sink),
                input: InputSource::None,
            }
        }
        SerialBackend::Tty => {
            let (theirs, drained) = event_pair()?;
            let sink = StreamSink::new(StandardOutput::open());
            let port = port(Box::new(WithInput {
                sink,
                drained: theirs,
            }));
            let escape = std::io::IsTerminal::is_terminal(&std::io::stdin());
            let input = InputSource::Stdin {
                input: Input::new(Arc::clone(&port)),
                drained,
                escape: escape.then(EscapeFilter::default),
            };
            WiredSerial { port, input }
        }
        SerialBackend::Socket(path) => {
            let (theirs, drained) = event_pair()?;
            let listener = listen(path).map_err(|source| unopened(path, source))?;
            let sink = ClientSink::default();
            let port = port(Box::new(WithInput {
                sink: sink.clone(),
                drained: theirs,
            }));
            let input = Input::new(Arc::clone(&port));
            let input = InputSource::Socket {
                drained,
                listener,
                clients: Clients::new(input, sink),
            };
            WiredSerial { port, input }
        }
    })
}

fn unopened(path: &Path, source: std::io::Error) -> BoardError {
    BoardError::Serial {
        path: path.to_owned(),
        source,
    }
}

fn event_pair() -> Result<(EventFd, EventFd), BoardError> {
    let event =
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(BoardError::EventFd)?;
    let other = event.try_clone().map_err(BoardError::EventFd)?;
    Ok((other, event))
}

/// Opens a file for output, and tells whether it is a regular one. Another (a FIFO, a device, the output of
/// this process) may have a reader that stalls, so it is opened not to block.
fn open_output(path: &Path) -> std::io::Result<(File, bool)> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let regular = file.metadata()?.is_file();
    Ok((file, regular))
}

/// Listens on `path`. A socket that an earlier run left behind, and that nobody has any more, is replaced.
pub(super) fn listen(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    // Asked by a datagram, which the listener of another run refuses as of the wrong type, and does not hear of.
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixDatagram::unbound()?
            .connect(path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
