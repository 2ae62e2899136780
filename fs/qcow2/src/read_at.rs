//! Positional reads: the only way this crate touches a file.
//!
//! Knows: files, block devices, and byte vectors as read-only arrays of bytes.
//! Does not know: what the bytes mean.

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

/// A file with the size it had when it was opened.
///
/// Bytes beyond that size are zeros, as they are for QEMU. Bytes before it must be there: a file
/// that was cut since then gives errors, never zeros in the place of data.
pub(crate) struct OpenedFile {
    file: Arc<dyn ReadAt>,
    size: u64,
}

impl OpenedFile {
    pub(crate) fn new(file: Arc<dyn ReadAt>) -> io::Result<OpenedFile> {
        let size = file.size()?;
        Ok(OpenedFile { file, size })
    }

    pub(crate) fn inner(&self) -> &Arc<dyn ReadAt> {
        &self.file
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` from `offset`.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let done = read_available(&*self.file, buf, offset)?;
        if done < buf.len() && offset.saturating_add(done as u64) < self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf[done..].fill(0);
        Ok(())
    }
}
