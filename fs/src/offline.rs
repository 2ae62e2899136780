//! Chains of image files without a QEMU: for mounts with `-o ro`, and for what our own storage
//! daemon is told to open.
//! It knows headers and the formats that overlays record; it never probes a backing file, and
//! follows no name that is not a plain file's, unless the user trusts the images.

mod chain;
mod disks;
mod json_name;

pub use chain::{ResolvedLayer, resolve_chain, resolve_chain_within};
pub use disks::model;
