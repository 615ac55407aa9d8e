//! Sizes as operators write them: a number with an optional K, M, G or T (powers of 1024).

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes. In JSON it is a number, or a text such as `"512M"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Reads `512M`, `2G`, `4096`. The message says what would be right.
///
/// # Errors
///
/// If the text is no such number, or the number of bytes does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<ByteSize, String> {
    let wrong = || format!("'{text}' is no size; write a number with an optional K, M, G or T");
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .map(ByteSize)
        .ok_or_else(|| format!("'{text}' is more bytes than 64 bits can count"))
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => parse_size(&text).map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1 << 10),
            ("512m", 512 << 20),
            ("2G", 2 << 30),
            ("4T", 4 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "M",
            "-1",
            "+1",
            "1.5G",
            "1GB",
            "0x10",
            "1 G",
            "20000000T",
            "é",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
