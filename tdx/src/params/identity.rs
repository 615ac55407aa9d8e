//! MRCONFIGID, MROWNER, MROWNERCONFIG: 48 bytes each, which a quote shows and the TDX module does
//! not interpret. Given as 96 hex digits, as base64 (64 characters), or as `@file`.

use std::fmt;
use std::io;

/// 48 bytes that the owner binds a TD to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(pub [u8; 48]);

/// The three identities of a TD; all zero if nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identities {
    /// Of the configuration of software that is not measured, e.g. a digest of a policy.
    pub mrconfigid: Identity,
    /// Of the owner.
    pub mrowner: Identity,
    /// Of the owner's configuration.
    pub mrownerconfig: Identity,
}

/// Text or a file that holds no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Neither form fits.
    #[error(
        "an identity is 96 hex digits, 64 characters of base64 or @file; this has {0} characters"
    )]
    Length(usize),
    /// A character that the form does not have.
    #[error("character {character:?} at position {at} is not {form}")]
    Character {
        /// What was met.
        character: char,
        /// Where, counted from 0.
        at: usize,
        /// `a hex digit` or `base64`.
        form: &'static str,
    },
    /// The file cannot be read.
    #[error("cannot read identity file {path}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The file does not hold an identity.
    #[error("identity file {path} holds neither 48 bytes nor an identity as text")]
    Content {
        /// Its path.
        path: String,
        /// What is wrong with the text.
        #[source]
        cause: Box<Self>,
    },
}

impl Identity {
    /// From an option's value; `read` gives the content of the file that `@path` names.
    ///
    /// # Errors
    ///
    /// If the text, or the file, holds no identity.
    pub fn from_option(
        text: &str,
        read: impl FnOnce(&str) -> io::Result<Vec<u8>>,
    ) -> Result<Self, IdentityError> {
        let Some(path) = text.strip_prefix('@') else {
            return Self::from_text(text);
        };
        let content = read(path).map_err(|cause| IdentityError::File {
            path: path.to_owned(),
            cause,
        })?;
        Self::from_content(&content).map_err(|cause| IdentityError::Content {
            path: path.to_owned(),
            cause: Box::new(cause),
        })
    }

    /// From the content of a file: 48 bytes as they are, or text.
    fn from_content(content: &[u8]) -> Result<Self, IdentityError> {
        if let Ok(bytes) = content.try_into() {
            return Ok(Self(bytes));
        }
        let text = str::from_utf8(content).map_err(|_| IdentityError::Length(content.len()))?;
        Self::from_text(text.trim())
    }

    /// From 96 hex digits or 64 characters of base64.
    ///
    /// # Errors
    ///
    /// If it is neither.
    pub fn from_text(text: &str) -> Result<Self, IdentityError> {
        match text.chars().count() {
            96 => Self::from_digits(text, 4, hex, "a hex digit"),
            64 => Self::from_digits(text, 6, base64, "base64"),
            other => Err(IdentityError::Length(other)),
        }
    }

    /// Digits of `width` bits each, most significant first.
    fn from_digits(
        text: &str,
        width: u32,
        value: fn(char) -> Option<u8>,
        form: &'static str,
    ) -> Result<Self, IdentityError> {
        let mut bytes = Vec::with_capacity(48);
        let (mut pending, mut bits) = (0u32, 0u32);
        for (at, character) in text.chars().enumerate() {
            let digit = value(character).ok_or(IdentityError::Character {
                character,
                at,
                form,
            })?;
            pending = (pending << width) | u32::from(digit);
            bits = bits.saturating_add(width);
            if bits >= 8 {
                bits = bits.saturating_sub(8);
                bytes.push(pending.wrapping_shr(bits).to_le_bytes()[0]);
            }
        }
        bytes
            .try_into()
            .map(Self)
            .map_err(|got: Vec<u8>| IdentityError::Length(got.len()))
    }
}

fn hex(character: char) -> Option<u8> {
    u8::try_from(character.to_digit(16)?).ok()
}

/// RFC 4648, section 4. 48 bytes need no padding.
fn base64(character: char) -> Option<u8> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    u8::try_from(ALPHABET.find(character)?).ok()
}

impl Default for Identity {
    fn default() -> Self {
        Self([0; 48])
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "03080d12171c21262b30353a3f44494e53585d62676c71767b80858a8f94999ea3a8adb2b7bc\
                       c1c6cbd0d5dadfe4e9ee";
    const BASE64: &str = "AwgNEhccISYrMDU6P0RJTlNYXWJnbHF2e4CFio+UmZ6jqK2yt7zBxsvQ1drf5Onu";

    fn bytes() -> [u8; 48] {
        std::array::from_fn(|i| u8::try_from((i * 5 + 3) % 256).unwrap())
    }

    fn no_file(path: &str) -> io::Result<Vec<u8>> {
        panic!("{path} is not to be read")
    }

    #[test]
    fn hex_and_base64_give_the_same_identity() {
        assert_eq!(Identity::from_option(HEX, no_file).unwrap().0, bytes());
        assert_eq!(Identity::from_option(BASE64, no_file).unwrap().0, bytes());
        assert_eq!(Identity(bytes()).to_string(), HEX);
    }

    #[test]
    fn file_may_hold_bytes_or_text_with_a_newline() {
        for content in [
            bytes().to_vec(),
            format!("{HEX}\n").into_bytes(),
            BASE64.into(),
        ] {
            let got = Identity::from_option("@owner", |path| {
                assert_eq!(path, "owner");
                Ok(content.clone())
            });
            assert_eq!(got.unwrap().0, bytes());
        }
    }

    #[test]
    fn missing_file_is_named() {
        let error = Identity::from_option("@gone", |_| Err(io::ErrorKind::NotFound.into()));
        assert_eq!(
            error.unwrap_err().to_string(),
            "cannot read identity file gone"
        );
    }

    #[test]
    fn file_with_neither_form_is_refused() {
        let error = Identity::from_option("@short", |_| Ok(vec![0xff; 47])).unwrap_err();
        assert!(matches!(error, IdentityError::Content { .. }));
    }

    #[test]
    fn wrong_length_and_wrong_digit_are_told_apart() {
        assert!(matches!(
            Identity::from_text("abc"),
            Err(IdentityError::Length(3))
        ));
        let wrong = HEX.replacen('d', "x", 1);
        let error = Identity::from_text(&wrong).unwrap_err();
        assert_eq!(
            error.to_string(),
            "character 'x' at position 5 is not a hex digit"
        );
    }
}
