//! Partitions and filesystems of guests, over anything that can be read at an offset.
//!
//! Knows: partition tables, and what filesystems look like on a disk.
//! Does not know: FUSE, QEMU, images, processes, or who asks.
//! Invariants: nothing is written; every number comes from a guest and is checked before it is used;
//! every loop and every list is bounded by a named limit.
#![forbid(unsafe_code)]

pub mod btrfs;
mod bytes;
mod error;
pub mod exfat;
pub mod ext;
pub mod fat;
mod filesystem;
pub mod iso;
pub mod lvm;
pub mod ntfs;
mod partitions;
mod probe;
mod source;
pub mod squashfs;
mod stretches;
mod unpack;
pub mod xfs;

pub use error::Error;
pub use filesystem::{
    Attributes, DirEntry, Extent, FileKind, Filesystem, Journal, Listing, Place, Time, Xattr,
    is_known, open,
};
pub use partitions::{Partition, Scheme, Table};
pub use probe::{Found, Kind, probe};
pub use source::{Part, ReadAt};
