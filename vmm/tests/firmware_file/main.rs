//! What the program makes of a firmware file, without KVM: told of it, refused, planned and launched on a fake kernel.
#![cfg(test)]

mod image;
mod inspect;
mod launch;
