//! Compresses clusters for images of our making.
//!
//! Knows: encoders. Does not know: how clusters are read.

use std::io::Write;

use super::streams::Kind;

/// A compressed stream of these bytes.
pub fn stream(kind: Kind, plain: &[u8]) -> Vec<u8> {
    with_level(kind, plain, 1)
}

/// The same with more or less effort: 0 to 9.
pub fn with_level(kind: Kind, plain: &[u8], level: u32) -> Vec<u8> {
    match kind {
        Kind::Zlib => {
            let level = flate2::Compression::new(level);
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
            encoder.write_all(plain).expect("a vector");
            encoder.finish().expect("a vector")
        }
        Kind::Zstd => zstd::bulk::compress(plain, level as i32).expect("enough memory"),
    }
}
