//! Order of Debian version numbers: epoch, upstream version, revision (Debian policy, 5.6.12).

use std::cmp::Ordering;

/// Compares two Debian versions, for instance `1:11.1.3+ds-1` and `1:11.1.3+ds-1~bpo13+1`.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (epoch_a, a) = split_epoch(a);
    let (epoch_b, b) = split_epoch(b);
    let (upstream_a, revision_a) = a.rsplit_once('-').unwrap_or((a, ""));
    let (upstream_b, revision_b) = b.rsplit_once('-').unwrap_or((b, ""));
    epoch_a
        .cmp(&epoch_b)
        .then_with(|| compare_part(upstream_a, upstream_b))
        .then_with(|| compare_part(revision_a, revision_b))
}

/// The version without its epoch.
pub fn without_epoch(version: &str) -> &str {
    split_epoch(version).1
}

/// Whether `version` belongs to `series`: it starts with it, and no digit is cut in two.
pub fn in_series(version: &str, series: &str) -> bool {
    match without_epoch(version).strip_prefix(series) {
        Some(rest) => series.ends_with('.') || !rest.starts_with(|c: char| c.is_ascii_digit()),
        None => false,
    }
}

fn split_epoch(version: &str) -> (u64, &str) {
    match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    }
}

/// Compares alternating runs of non-digits and digits.
fn compare_part(mut a: &str, mut b: &str) -> Ordering {
    while !(a.is_empty() && b.is_empty()) {
        let (text_a, rest_a) = split_run(a, |c| !c.is_ascii_digit());
        let (text_b, rest_b) = split_run(b, |c| !c.is_ascii_digit());
        let (number_a, rest_a) = split_run(rest_a, |c| c.is_ascii_digit());
        let (number_b, rest_b) = split_run(rest_b, |c| c.is_ascii_digit());
        let order = compare_text(text_a, text_b).then_with(|| compare_number(number_a, number_b));
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
    Ordering::Equal
}

fn split_run(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !belongs(c)).unwrap_or(text.len());
    text.split_at(end)
}

fn compare_text(a: &str, b: &str) -> Ordering {
    // A tilde sorts before the end of the part, letters before all other characters.
    let weight = |c: Option<char>| match c {
        Some('~') => (0, '~'),
        None => (1, '\0'),
        Some(c) if c.is_ascii_alphabetic() => (2, c),
        Some(c) => (3, c),
    };
    let (mut a, mut b) = (a.chars(), b.chars());
    loop {
        let (x, y) = (a.next(), b.next());
        let order = weight(x).cmp(&weight(y));
        if order != Ordering::Equal || x.is_none() {
            return order;
        }
    }
}

fn compare_number(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_rising_order_compare_as_less() {
        let rising = [
            "0.9",
            "1.0~rc1-1",
            "1.0-1",
            "1.0-1+b1",
            "1.0-2",
            "1.0a-1",
            "1.0+ds-1",
            "1.0.1-1",
            "1.9-1",
            "1.10-1",
            "7.2.9-1",
            "7.2.13-1~bpo13+1",
            "7.2.13-1",
            "1:0.1",
        ];
        for (i, a) in rising.iter().enumerate() {
            for (j, b) in rising.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} against {b}");
            }
        }
    }

    #[test]
    fn numbers_with_leading_zeros_are_equal() {
        assert_eq!(compare("1.01", "1.1"), Ordering::Equal);
    }

    #[test]
    fn series_does_not_cut_a_number() {
        assert!(in_series("7.2.13-1", "7.2"));
        assert!(in_series("7.2~rc1-1", "7.2"));
        assert!(in_series("1:11.1.3+ds-1", "11.1"));
        assert!(in_series("1:1.38.0-3", "1."));
        assert!(!in_series("7.20-1", "7.2"));
        assert!(!in_series("6.12.1-1", "7.2"));
    }
}
