//! Repeating a call that asks for it, and never without end.

use crate::error::{CallError, Command, TdxError};

/// Tries without progress before the launch is given up. The causes are passing ones: a signal, the
/// processor's entropy running low (`RND_NO_ENTROPY`), a lock that another CPU holds for a moment.
pub(crate) const TRIES: u32 = 10_000;

/// Calls `call` until it gives something else than one of the errnos in `again`; also says how many
/// tries it took. Each try must build its command anew: the kernel refuses one with an old
/// `hw_error`.
pub(crate) fn retry<T>(
    command: Command,
    again: &[i32],
    mut call: impl FnMut() -> Result<T, CallError>,
) -> Result<(T, u32), TdxError> {
    for tries in 1..=TRIES {
        match call() {
            Err(error) if again.contains(&error.errno()) => {}
            answer => return Ok((answer?, tries)),
        }
    }
    Err(TdxError::NoProgress {
        command,
        tries: TRIES,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_is_repeated_until_it_succeeds() {
        let mut left = 3;
        let got = retry(Command::InitVm, &[libc::EAGAIN], || {
            left -= 1;
            if left > 0 {
                Err(CallError::new(Command::InitVm, libc::EAGAIN, 0))
            } else {
                Ok(7)
            }
        });
        assert_eq!(got.unwrap(), (7, 3));
    }

    #[test]
    fn call_that_never_gets_on_is_given_up() {
        let got = retry(Command::InitVm, &[libc::EAGAIN], || -> Result<(), _> {
            Err(CallError::new(Command::InitVm, libc::EAGAIN, 0))
        });
        assert!(matches!(
            got,
            Err(TdxError::NoProgress { tries: TRIES, .. })
        ));
    }

    #[test]
    fn other_errno_ends_at_once() {
        let mut tries = 0;
        let got = retry(Command::InitVm, &[libc::EAGAIN], || -> Result<(), _> {
            tries += 1;
            Err(CallError::new(Command::InitVm, libc::EIO, 0))
        });
        assert!(got.is_err());
        assert_eq!(tries, 1);
    }
}
