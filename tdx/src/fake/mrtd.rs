//! MRTD as the TDX module computes it, as a witness for tests.
//!
//! TDX module: `tdh_mem_page_add`, `tdh_mr_extend`, `tdh_mr_finalize`. Each page gives one block
//! with its address; each 256-byte chunk of a measured page gives one with its address, and its
//! contents.

use sha2::{Digest as _, Sha384};

use crate::pages::Digest;

const CHUNK: usize = 256;

/// The running hash.
#[derive(Clone, Debug, Default)]
pub struct MrtdWitness(Sha384);

impl MrtdWitness {
    /// A page is added.
    pub fn page_add(&mut self, gpa: u64) {
        self.0.update(block(b"MEM.PAGE.ADD", gpa));
    }

    /// The contents of a page are measured.
    pub fn extend_page(&mut self, gpa: u64, content: &[u8]) {
        let addresses = (gpa..).step_by(CHUNK);
        for (at, chunk) in addresses.zip(content.chunks_exact(CHUNK)) {
            self.0.update(block(b"MR.EXTEND", at));
            self.0.update(chunk);
        }
    }

    /// The value so far; final once FINALIZE was called.
    #[must_use]
    pub fn value(&self) -> Digest {
        Digest(self.0.clone().finalize().into())
    }
}

/// 128 bytes: the name of the operation, zeros to byte 16, the address, zeros.
fn block(name: &[u8], gpa: u64) -> Vec<u8> {
    let mut block = name.to_vec();
    block.resize(16, 0);
    block.extend_from_slice(&gpa.to_le_bytes());
    block.resize(128, 0);
    block
}
