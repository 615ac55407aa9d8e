//! MSI-X vectors of one PCI function: a route in the VM's table and an irqfd for each.
//!
//! An irqfd is made when its vector gets its first route, so that vectors which no driver uses cost
//! nothing, and start-up makes none.

use std::io;
use std::sync::{Arc, OnceLock};

use tdvmm_devices::irq::{IrqWire, Msi};
use tdvmm_devices::pci::MsixVectors;

use super::routes::{IrqFd, IrqRoutes};

/// See the module's text.
#[derive(Debug)]
pub struct KvmVectors {
    routes: Arc<IrqRoutes>,
    first_gsi: u32,
    irqfds: Box<[OnceLock<IrqFd>]>,
}

impl KvmVectors {
    /// `count` vectors with the interrupts from `first_gsi` on, which nobody else uses.
    #[must_use]
    pub fn new(routes: Arc<IrqRoutes>, first_gsi: u32, count: u16) -> Self {
        Self {
            routes,
            first_gsi,
            irqfds: (0..count).map(|_| OnceLock::new()).collect(),
        }
    }

    fn irqfd(&self, vector: u16) -> io::Result<&OnceLock<IrqFd>> {
        self.irqfds
            .get(usize::from(vector))
            .ok_or_else(|| io::Error::other("there is no such vector"))
    }
}

impl MsixVectors for KvmVectors {
    fn route(&self, vector: u16, to: Msi) -> io::Result<()> {
        let irqfd = self.irqfd(vector)?;
        let gsi = self.first_gsi.saturating_add(vector.into());
        self.routes.set(gsi, Some(to))?;
        if irqfd.get().is_none() {
            let made = self.routes.irqfd(gsi).map_err(io::Error::other)?;
            // The function's lock keeps others away; had one been faster, its irqfd would serve as well.
            let _ = irqfd.set(made);
        }
        Ok(())
    }

    fn fire(&self, vector: u16) -> io::Result<()> {
        match self.irqfd(vector)?.get() {
            Some(irqfd) => irqfd.pulse(),
            None => Err(io::Error::other("the vector has no route yet")),
        }
    }
}
