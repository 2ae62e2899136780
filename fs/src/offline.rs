//! Chains of image files without a QEMU: for mounts with `-o ro`, and for what our own storage
//! daemon is told to open.
//! It knows headers and the formats that overlays record; it never probes a backing file, and
//! follows no name that is not a plain file's, unless the user trusts the images; and it reads no
//! image that somebody writes.

mod branches;
mod chain;
mod disks;
mod foreign;
mod json_name;

pub use branches::branches;
pub use chain::{ResolvedLayer, resolve_chain, resolve_chain_within};
pub(crate) use disks::disk_name;
pub use disks::model;
pub(crate) use foreign::{can_stand_on_another, is_known, refuse_unless_alone, stands_on_another};

use crate::errno::{Errno, Failure};
use crate::view;
use std::path::Path;

/// What is read from outside while somebody writes it is of no one instant, if it is anything.
pub(crate) fn refuse_if_written(image: &Path) -> Result<(), Failure> {
    if !view::written_by_someone(image)? {
        return Ok(());
    }
    Err(Failure::new(
        Errno::EBUSY,
        format!(
            "{} is in use: a running VM (or another tool) writes it",
            image.display()
        ),
    )
    .next("mount the QMP socket of that VM: the disk.raw of a snapshot can be read, and two writers ruin an image"))
}
