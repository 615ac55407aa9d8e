//! From what the user wants and what the host has to the parameters of a TD. Pure.
//!
//! [`TdRequest::resolve`] either gives [`TdParams`], which `KVM_TDX_INIT_VM` should take, or says
//! of every refused wish what it is, who lacks it and where it would come from ([`Refusal`]). What
//! is lacking is read from [`Capabilities`] and from nothing else, so a newer kernel or module
//! turns a feature on by reporting it.

mod attributes;
mod configurable;
mod feature;
mod gpaw;
mod identity;
mod refusal;
mod tsc;
mod xfam;

pub use attributes::TdAttributes;
pub use configurable::has_sub_leaves;
pub use feature::TdFeature;
pub use gpaw::Gpaw;
pub use identity::{Identities, Identity, IdentityError};
pub use refusal::{Refusal, Refused};
pub use tsc::{TscError, TscFrequency};
pub use xfam::{Xfam, XfamChoice};

use tdvmm_arch::addr::Gpa;
use tdvmm_arch::cpuid::CpuidTable;

use crate::abi::KVM_MAX_CPUID_ENTRIES;
use crate::caps::Capabilities;

/// What is wanted of a TD.
#[derive(Clone, Debug)]
pub struct TdRequest {
    /// Attributes; [`TdAttributes::DEFAULT`] is what a Linux guest needs.
    pub attributes: TdAttributes,
    /// Extended features.
    pub xfam: XfamChoice,
    /// Width of guest-physical addresses; `None` takes the smallest that holds `ram_top`.
    pub gpaw: Option<Gpaw>,
    /// First address above all RAM.
    pub ram_top: Gpa,
    /// What the owner binds the TD to.
    pub identities: Identities,
    /// Features beyond the plain TD, each with the option that asks for it.
    pub features: Vec<(TdFeature, String)>,
    /// The options that ask for the rest.
    pub asked_by: AskedBy,
    /// CPUID as the machine wants it (for vCPU 0): host-supported values with topology.
    pub cpuid: CpuidTable,
}

/// The options by which something was asked for, such as `--platform debug=on`, so that a refusal names them. What
/// is wanted though nobody asked for it has none.
#[derive(Clone, Debug, Default)]
pub struct AskedBy {
    /// Of attributes; the first that has a bit counts.
    pub attributes: Vec<(TdAttributes, String)>,
    /// Of the extended features.
    pub xfam: Option<String>,
    /// Of the width of addresses.
    pub gpaw: Option<String>,
}

/// The parameters of a TD: all within what the host reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdParams {
    attributes: TdAttributes,
    xfam: Xfam,
    gpaw: Gpaw,
    identities: Identities,
    cpuid: CpuidTable,
}

impl TdRequest {
    /// A TD with default attributes, the extended features of `cpuid`, and no identities.
    #[must_use]
    pub fn new(cpuid: CpuidTable, ram_top: Gpa) -> Self {
        Self {
            attributes: TdAttributes::DEFAULT,
            xfam: XfamChoice::FromCpuid,
            gpaw: None,
            ram_top,
            identities: Identities::default(),
            features: Vec::new(),
            asked_by: AskedBy::default(),
            cpuid,
        }
    }

    /// The parameters, or all that is refused at once.
    ///
    /// # Errors
    ///
    /// [`Refused`] lists every wish that the host cannot grant.
    pub fn resolve(&self, caps: &Capabilities) -> Result<TdParams, Refused> {
        let asked_by = &self.asked_by;
        let mut refusals = self.attributes.refusals(caps, &asked_by.attributes);
        refusals.extend(self.features.iter().filter_map(|(feature, option)| {
            let refusal = feature.refusal(caps)?;
            Some(refusal.asked_by(Some(option)))
        }));
        let xfam = self
            .xfam
            .resolve(&self.cpuid, caps)
            .unwrap_or_else(|refused| {
                let option = asked_by.xfam.as_deref();
                refusals.extend(refused.into_iter().map(|one| one.asked_by(option)));
                Xfam::LEGACY
            });
        let gpaw = Gpaw::choose(self.gpaw, self.ram_top, &self.cpuid).unwrap_or_else(|refused| {
            refusals.push(refused.asked_by(asked_by.gpaw.as_deref()));
            Gpaw::Bits48
        });
        let cpuid = configurable::intersect(&self.cpuid, caps, gpaw);
        if cpuid.iter().count() > KVM_MAX_CPUID_ENTRIES {
            refusals.push(Refusal::new(
                "more than 256 configurable CPUID leaves",
                "KVM_TDX_INIT_VM takes 256 entries",
                "a kernel with a larger limit",
            ));
        }
        if !refusals.is_empty() {
            return Err(Refused(refusals));
        }
        Ok(TdParams {
            attributes: self.attributes,
            xfam,
            gpaw,
            identities: self.identities,
            cpuid,
        })
    }
}

impl TdParams {
    /// TD attributes.
    #[must_use]
    pub const fn attributes(&self) -> TdAttributes {
        self.attributes
    }

    /// Extended features.
    #[must_use]
    pub const fn xfam(&self) -> Xfam {
        self.xfam
    }

    /// Width of guest-physical addresses.
    #[must_use]
    pub const fn gpaw(&self) -> Gpaw {
        self.gpaw
    }

    /// What the owner binds the TD to.
    #[must_use]
    pub const fn identities(&self) -> &Identities {
        &self.identities
    }

    /// Values of the configurable CPUID bits: one entry per leaf and sub-leaf.
    #[must_use]
    pub const fn cpuid(&self) -> &CpuidTable {
        &self.cpuid
    }
}
