//! Synthetic firmware images: what is measured of them, what they are handed, and what is refused.

#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers of synthetic images are small"
)]

#[cfg(test)]
mod fw_cfg;
#[cfg(test)]
mod hob;
#[cfg(test)]
mod inspected;
#[cfg(test)]
mod measured;
#[cfg(test)]
mod refused;
#[cfg(test)]
mod second_mrtd;
#[cfg(test)]
mod synthetic;
#[cfg(test)]
mod td_shim;
#[cfg(test)]
mod variables;
