//! The TSC frequency of a TD: KVM hands it to the module in units of 25 MHz.
//!
//! KVM divides without a look at the remainder and the module takes 4 to 400 units, so both are
//! checked here: a frequency that would be cut down in silence is refused.

/// A TSC frequency that a TD can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TscFrequency(u32);

const STEP_KHZ: u32 = 25_000;
const MIN_KHZ: u32 = 100_000;
const MAX_KHZ: u32 = 10_000_000;

/// A frequency that no TD can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TscError {
    /// Not a multiple of 25 MHz.
    #[error(
        "a TSC of {khz} kHz is no multiple of 25000 kHz; the next ones are {below} and {above} kHz"
    )]
    Step {
        /// The frequency.
        khz: u32,
        /// The next lower one.
        below: u32,
        /// The next higher one.
        above: u32,
    },
    /// Out of the module's range.
    #[error("a TSC of {0} kHz is not between 100000 and 10000000 kHz")]
    Range(u32),
}

impl TscFrequency {
    /// From kHz.
    ///
    /// # Errors
    ///
    /// If the frequency is no multiple of 25 MHz from 100 MHz to 10 GHz.
    pub fn from_khz(khz: u32) -> Result<Self, TscError> {
        if !(MIN_KHZ..=MAX_KHZ).contains(&khz) {
            return Err(TscError::Range(khz));
        }
        let below = khz.saturating_sub(khz.checked_rem(STEP_KHZ).unwrap_or(0));
        if below != khz {
            return Err(TscError::Step {
                khz,
                below,
                above: below.saturating_add(STEP_KHZ),
            });
        }
        Ok(Self(khz))
    }

    /// In kHz.
    #[must_use]
    pub const fn khz(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiples_of_25_mhz_in_range_are_taken() {
        for khz in [100_000, 2_000_000, 2_025_000, 10_000_000] {
            assert_eq!(TscFrequency::from_khz(khz).unwrap().khz(), khz);
        }
    }

    #[test]
    fn frequency_between_steps_is_refused_with_its_neighbours() {
        assert_eq!(
            TscFrequency::from_khz(2_000_001),
            Err(TscError::Step {
                khz: 2_000_001,
                below: 2_000_000,
                above: 2_025_000
            })
        );
    }

    #[test]
    fn frequency_out_of_range_is_refused() {
        assert_eq!(TscFrequency::from_khz(75_000), Err(TscError::Range(75_000)));
        assert_eq!(
            TscFrequency::from_khz(10_025_000),
            Err(TscError::Range(10_025_000))
        );
    }
}
