//! Dates of the Gregorian calendar, years 0 to 9999, and seconds since 1970: what a real-time clock
//! has to convert. Pure.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "every argument is checked or clamped to years 0 to 9999 first, so that no intermediate \
              value exceeds 2^40"
)]

const DAY_SECONDS: i64 = 86_400;
/// Days of 400 years.
const CYCLE_DAYS: i64 = 146_097;
/// Days from 0000-01-01 to 1970-01-01.
const EPOCH_DAY: i64 = 719_528;
const LAST_YEAR: i64 = 9999;
/// Days of a common year before each month.
const DAYS_BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

/// A moment in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// 0 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl Moment {
    /// Of a number of seconds since 1970-01-01; the nearest moment of years 0 to 9999.
    pub(crate) fn from_unix(seconds: i64) -> Self {
        let first = -EPOCH_DAY * DAY_SECONDS;
        let end = (days_before_year(LAST_YEAR + 1) - EPOCH_DAY) * DAY_SECONDS;
        let since_year_0 = seconds.clamp(first, end - 1) - first;
        let (day, second) = (since_year_0 / DAY_SECONDS, since_year_0 % DAY_SECONDS);
        // One more than the mean may be too much by a year, never too little.
        let guess = day * 400 / CYCLE_DAYS + 1;
        let year = if days_before_year(guess) <= day {
            guess
        } else if days_before_year(guess - 1) <= day {
            guess - 1
        } else {
            guess - 2
        };
        let of_year = day - days_before_year(year);
        let month = (1..=12)
            .rev()
            .find(|month| days_before_month(year, *month) <= of_year)
            .unwrap_or(1);
        let small = |value: i64| u8::try_from(value).unwrap_or_default();
        Self {
            year: u16::try_from(year).unwrap_or_default(),
            month: small(month),
            day: small(of_year - days_before_month(year, month) + 1),
            hour: small(second / 3600),
            minute: small(second / 60 % 60),
            second: small(second % 60),
        }
    }

    /// Seconds since 1970-01-01, or `None` if there is no such moment.
    pub(crate) fn to_unix(self) -> Option<i64> {
        let (year, month) = (i64::from(self.year), i64::from(self.month));
        let valid = year <= LAST_YEAR
            && (1..=12).contains(&month)
            && (1..=days_of_month(year, month)).contains(&i64::from(self.day))
            && self.hour < 24
            && self.minute < 60
            && self.second < 60;
        valid.then(|| {
            let days = days_before_year(year) + days_before_month(year, month) - EPOCH_DAY
                + i64::from(self.day)
                - 1;
            let minutes = i64::from(self.hour) * 60 + i64::from(self.minute);
            days * DAY_SECONDS + minutes * 60 + i64::from(self.second)
        })
    }

    /// 1 for Sunday to 7 for Saturday, as an MC146818 counts.
    pub(crate) fn day_of_week(self) -> u8 {
        let days = self.to_unix().unwrap_or_default().div_euclid(DAY_SECONDS);
        // 1970-01-01 was a Thursday.
        u8::try_from((days + 4).rem_euclid(7) + 1).unwrap_or(1)
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 0000-01-01 to the first of `year`.
fn days_before_year(year: i64) -> i64 {
    year * 365 + (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400
}

fn days_before_month(year: i64, month: i64) -> i64 {
    let common = usize::try_from(month - 1)
        .ok()
        .and_then(|index| DAYS_BEFORE.get(index).copied());
    common.unwrap_or(365) + i64::from(month > 2 && is_leap(year))
}

fn days_of_month(year: i64, month: i64) -> i64 {
    days_before_month(year, month + 1) - days_before_month(year, month)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn moment(year: u16, month: u8, day: u8) -> Moment {
        Moment {
            year,
            month,
            day,
            hour: 12,
            minute: 34,
            second: 56,
        }
    }

    #[test]
    fn known_moments_have_their_known_seconds() {
        // Checked against `date -u -d ... +%s`.
        let known = [
            (moment(1970, 1, 1), 45_296),
            (moment(1969, 12, 31), -41_104),
            (moment(2000, 2, 29), 951_827_696),
            (moment(2026, 11, 21), 1_795_264_496),
            (moment(2100, 3, 1), 4_107_587_696),
            (moment(9999, 12, 31), 253_402_259_696),
        ];
        for (moment, seconds) in known {
            assert_eq!(moment.to_unix(), Some(seconds), "{moment:?}");
            assert_eq!(Moment::from_unix(seconds), moment);
        }
    }

    #[test]
    fn weekdays_count_from_sunday() {
        assert_eq!(moment(1970, 1, 1).day_of_week(), 5);
        assert_eq!(moment(2026, 11, 21).day_of_week(), 7);
        assert_eq!(moment(2026, 11, 22).day_of_week(), 1);
    }

    #[test]
    fn moments_that_do_not_exist_have_no_seconds() {
        for (year, month, day) in [
            (2025, 2, 29),
            (2100, 2, 29),
            (2026, 4, 31),
            (2026, 0, 1),
            (2026, 13, 1),
            (2026, 1, 0),
            (10_000, 1, 1),
        ] {
            assert_eq!(moment(year, month, day).to_unix(), None);
        }
    }

    proptest! {
        #[test]
        fn conversion_there_and_back_is_the_same(seconds in -62_167_219_200_i64..253_402_300_800) {
            prop_assert_eq!(Moment::from_unix(seconds).to_unix(), Some(seconds));
        }

        #[test]
        fn any_number_of_seconds_gives_a_moment_that_exists(seconds: i64) {
            prop_assert!(Moment::from_unix(seconds).to_unix().is_some());
        }
    }
}
