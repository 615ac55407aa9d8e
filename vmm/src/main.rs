//! The `tdvmm` program.

fn main() {}
