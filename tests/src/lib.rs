//! What the lanes share.
