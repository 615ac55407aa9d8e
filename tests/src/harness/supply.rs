//! Where the cases of a group get their L1 from.

use anyhow::{Error, Result, bail};

/// What starts an L1, and why it could not.
#[derive(Debug)]
pub(super) struct Supply<F> {
    boot: F,
    failure: Option<String>,
}

impl<F> Supply<F> {
    /// `boot` tries a second time by itself before it gives up.
    pub(super) fn new(boot: F) -> Self {
        Self {
            boot,
            failure: None,
        }
    }

    /// The L1 that the case before left, or a new one. After one that did not come up nothing is tried any more: each
    /// try takes minutes, and the cases of a group have the same machine.
    pub(super) fn next<T>(&mut self, kept: Option<T>) -> Result<T>
    where
        F: FnMut() -> Result<T>,
    {
        if let Some(kept) = kept {
            return Ok(kept);
        }
        if let Some(failure) = &self.failure {
            bail!("not tried again after a case before: {failure}");
        }
        let fail = |error: Error| {
            let error = error.context("L1 did not come up");
            self.failure = Some(format!("{error:#}"));
            error
        };
        (self.boot)().map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l1_that_did_not_come_up_fails_the_rest_with_the_reason() {
        let mut tries = 0;
        let mut supply = Supply::new(|| -> Result<u32> {
            tries += 1;
            bail!("QEMU ended")
        });
        for _ in 0..3 {
            let error = format!("{:#}", supply.next(None).unwrap_err());
            assert!(error.contains("L1 did not come up: QEMU ended"), "{error}");
        }
        assert_eq!(tries, 1);
    }

    #[test]
    fn l1_is_started_where_none_was_left() {
        let mut number = 0;
        let mut supply = Supply::new(|| {
            number += 1;
            Ok(number)
        });
        assert_eq!(supply.next(None).unwrap(), 1);
        assert_eq!(supply.next(Some(1)).unwrap(), 1);
        assert_eq!(supply.next(None).unwrap(), 2);
    }
}
