//! Positional reads: the only way this crate touches a file.
//!
//! Knows: files, block devices, and byte vectors as read-only arrays of bytes.
//! Does not know: what the bytes mean.
//! Invariant: bytes past the end of a file are zeros, as they are for QEMU.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;

/// Something that can be read at any offset, by several threads at once.
pub trait ReadAt: Send + Sync {
    /// Reads at `offset` into `buf`; fewer bytes than asked for is allowed, 0 means the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The size in bytes, now.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        let metadata = self.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        // A block device has no length in its metadata. The cursor moves, but nothing here uses it.
        let mut file = self;
        file.seek(SeekFrom::End(0))
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..))
            .unwrap_or(&[]);
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// Reads until `buf` is full or the file ends; returns how much was read.
pub(crate) fn read_available(file: &dyn ReadAt, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done: usize = 0;
    while done < buf.len() {
        let Some(at) = offset.checked_add(done as u64) else {
            break;
        };
        match file.read_at(&mut buf[done..], at) {
            Ok(0) => break,
            Ok(n) => done = done.saturating_add(n).min(buf.len()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Fills `buf` from `offset`, with zeros where the file has ended.
pub(crate) fn read_padded(file: &dyn ReadAt, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let done = read_available(file, buf, offset)?;
    buf[done..].fill(0);
    Ok(())
}
