//! The device status register (virtio 1.3, 2.1 and 3.1.1) as a table of legal moves.
//!
//! ```text
//! 0 -ACKNOWLEDGE-> 1 -DRIVER-> 3 -FEATURES_OK-> 11 -DRIVER_OK-> 15      any -0-> 0     any -FAILED-> |128
//! ```
//!
//! Pure: says what a write means; the transport does it. Any other write is dropped.

/// ACKNOWLEDGE.
pub const ACKNOWLEDGE: u8 = 1;
/// DRIVER.
pub const DRIVER: u8 = 2;
/// DRIVER_OK.
pub const DRIVER_OK: u8 = 4;
/// FEATURES_OK.
pub const FEATURES_OK: u8 = 8;
/// DEVICE_NEEDS_RESET, which only the device sets.
pub const NEEDS_RESET: u8 = 64;
/// FAILED.
pub const FAILED: u8 = 128;

/// What a write of the status means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Stop everything and start over.
    Reset,
    /// Nothing but the new value.
    Note,
    /// The new value holds if the features are acceptable.
    CheckFeatures,
    /// The device starts.
    Activate,
    /// None that there is: the value stays.
    Refuse,
}

const MOVES: [(u8, u8, Move); 4] = [
    (0, ACKNOWLEDGE, Move::Note),
    (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, Move::Note),
    (
        ACKNOWLEDGE | DRIVER,
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
        Move::CheckFeatures,
    ),
    (
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        Move::Activate,
    ),
];

/// What writing `to` means where the status is `from`. DEVICE_NEEDS_RESET counts in neither.
#[must_use]
pub fn status_move(from: u8, to: u8) -> Move {
    let (from, to) = (from & !NEEDS_RESET, to & !NEEDS_RESET);
    if to == 0 {
        return Move::Reset;
    }
    if to == from | FAILED {
        return Move::Note;
    }
    MOVES
        .iter()
        .find(|(a, b, _)| (*a, *b) == (from, to))
        .map_or(Move::Refuse, |(_, _, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_a_driver_is_legal() {
        assert_eq!(status_move(0, 1), Move::Note);
        assert_eq!(status_move(1, 3), Move::Note);
        assert_eq!(status_move(3, 11), Move::CheckFeatures);
        assert_eq!(status_move(11, 15), Move::Activate);
        assert_eq!(status_move(15 | NEEDS_RESET, 15 | FAILED), Move::Note);
    }

    #[test]
    fn every_other_move_is_refused_and_none_activates_twice() {
        for from in 0..=u8::MAX {
            for to in 0..=u8::MAX {
                let what = status_move(from, to);
                let steady = from & !NEEDS_RESET;
                match what {
                    Move::Activate => assert_eq!((steady, to & !NEEDS_RESET), (11, 15)),
                    Move::CheckFeatures => assert_eq!((steady, to & !NEEDS_RESET), (3, 11)),
                    Move::Reset => assert_eq!(to & !NEEDS_RESET, 0),
                    // Bits are added, never taken away.
                    Move::Note => assert_eq!(to & steady, steady),
                    Move::Refuse => assert_ne!(to & !NEEDS_RESET, 0),
                }
            }
        }
    }
}
