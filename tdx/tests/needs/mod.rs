//! A test that lacks what it needs is ignored with the reason, or fails if `TDVMM_REQUIRE` (a list
//! with commas) names the need: so a machine that should have it cannot lose it unseen.

use std::env;

use libtest_mimic::Trial;

/// Stands for a test that cannot run for want of `need`.
pub fn unmet(name: &str, need: &str, why: &str) -> Trial {
    let required = env::var("TDVMM_REQUIRE").unwrap_or_default();
    if required.split(',').any(|word| word.trim() == need) {
        let why = format!("{need} is required: {why}");
        return Trial::test(name, move || Err(why.into()));
    }
    Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true)
}
