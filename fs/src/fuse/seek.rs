//! SEEK_DATA and SEEK_HOLE in open files: holes of a view are holes, a text is all data.

use super::failed;
use super::handles::{Handle, Window};
use super::shared::Shared;
use crate::errno::Failure;
use crate::nbd::Seek;
use crate::view::View;
use fuser::{FileHandle, ReplyLseek};

pub(super) fn lseek(shared: &Shared, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
    let handle = shared.handles.get(fh);
    let found = match (handle.as_deref(), u64::try_from(offset)) {
        (None, _) => return reply.error(fuser::Errno::EBADF),
        (_, Err(_)) => return reply.error(fuser::Errno::ENXIO),
        (Some(Handle::View(open)), Ok(offset)) => match (open.view.waits(), seek_of(whence)) {
            (true, Some(seek)) => {
                let (handle, window) = (handle.clone(), open.window);
                if offset >= window.length {
                    return reply.error(fuser::Errno::ENXIO);
                }
                return open
                    .view
                    .seek_later(window.start + offset, seek, move |found| {
                        let found = found.map(|found| in_window(found, window, seek));
                        answer_seek(found, whence, reply);
                        drop(handle);
                    });
            }
            _ => seek_view(&open.view, open.window, offset, whence),
        },
        // A text is all data.
        (Some(Handle::Text(text) | Handle::Control { text, .. }), Ok(offset)) => {
            Ok(seek_text(text.len() as u64, offset, whence))
        }
        (Some(Handle::Lines(stream, _)), Ok(offset)) => {
            let length = shared.log.stream(*stream).length();
            Ok(seek_text(length, offset, whence))
        }
        // A guest's file was sought before it came here.
        (
            Some(
                Handle::Wait { .. }
                | Handle::Directory(_)
                | Handle::GuestDirectory { .. }
                | Handle::GuestFile(_),
            ),
            Ok(offset),
        ) => Ok(seek_text(0, offset, whence)),
    };
    answer_seek(found, whence, reply);
}

fn seek_of(whence: i32) -> Option<Seek> {
    match whence {
        libc::SEEK_DATA => Some(Seek::Data),
        libc::SEEK_HOLE => Some(Seek::Hole),
        _ => None,
    }
}

fn answer_seek(found: Result<Option<u64>, Failure>, whence: i32, reply: ReplyLseek) {
    match found.map(|found| found.map(i64::try_from)) {
        Ok(Some(Ok(offset))) => reply.offset(offset),
        Ok(Some(Err(_))) => reply.error(fuser::Errno::EOVERFLOW),
        Ok(None) if matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) => {
            reply.error(fuser::Errno::ENXIO)
        }
        Ok(None) => reply.error(fuser::Errno::EINVAL),
        Err(failure) => reply.error(failed(&failure)),
    }
}

fn seek_view(
    view: &View,
    window: Window,
    offset: u64,
    whence: i32,
) -> Result<Option<u64>, Failure> {
    let Some(seek) = seek_of(whence).filter(|_| offset < window.length) else {
        return Ok(None);
    };
    let at = window.start + offset;
    let found = match seek {
        Seek::Data => view.seek_data(at)?,
        Seek::Hole => Some(view.seek_hole(at)?),
    };
    Ok(in_window(found, window, seek))
}

/// What was found on the disk, as an offset in the file: data behind its end is none of it, and
/// its end is a hole.
fn in_window(found: Option<u64>, window: Window, seek: Seek) -> Option<u64> {
    let found = found.map(|at| window.in_file(at));
    match seek {
        Seek::Data => found.filter(|at| *at < window.length),
        Seek::Hole => found,
    }
}

fn seek_text(length: u64, offset: u64, whence: i32) -> Option<u64> {
    match whence {
        libc::SEEK_DATA if offset < length => Some(offset),
        libc::SEEK_HOLE if offset < length => Some(length),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::seek_text;

    #[test]
    fn a_text_is_all_data() {
        assert_eq!(seek_text(5, 2, libc::SEEK_DATA), Some(2));
        assert_eq!(seek_text(5, 2, libc::SEEK_HOLE), Some(5));
        assert_eq!(seek_text(5, 5, libc::SEEK_DATA), None);
        assert_eq!(seek_text(5, 5, libc::SEEK_HOLE), None);
        assert_eq!(seek_text(5, 0, libc::SEEK_SET), None);
    }
}
