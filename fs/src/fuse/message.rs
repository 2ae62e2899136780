//! Answers that fuser cannot write: reads in several parts, where it takes one slice, and names without attributes
//! where attributes could be. This writes the same messages, as the kernel wants them.
//! Invariant: all workers share one descriptor of the device: an answer to a request that was
//! read from another is not taken.

use crate::sys::{Bytes, write_message};
use fuser::{ReplyData, ReplyDirectoryPlus, RequestId};
use std::fs::File;
use std::io;

/// `struct fuse_out_header` of linux/fuse.h: length, error and the request's number.
const HEADER: usize = 16;

/// A reply of fuser's that can be answered in its place.
pub(super) trait Reply {
    fn refuse(self, errno: fuser::Errno);
}

impl Reply for ReplyData {
    fn refuse(self, errno: fuser::Errno) {
        self.error(errno);
    }
}

impl Reply for ReplyDirectoryPlus {
    fn refuse(self, errno: fuser::Errno) {
        self.error(errno);
    }
}

/// Answers instead of `reply`: EFAULT where a file was cut under its mapping, for which the
/// kernel has given the reader EIO; ENOENT where the reader has gone.
pub(super) fn answer(
    device: &File,
    request: RequestId,
    reply: impl Reply,
    parts: &[Bytes<'_>],
) -> io::Result<()> {
    let length: usize = parts.iter().map(Bytes::length).sum();
    let Ok(length) = u32::try_from(HEADER + length) else {
        // Cannot be: the kernel asks for `LONGEST_READ` at most. `reply` says EIO as it goes.
        return Err(io::ErrorKind::InvalidData.into());
    };
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&length.to_ne_bytes());
    header[8..].copy_from_slice(&request.0.to_ne_bytes());
    let mut message = Vec::with_capacity(1 + parts.len());
    message.push(Bytes::from(&header[..]));
    message.extend_from_slice(parts);
    let written = write_message(device, &message);
    match &written {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::EFAULT | libc::ENOENT)) => {
            // The kernel has not come as far as to take it for an answer.
            reply.refuse(fuser::Errno::EIO);
        }
        // It would answer a second time. What is lost is one count of the references to fuser's
        // device, so that this is closed only when the process ends.
        Ok(()) | Err(_) => std::mem::forget(reply),
    }
    written
}
