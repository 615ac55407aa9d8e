//! The PCI functions of the plan: what is behind them, and behind the serial port, is opened before the VM is
//! created, then each is wired to the VM, with an I/O thread of its own.

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tdvmm_devices::dma::DmaView;
use tdvmm_devices::io_thread::IoThread;
use tdvmm_devices::pci::PciRoot;
use tdvmm_devices::virtio::block::{
    Block, BlockOptions, DiskOptions, ImageFormat, OpenError, Rate,
};
use tdvmm_devices::virtio::console::{
    Console as VirtioConsole, ConsoleHandle, LogFile, SocketServer,
};
use tdvmm_devices::virtio::device::VirtioDevice;
use tdvmm_devices::virtio::entropy::Entropy;
use tdvmm_devices::virtio::transport::{MemoryAccess, VirtioPciDevice, Wiring};
use thiserror::Error;

use super::board::BoardError;
use super::serial_port::{self, SerialEnds};
use crate::config::{Console, Device, Disk, ImageType, Limit, SerialBackend};
use crate::ending::EndingCell;
use crate::kvm::msix::KvmVectors;
use crate::kvm::vm::VmHandles;
use crate::plan::pci::Function;
use crate::serial::console::{Pty, Terminal, fit_to_terminal};

/// What a device needs of the host cannot be had.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// An image cannot be used.
    #[error("--disk path={}", path.display())]
    Disk {
        /// The image.
        path: std::path::PathBuf,
        /// Why.
        source: OpenError,
    },
    /// The console or the serial port cannot lead there.
    #[error("{option} {backend}: cannot be opened; {}", remedy(source))]
    Terminal {
        /// The option.
        option: &'static str,
        /// The backend.
        backend: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is no entropy.
    #[error("--rng on: cannot open the host's random bytes")]
    Rng(#[source] io::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "make its folder first",
        ErrorKind::AddrInUse => "choose a path that is not in use",
        ErrorKind::PermissionDenied => "choose a path that this user may write to",
        // A FIFO.
        _ if error.raw_os_error() == Some(libc::ENXIO) => "start its reader first",
        _ => "choose another",
    }
}

/// What the devices lead to, not yet wired.
pub(super) struct Backends {
    /// The devices behind the PCI functions, in their order.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Behind the serial port, if there is one.
    pub serial: Option<SerialEnds>,
}

/// What has been opened.
pub(super) struct Opened {
    /// What the devices lead to.
    pub backends: Backends,
    /// The console on this process's terminal.
    pub terminal: Option<ConsoleHandle>,
}

/// Opens what is behind each of `functions`, in their order, and behind the serial port. Nothing of the guest is
/// needed for that.
///
/// # Errors
///
/// If the host refuses something, or an image cannot be used.
pub(super) fn open(
    functions: &[Function],
    serial: &SerialBackend,
    endings: &Arc<EndingCell>,
) -> Result<Opened, DeviceError> {
    let mut terminal = None;
    let open = |function: &Function| -> Result<Box<dyn VirtioDevice>, DeviceError> {
        Ok(match &function.device {
            Device::Disk(disk) => Box::new(open_disk(disk)?),
            Device::Console(console) => {
                let opened = open_console(console, endings);
                let device = opened.map_err(|source| DeviceError::Terminal {
                    option: "--console",
                    backend: describe(console),
                    source,
                })?;
                if *console == Console::Tty {
                    let handle = device.handle();
                    fit_to_terminal(&handle);
                    terminal = Some(handle);
                }
                Box::new(device)
            }
            Device::Rng => Box::new(Entropy::open().map_err(DeviceError::Rng)?),
        })
    };
    let devices = functions.iter().map(open).collect::<Result<_, _>>()?;
    let serial = serial_port::open(serial).map_err(|source| DeviceError::Terminal {
        option: "--serial",
        backend: serial_port::describe(serial),
        source,
    })?;
    Ok(Opened {
        backends: Backends { devices, serial },
        terminal,
    })
}

