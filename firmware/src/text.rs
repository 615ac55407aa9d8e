//! Text of foreign files, made safe to print.

use alloc::string::String;

/// `text` with a replacement for each character that could move a terminal's cursor, break the line
/// or turn the order in which its characters are shown, so that it cannot pass for another line.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if is_plain(c) {
                c
            } else {
                char::REPLACEMENT_CHARACTER
            }
        })
        .collect()
}

/// Unicode 17, 23.1 for controls (Cc), 23.2 for line and paragraph separators and for what changes
/// the direction.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(
            c,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_controls_stays_as_it_is() {
        let text = "Boot0000 \"Grüße\" 日本語 \u{fffd}";
        assert_eq!(printable(text), text);
    }

    #[test]
    fn what_steers_a_terminal_or_turns_a_line_is_replaced() {
        for evil in "\0\t\n\r\u{1b}\u{7f}\u{85}\u{9b}\u{2028}\u{202e}\u{2066}\u{200f}".chars() {
            let text = alloc::format!("a{evil}b");
            assert_eq!(printable(&text), "a\u{fffd}b", "{evil:?}");
        }
    }
}
