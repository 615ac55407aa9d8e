//! What fuzz targets share.

pub mod firmware;
