//! A view as `qmpfs-guestfs` reads it.

use crate::errno::Failure;
use crate::view::View;
use qmpfs_guestfs::ReadAt;
use std::io;
use std::sync::Arc;

/// The bytes of a point's disk.
pub(super) struct Disk(pub(super) Arc<View>);

impl ReadAt for Disk {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0
            .read(offset, buffer)
            .map_err(|failure: Failure| io::Error::other(failure.to_string()))
    }

    fn size(&self) -> u64 {
        self.0.virtual_size()
    }
}
