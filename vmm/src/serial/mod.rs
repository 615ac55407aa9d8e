//! The host's side of the first serial port and of the console: where its bytes go, and where they come from.
//!
//! The guest writes from a vCPU thread. A sink never holds that thread for longer than the host's own
//! write takes, and drops bytes that nobody takes: a guest that floods its port gains nothing.

pub mod backend;
pub mod clients;
pub mod console;
pub mod input;
pub mod output;
pub mod terminal;
