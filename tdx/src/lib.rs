//! The KVM TDX ABI and its typestates.
