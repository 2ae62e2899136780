//! A file's pages handed from its page cache to another descriptor, copied once, by the kernel.
//! It knows mmap and writev; it does not know what the bytes are.
//! Invariant: no byte of a mapping is ever touched by this process. A file that was cut under its
//! mapping would end us by SIGBUS, where the kernel's own copying just fails with EFAULT.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

/// A file mapped for reading.
pub struct MappedFile {
    start: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: the mapping is a range of addresses that nothing here reads or writes through.
unsafe impl Send for MappedFile {}
// SAFETY: as above; system calls on it may be made from any thread.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Maps the first `length` bytes of a file, which is more than none.
    pub fn new(file: &File, length: u64) -> io::Result<MappedFile> {
        let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let length = usize::try_from(length).map_err(too_long)?;
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory in use.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or_else(io::Error::last_os_error)?;
        Ok(MappedFile { start, length })
    }

    /// A stretch to be written somewhere; None where the mapping does not reach.
    pub fn stretch(&self, offset: u64, length: usize) -> Option<Bytes<'_>> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(length)?;
        if end > self.length {
            return None;
        }
        // SAFETY: within the mapping, as was just checked.
        let start = unsafe { self.start.as_ptr().byte_add(offset) };
        Some(Bytes {
            part: libc::iovec {
                iov_base: start,
                iov_len: length,
            },
            from: PhantomData,
        })
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: exactly our mapping; whatever borrowed it is gone.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}

/// Bytes for the kernel to read: of memory, or of a mapped file.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Bytes<'a> {
    part: libc::iovec,
    from: PhantomData<&'a [u8]>,
}

impl<'a> From<&'a [u8]> for Bytes<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Bytes {
            part: libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            },
            from: PhantomData,
        }
    }
}

impl Bytes<'_> {
    /// How many.
    pub fn length(&self) -> usize {
        self.part.iov_len
    }
}

/// Writes all parts as one message, with one system call.
pub fn write_message(to: impl AsFd, parts: &[Bytes<'_>]) -> io::Result<()> {
    let count = libc::c_int::try_from(parts.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `Bytes` is an iovec, and each is borrowed memory or part of a borrowed mapping.
    let written = unsafe { libc::writev(to.as_fd().as_raw_fd(), parts.as_ptr().cast(), count) };
    let whole: usize = parts.iter().map(Bytes::length).sum();
    match usize::try_from(written) {
        Ok(written) if written == whole => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn parts_of_files_and_of_memory_are_one_message() {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"0123456789", 0).unwrap();
        let mapped = MappedFile::new(&file, 10).unwrap();
        let (mut read, write) = std::io::pipe().unwrap();
        let parts = [
            mapped.stretch(2, 3).unwrap(),
            Bytes::from(&b"abc"[..]),
            mapped.stretch(9, 1).unwrap(),
        ];
        write_message(&write, &parts).unwrap();
        write_message(&write, &parts[..1]).unwrap();
        drop(write);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "234abc9234");
        assert!(mapped.stretch(9, 2).is_none());
        assert!(mapped.stretch(u64::MAX, 1).is_none());
    }

    #[test]
    fn a_file_that_was_cut_is_an_error_and_not_the_end() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mapped = MappedFile::new(&file, 1 << 20).unwrap();
        file.set_len(0).unwrap();
        let (_read, write) = std::io::pipe().unwrap();
        let error = write_message(&write, &[mapped.stretch(4096, 4096).unwrap()]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    }
}
