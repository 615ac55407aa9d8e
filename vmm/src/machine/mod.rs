//! The machine: wiring, launch, and the main thread's work until the end.

pub mod board;
pub mod events;
pub mod functions;
pub mod launch_plain;
pub mod launch_td;
pub mod open_files;
pub mod run;
pub mod run_error;
mod serial_port;
pub mod td_services;
