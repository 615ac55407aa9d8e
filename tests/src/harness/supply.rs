//! Where the cases of a group get their L1 from.

use anyhow::{Error, Result, bail};

/// What starts an L1, and why it could not.
#[derive(Debug)]
pub(super) struct Supply<F> {
    boot: F,
    again: bool,
    failure: Option<String>,
}

impl<F> Supply<F> {
    /// `boot` tries a second time by itself before it gives up. With `again` it is called anew for the next case all
    /// the same: the runs of a soak are counted, each by itself.
    pub(super) fn new(boot: F, again: bool) -> Self {
        Self {
            boot,
            again,
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
        if let (Some(failure), false) = (&self.failure, self.again) {
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
    use anyhow::ensure;

    use super::*;

    #[test]
    fn l1_that_did_not_come_up_fails_the_rest_with_the_reason() {
        let mut tries = 0;
        let boot = || -> Result<u32> {
            tries += 1;
            bail!("QEMU ended")
        };
        let mut supply = Supply::new(boot, false);
        for _ in 0..3 {
            let error = format!("{:#}", supply.next(None).unwrap_err());
            assert!(error.contains("L1 did not come up: QEMU ended"), "{error}");
        }
        assert_eq!(tries, 1);
    }

    #[test]
    fn l1_that_did_not_come_up_is_tried_again_in_a_soak() {
        let mut tries = 0;
        let boot = || {
            tries += 1;
            ensure!(tries > 1, "QEMU ended");
            Ok(tries)
        };
        let mut supply = Supply::new(boot, true);
        assert!(supply.next(None).is_err());
        assert_eq!(supply.next(None).unwrap(), 2);
    }

    #[test]
    fn l1_is_started_where_none_was_left() {
        let mut number = 0;
        let boot = || {
            number += 1;
            Ok(number)
        };
        let mut supply = Supply::new(boot, false);
        assert_eq!(supply.next(None).unwrap(), 1);
        assert_eq!(supply.next(Some(1)).unwrap(), 1);
        assert_eq!(supply.next(None).unwrap(), 2);
    }
}
