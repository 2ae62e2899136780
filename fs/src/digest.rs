//! The digest of a disk's content: BLAKE3 of its bytes, first to last, as `b3sum disk.raw` gives it. It
//! is of what a point shows, whatever files that lies in: copying, compressing and merging them
//! leaves it as it is. Its tree is kept by pieces, so that of the next incremental backup only the pieces
//! that were written have to be read. Knows bytes at offsets; no image, no manifest, no QEMU.

mod content;
mod tree;

pub use content::{Content, PIECE, Pieces, Progress, measure};
pub use tree::{Tree, WORD};
