//! Positional reads: the only way this crate touches a disk.

use crate::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Something that can be read at any offset.
pub trait ReadAt: Send + Sync {
    /// Fills `buffer` from `offset`; an end before that is an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Bytes there are.
    fn size(&self) -> u64;

    /// `length` bytes from `offset`. The caller bounds the length.
    fn bytes(&self, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.size()) {
            return Err(Error::Corrupt("something points behind the end"));
        }
        let mut bytes = vec![0; length];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn size(&self) -> u64 {
        // A file that cannot be asked has no bytes that could be read.
        self.metadata().map_or(0, |metadata| metadata.len())
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(buffer.len());
        let bytes = self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn size(&self) -> u64 {
        self.len() as u64
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }

    fn size(&self) -> u64 {
        (**self).size()
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }

    fn size(&self) -> u64 {
        (**self).size()
    }
}

/// A stretch of a source, read as one that begins at 0.
pub struct Part<S> {
    source: S,
    start: u64,
    length: u64,
}

impl<S: ReadAt> Part<S> {
    /// `length` bytes from `start`, as far as there are so many.
    pub fn new(source: S, start: u64, length: u64) -> Part<S> {
        let rest = source.size().saturating_sub(start);
        Part {
            source,
            start,
            length: length.min(rest),
        }
    }
}

impl<S: ReadAt> ReadAt for Part<S> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Both are within the source.
        self.source
            .read_at(self.start.saturating_add(offset), buffer)
    }

    fn size(&self) -> u64 {
        self.length
    }
}
