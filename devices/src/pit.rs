//! The ports of an interval timer that is not there (8254, ports 0x40 to 0x43): counters that stand at 0.
//!
//! Linux calibrates the TSC by counter 2 where CPUID states no frequency of the processor, which is so in a TD
//! (`quick_pit_calibrate()`). It waits for the upper byte to leave 0xff, at most 50000 times two reads: with
//! ports that nobody answers that is 100000 exits to user space at each start. A counter at 0 ends the wait at
//! once, and the kernel takes the frequency that CPUID states for the TSC.

use crate::bus::{AccessError, BusDevice};

/// See the module's text.
#[derive(Debug, Default)]
pub struct StoppedTimer;

impl StoppedTimer {
    /// Ports that it answers: three counters and the control word.
    pub const PORTS: u64 = 4;
}

impl BusDevice for StoppedTimer {
    fn name(&self) -> &str {
        "interval timer"
    }

    fn read(&mut self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let len = data.len();
        let [value] = data else {
            return Err(AccessError::Size(len));
        };
        *value = 0;
        Ok(())
    }

    fn write(&mut self, _: u64, data: &[u8]) -> Result<(), AccessError> {
        match data {
            [_] => Ok(()),
            _ => Err(AccessError::Size(data.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `quick_pit_calibrate()` does: mode 0, count 0xffff, then waits while the upper byte is 0xff.
    #[test]
    fn wait_for_the_counter_to_move_ends_at_once() {
        let mut timer = StoppedTimer;
        for (port, value) in [(3, 0xb0), (2, 0xff), (2, 0xff)] {
            assert_eq!(timer.write(port, &[value]), Ok(()));
        }
        let (mut low, mut high) = ([0xff], [0xff]);
        timer.read(2, &mut low).unwrap();
        timer.read(2, &mut high).unwrap();
        assert_ne!(high, [0xff]);
        assert_eq!(timer.read(2, &mut [0, 0]), Err(AccessError::Size(2)));
    }
}
