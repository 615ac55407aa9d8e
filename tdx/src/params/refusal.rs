//! A wish that the host cannot grant, told in full.

use std::fmt;

/// What is refused, who lacks it, and where it would come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    option: Option<String>,
    what: String,
    lacking: String,
    remedy: String,
}

impl Refusal {
    pub(crate) fn new(
        what: impl Into<String>,
        lacking: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            option: None,
            what: what.into(),
            lacking: lacking.into(),
            remedy: remedy.into(),
        }
    }

    /// The same of what `option` asked for.
    #[must_use]
    pub(crate) fn asked_by(self, option: Option<&str>) -> Self {
        Self {
            option: option.map(str::to_owned),
            ..self
        }
    }

    /// The option that asked for it; `None` if it is wanted though no option says so.
    #[must_use]
    pub fn option(&self) -> Option<&str> {
        self.option.as_deref()
    }

    /// The wish, with the bits it stands for.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Who lacks it, and where that was read.
    #[must_use]
    pub fn lacking(&self) -> &str {
        &self.lacking
    }

    /// Where it would come from.
    #[must_use]
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(option) = &self.option {
            write!(f, "{option}: ")?;
        }
        write!(
            f,
            "{}: {}; it would come from {}",
            self.what, self.lacking, self.remedy
        )
    }
}

/// All refusals of one request; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refused(pub(crate) Vec<Refusal>);

impl Refused {
    /// The refusals.
    pub fn iter(&self) -> impl Iterator<Item = &Refusal> {
        self.0.iter()
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this host cannot run the TD as asked for")?;
        for (i, refusal) in self.0.iter().enumerate() {
            write!(f, "{}{refusal}", if i == 0 { ": " } else { "; also " })?;
        }
        Ok(())
    }
}
