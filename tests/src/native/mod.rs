//! What needs the machine's own `/dev/kvm`: guests in assembly, and the VMM that runs them (lane L2
//! and the bench of the start-up).
//!
//! The guests are in `tests/guests`, one file each; they are assembled when a run needs them, with
//! the machine's C compiler, and are small enough to run where KVM has no hardware virtualization
//! and no Linux boots.

pub mod calls;
pub mod folder;
pub mod guest;
pub mod load;
pub mod needs;
pub mod vm;