fn open_disk(disk: &Disk) -> Result<Block, DeviceError> {
    let from = DiskOptions {
        path: disk.path.clone(),
        read_only: disk.readonly,
        direct: disk.direct,
        format: match disk.image_type {
            None => ImageFormat::Unsaid,
            Some(ImageType::Raw) => ImageFormat::Raw,
            Some(ImageType::Qcow2) => ImageFormat::Qcow2,
        },
        backing_files: disk.backing_files,
    };
    let options = BlockOptions {
        num_queues: disk.num_queues,
        queue_size: disk.queue_size,
        serial: disk.serial.clone(),
        bandwidth: disk.bandwidth.map(rate),
        operations: disk.operations.map(rate),
        ..BlockOptions::default()
    };
    Block::open(&from, &options).map_err(|source| DeviceError::Disk {
        path: disk.path.clone(),
        source,
    })
}

fn open_console(console: &Console, endings: &Arc<EndingCell>) -> io::Result<VirtioConsole> {
    VirtioConsole::new(match console {
        Console::Tty => Box::new(Terminal::new(Arc::clone(endings))?),
        Console::Pty => {
            let (pty, name) = Pty::open()?;
            // Nobody can find it otherwise.
            log::warn!("--console pty: the console is at {name}");
            Box::new(pty)
        }
        Console::File { path, max_size } => Box::new(LogFile::open(path, *max_size)?),
        Console::Socket(path) => Box::new(SocketServer::new(serial_port::listen(path)?)?),
    })
}

fn describe(console: &Console) -> String {
    match console {
        Console::Tty => "tty".to_owned(),
        Console::Pty => "pty".to_owned(),
        Console::File { path, .. } => format!("file={}", path.display()),
        Console::Socket(path) => format!("socket={}", path.display()),
    }
}

fn rate(limit: Limit) -> Rate {
    Rate {
        size: limit.size,
        refill: Duration::from_millis(limit.refill_ms),
    }
}

/// Puts `functions`, which `devices` are behind, on the bus. Their threads stop when the result is dropped.
///
/// # Errors
///
/// If the host has no thread or descriptor left.
pub(super) fn wire(
    root: &mut PciRoot,
    functions: &[Function],
    devices: Vec<Box<dyn VirtioDevice>>,
    handles: &VmHandles,
    memory: &DmaView,
    access: MemoryAccess,
) -> Result<Vec<IoThread>, BoardError> {
    let mut threads = Vec::with_capacity(devices.len());
    for (function, device) in functions.iter().zip(devices) {
        debug_assert_eq!(function.vectors, VirtioPciDevice::vectors(&*device));
        let thread =
            IoThread::spawn(&format!("io-{}", function.id), || {}).map_err(BoardError::IoThread)?;
        let vectors = KvmVectors::new(
            Arc::clone(&handles.routes),
            function.first_gsi,
            function.vectors,
        );
        let wiring = Wiring {
            memory: memory.clone(),
            vectors: Arc::new(vectors),
            notify: Arc::<crate::kvm::doorbells::Doorbells>::clone(&handles.doorbells),
            io_threads: vec![thread.handle()],
            access,
        };
        let device = VirtioPciDevice::new(device, wiring).map_err(BoardError::Virtio)?;
        root.insert(function.slot, Arc::new(Mutex::new(device)))
            .map_err(BoardError::Slot)?;
        threads.push(thread);
    }
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    #[test]
    fn serial_backend_that_cannot_be_opened_is_told_with_the_remedy() {
        let endings = Arc::new(EndingCell::new(EventFd::new(0).unwrap()));
        let backend = SerialBackend::File("/no/such/folder/x".into());
        let error = open(&[], &backend, &endings).err().unwrap();
        assert_eq!(
            error.to_string(),
            "--serial file=/no/such/folder/x: cannot be opened; make its folder first"
        );
    }
}
