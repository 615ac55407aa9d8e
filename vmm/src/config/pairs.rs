//! Option texts of the form `key=value,key=value`.
//!
//! A value may stand in double quotes, so that a path may hold a comma. Words of a key may be joined by
//! `-` as well as `_`. An unknown key, a key given twice and a key without a value are errors that list the
//! known keys.

use std::str::FromStr;

use super::ConfigError;

/// The pairs of one option's text.
pub(super) struct Pairs<'a> {
    option: &'static str,
    text: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Pairs<'a> {
    pub(super) fn parse(
        option: &'static str,
        text: &'a str,
        known: &'a [&'a str],
    ) -> Result<Self, ConfigError> {
        let mut found = Self {
            option,
            text,
            pairs: Vec::new(),
        };
        let known_keys = || known.join(", ");
        for item in split_outside_quotes(text) {
            let Some((key, value)) = item.split_once('=') else {
                let problem = format!("'{item}' is no key=value; keys are {}", known_keys());
                return Err(found.problem(problem));
            };
            let joined = key.replace('-', "_");
            let Some(&key) = known.iter().find(|known| **known == joined) else {
                let problem = format!("unknown key '{key}'; keys are {}", known_keys());
                return Err(found.problem(problem));
            };
            if found.get(key).is_some() {
                return Err(found.problem(format!("key '{key}' is given twice")));
            }
            let unquoted = value
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'));
            found.pairs.push((key, unquoted.unwrap_or(value)));
        }
        Ok(found)
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        self.pairs
            .iter()
            .find(|pair| pair.0 == key)
            .map(|pair| pair.1)
    }

    pub(super) fn number<N: FromStr + Max>(&self, key: &str, text: &str) -> Result<N, ConfigError> {
        text.parse().map_err(|_| {
            self.problem(format!(
                "{key}: '{text}' is no number from 0 to {}",
                N::MAX_NUMBER
            ))
        })
    }

    pub(super) fn switch(&self, key: &str, text: &str) -> Result<bool, ConfigError> {
        match text {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(self.problem(format!("{key} is on or off, not '{text}'"))),
        }
    }

    pub(super) fn optional_switch(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.get(key)
            .map(|value| self.switch(key, value))
            .transpose()
    }

    pub(super) fn problem(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError::option(self.option, self.text, problem)
    }
}

/// The largest number of a type, for messages.
pub(super) trait Max {
    const MAX_NUMBER: u64;
}

impl Max for u16 {
    const MAX_NUMBER: u64 = u16::MAX as u64;
}

impl Max for u32 {
    const MAX_NUMBER: u64 = u32::MAX as u64;
}

impl Max for u64 {
    const MAX_NUMBER: u64 = u64::MAX;
}

fn split_outside_quotes(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |letter| {
        quoted ^= letter == '"';
        letter == ',' && !quoted
    })
}
