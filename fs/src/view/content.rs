//! An open chain as a digest reads it.

use super::cache::OpenChain;
use super::extents::Extents;
use super::failure;
use crate::digest::Content;
use crate::errno::{Errno, Failure};
use crate::sys;
use qmpfs_qcow2::{GuestOffset, Mapping};
use std::ops::Range;

impl Content for OpenChain {
    fn size(&self) -> u64 {
        self.chain().virtual_size()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
        let read = self.chain().read_at(buffer, offset);
        match read.map_err(|error| failure(&error))? {
            read if read == buffer.len() => Ok(()),
            read => Err(Failure::new(
                Errno::EIO,
                format!("{read} bytes at {offset} instead of {}", buffer.len()),
            )),
        }
    }

    fn next_data(&self, offset: u64) -> Result<Option<u64>, Failure> {
        let found = Extents::new(self).next(offset, true);
        found.map_err(|error| failure(&error))
    }
}

impl OpenChain {
    /// Whether the top layer holds anything of a stretch, zeros as well.
    pub fn top_holds(&self, stretch: Range<u64>) -> Result<bool, Failure> {
        let layers = self.chain().layers();
        let Some(top) = layers.last() else {
            return Ok(false);
        };
        let mut at = stretch.start;
        while at < stretch.end {
            let run = top
                .map(GuestOffset(at), stretch.end - at)
                .map_err(|error| failure(&error))?;
            match run.what {
                Mapping::Unallocated if run.len > 0 => at += run.len,
                Mapping::Unallocated => return Ok(false),
                Mapping::Data { .. } | Mapping::Zero | Mapping::Compressed { .. } => {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Nothing of its files need be kept in memory any more.
    pub fn forget_pages(&self) {
        for layer in self.layers() {
            sys::forget_pages(layer.file());
        }
    }
}
