//! The loop of a vCPU: enter the guest, serve the exit, until the machine ends.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tdvmm_devices::bus::Bus;
use tdvmm_tdx::exit::{Reply, TdExit};

use super::exit::{EnterError, Exit, RunVcpu};
use crate::ending::Ending;

/// What a vCPU's exits are served from; shared by all of them.
#[derive(Debug)]
pub struct Buses {
    /// Devices by port number.
    pub ports: Bus,
    /// Devices by guest-physical address.
    pub mmio: Bus,
    /// What a TD asks for, if the guest is one.
    pub td: Option<Arc<dyn TdServices>>,
}

/// What is done when a TD asks for something.
pub trait TdServices: Debug + Send + Sync {
    /// Serves an exit of vCPU `vcpu`: the answer, or the end of the machine.
    ///
    /// # Errors
    ///
    /// The ending.
    fn serve(&self, vcpu: u32, exit: TdExit) -> Result<Reply, Ending>;
}

/// Runs `vcpu`, which is number `number`, until `stop` is set or something ends the machine.
///
/// Returns `None` when told to stop.
///
/// # Errors
///
/// If KVM refuses to run the vCPU at all, or the host has lost memory of the guest.
pub fn run(
    vcpu: &mut impl RunVcpu,
    number: u32,
    buses: &Buses,
    stop: &AtomicBool,
) -> Result<Option<Ending>, EnterError> {
    while !stop.load(Ordering::Acquire) {
        match vcpu.enter()? {
            Exit::PortIn { port, size, data } => {
                data.chunks_mut(size)
                    .for_each(|item| buses.ports.read(u64::from(port), item));
            }
            Exit::PortOut { port, size, data } => {
                data.chunks(size)
                    .for_each(|item| buses.ports.write(u64::from(port), item));
            }
            Exit::MmioRead { address, data } => buses.mmio.read(address, data),
            Exit::MmioWrite { address, data } => buses.mmio.write(address, data),
            Exit::Td(exit) => match serve_td(buses, number, exit) {
                Ok(reply) => vcpu.answer(reply),
                Err(ending) => return Ok(Some(ending)),
            },
            Exit::Dead => return Ok(Some(dead(buses, number))),
            Exit::Kicked => {}
            Exit::Shutdown => return Ok(Some(Ending::TripleFault { vcpu: number })),
            Exit::InternalError(report) => {
                return Ok(Some(Ending::InternalError {
                    vcpu: number,
                    report,
                }));
            }
            Exit::Unexpected(report) => {
                return Ok(Some(Ending::UnexpectedExit {
                    vcpu: number,
                    report,
                }));
            }
        }
    }
    Ok(None)
}

fn dead(buses: &Buses, vcpu: u32) -> Ending {
    if buses.td.is_some() {
        return Ending::TdDead { vcpu };
    }
    Ending::UnexpectedExit {
        vcpu,
        report: "KVM has given the VM up (EIO)".into(),
    }
}

fn serve_td(buses: &Buses, vcpu: u32, exit: TdExit) -> Result<Reply, Ending> {
    match &buses.td {
        Some(td) => td.serve(vcpu, exit),
        None => Err(Ending::UnexpectedExit {
            vcpu,
            report: format!("{exit:?}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tdvmm_devices::bus::{AccessError, BusBuilder, BusDevice};

    use super::*;

    /// Counts up with every read, and remembers what was written.
    #[derive(Default)]
    struct Counter {
        reads: u8,
        written: Vec<Vec<u8>>,
    }

    impl BusDevice for Counter {
        fn name(&self) -> &str {
            "counter"
        }
        fn read(&mut self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
            self.reads += 1;
            data.fill(self.reads);
            Ok(())
        }
        fn write(&mut self, _: u64, data: &[u8]) -> Result<(), AccessError> {
            self.written.push(data.to_vec());
            Ok(())
        }
    }

    enum Step {
        In(u16, usize, usize),
        Out(u16, usize, Vec<u8>),
        Read(u64, usize),
        Kick,
        Shutdown,
    }

    /// Plays a script; `seen` holds what the loop answered.
    struct Scripted {
        script: std::vec::IntoIter<Step>,
        page: Vec<u8>,
        seen: Vec<Vec<u8>>,
        stop: Arc<AtomicBool>,
    }

    impl RunVcpu for Scripted {
        fn answer(&mut self, _: Reply) {}

        fn enter(&mut self) -> Result<Exit<'_>, EnterError> {
            self.seen.push(std::mem::take(&mut self.page));
            let Some(step) = self.script.next() else {
                self.stop.store(true, Ordering::Release);
                return Ok(Exit::Kicked);
            };
            Ok(match step {
                Step::In(port, size, count) => {
                    self.page = vec![0; size * count];
                    Exit::PortIn {
                        port,
                        size,
                        data: &mut self.page,
                    }
                }
                Step::Out(port, size, data) => {
                    self.page = data;
                    Exit::PortOut {
                        port,
                        size,
                        data: &self.page,
                    }
                }
                Step::Read(address, size) => {
                    self.page = vec![0; size];
                    Exit::MmioRead {
                        address,
                        data: &mut self.page,
                    }
                }
                Step::Kick => Exit::Kicked,
                Step::Shutdown => Exit::Shutdown,
            })
        }
    }

    fn play(script: Vec<Step>) -> (Option<Ending>, Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let device = Arc::new(Mutex::new(Counter::default()));
        let ports = BusBuilder::default()
            .insert(0x80, 1, device.clone())
            .unwrap();
        let ports = ports.insert(0x90, 4, device.clone()).unwrap().build();
        let buses = Buses {
            ports,
            mmio: BusBuilder::default().build(),
            td: None,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let mut vcpu = Scripted {
            script: script.into_iter(),
            page: Vec::new(),
            seen: Vec::new(),
            stop: Arc::clone(&stop),
        };
        let ending = run(&mut vcpu, 3, &buses, &stop).unwrap();
        let written = device.lock().unwrap().written.clone();
        (ending, vcpu.seen, written)
    }

    #[test]
    fn string_instruction_is_one_access_per_item() {
        let (_, seen, written) = play(vec![
            Step::In(0x80, 1, 3),
            Step::Out(0x90, 2, vec![1, 2, 3, 4]),
            Step::Kick,
        ]);
        assert_eq!(seen[1], [1, 2, 3]);
        assert_eq!(written, [vec![1, 2], vec![3, 4]]);
    }

    #[test]
    fn read_of_nothing_gives_all_ones() {
        let (_, seen, _) = play(vec![Step::Read(0x1234, 8)]);
        assert_eq!(seen[1], [0xff; 8]);
    }

    #[test]
    fn loop_ends_with_the_ending_or_when_told_to() {
        let (ending, ..) = play(vec![Step::Kick, Step::Shutdown, Step::In(0x80, 1, 1)]);
        assert_eq!(ending, Some(Ending::TripleFault { vcpu: 3 }));
        assert_eq!(play(vec![Step::Kick]).0, None);
    }
}
