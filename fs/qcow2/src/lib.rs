//! A read-only qcow2 reader: bytes in, guest bytes out.
//!
//! Knows: the qcow2 format, and how layers of a chain lie over one another.
//! Does not know: FUSE, paths, QMP, who opened the files, or when they change hands.
//! Invariants: no unsafe code; every number from a file is checked before it is used;
//! metadata is read with positional reads, never mapped; no lock is held across a read.
#![forbid(unsafe_code)]
#![deny(clippy::arithmetic_side_effects)]

mod bytes;
mod chain;
mod compressed;
mod error;
mod flat_map;
mod header;
mod image;
mod layer;
mod mapping;
mod read_at;
mod snapshot_table;
mod table;
mod table_cache;
mod units;

pub use chain::{Chain, Extent, ExtentKind, Piece, Source};
pub use compressed::CompressedCluster;
pub use error::{Corrupt, Error, Unsupported};
pub use header::{BackingRef, Compression, Features, Header};
pub use image::{Allocation, Image, OpenOptions};
pub use layer::{Layer, RawLayer};
pub use mapping::{Mapping, Run};
pub use read_at::ReadAt;
pub use snapshot_table::InternalSnapshot;
pub use table_cache::{CacheBytes, Caches};
pub use units::{ClusterBits, GuestOffset, HostOffset};
