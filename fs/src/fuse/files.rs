//! Open files, read. A view is read in the worker as long as another one is free; what must be waited for is the engine's.

use super::handles::{Handle, OpenView};
use super::shared::Shared;
use super::{failed, guest_data, message};
use crate::errno::{Errno, Failure};
use crate::ops::Request;
use crate::sys::Bytes;
use crate::tree::{self, Inside, NodeKey, PointFile};
use fuser::{FileHandle, OpenFlags, ReplyData, RequestId};
use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

thread_local! {
    /// Bytes that the kernel cannot copy from where they lie; each worker keeps its own.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn read(
    shared: &Arc<Shared>,
    request: RequestId,
    fh: FileHandle,
    flags: OpenFlags,
    (offset, size): (u64, u32),
    reply: ReplyData,
) {
    let Some(handle) = shared.handles.get(fh) else {
        return reply.error(fuser::Errno::EBADF);
    };
    match &*handle {
        Handle::Directory(_) | Handle::GuestDirectory { .. } => {
            reply.error(fuser::Errno::EISDIR);
        }
        Handle::GuestFile(_) => {
            guest_data::read(shared, &handle, request, (offset, size), reply);
        }
        Handle::Text(text) | Handle::Control { text, .. } => reply.data(part(text, offset, size)),
        Handle::Lines(stream, reader) => {
            let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
            let lines = shared.log.stream(*stream);
            reply.data(&reader.read(lines, offset, size as usize));
        }
        Handle::Wait { scope, text } => {
            if let Some(text) = text.get() {
                return reply.data(part(text.as_bytes(), offset, size));
            }
            let (scope, handle) = (scope.clone(), Arc::clone(&handle));
            let answer = Box::new(
                move |ended: Result<String, Failure>| match (ended, &*handle) {
                    // Two readers of one descriptor: the first answer stays.
                    (Ok(answer), Handle::Wait { text, .. }) => {
                        reply.data(part(text.get_or_init(|| answer).as_bytes(), offset, size));
                    }
                    (Ok(answer), _) => reply.data(part(answer.as_bytes(), offset, size)),
                    (Err(failure), _) => reply.error(failed(&failure)),
                },
            );
            shared.engine.send(Request::Wait { scope, answer });
        }
        Handle::View(open) => {
            let (offset, size) = open.window.on_disk(offset, size);
            if open.view.waits() {
                let (shared, handle) = (Arc::clone(shared), Arc::clone(&handle));
                return open.view.read_later(offset, size as usize, move |read| {
                    served(&shared, &handle, offset, read, reply);
                });
            }
            if let Some(_turn) = shared.storage.turn() {
                return read_view(shared, open, request, flags, (offset, size), reply);
            }
            let (in_turn, handle) = (Arc::clone(shared), Arc::clone(&handle));
            shared
                .storage
                .hand_over(&open.point.disk, move |turn| match (turn, &*handle) {
                    (Ok(()), Handle::View(open)) => {
                        read_view(&in_turn, open, request, flags, (offset, size), reply);
                    }
                    (Ok(()), _) => reply.error(fuser::Errno::EBADF),
                    (Err(failure), _) => reply.error(failed(&failure)),
                });
        }
    }
}

/// Answers a read with what a server had, on the thread that got it.
fn served(
    shared: &Shared,
    handle: &Handle,
    offset: u64,
    read: Result<Vec<u8>, Failure>,
    reply: ReplyData,
) {
    let Handle::View(open) = handle else {
        return reply.error(fuser::Errno::EBADF);
    };
    match read {
        Ok(bytes) => {
            open.bytes_read
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            reply.data(&bytes);
        }
        Err(failure) => {
            reply.error(failed(&failure));
            complain(shared, open, offset, &failure);
        }
    }
}

fn read_view(
    shared: &Shared,
    open: &OpenView,
    request: RequestId,
    flags: OpenFlags,
    (offset, size): (u64, u32),
    reply: ReplyData,
) {
    if flags.0 & libc::O_DIRECT == 0 && open.partition.is_none() {
        shared.pages.read(&open.point, &open.habit, size);
    }
    let mut reply = Some(reply);
    let answered = BUFFER.with_borrow_mut(|buffer| {
        let OpenView { view, cursor, .. } = open;
        view.answer(cursor, offset, size as usize, buffer, |parts| {
            let length: usize = parts.iter().map(Bytes::length).sum();
            open.bytes_read.fetch_add(length as u64, Ordering::Relaxed);
            reply
                .take()
                .map(|reply| message::answer(shared.device(), request, reply, parts))
        })
    });
    let failure = match answered {
        Err(failure) => failure,
        Ok(Some(Err(error))) => match error.raw_os_error() {
            // The reader was interrupted and waits no more.
            Some(libc::ENOENT) => return,
            Some(libc::EFAULT) => {
                Failure::new(Errno::EIO, "a layer's file was cut, or cannot be read").next(
                    "see what happened to the file: the VM stands on it, too; then qemu-img check",
                )
            }
            _ => Failure::io("hand the bytes to the kernel", &error),
        },
        Ok(_) => return,
    };
    if let Some(reply) = reply {
        reply.error(failed(&failure));
    }
    complain(shared, open, offset, &failure);
}

/// One line of the log says why a view cannot be read.
fn complain(shared: &Shared, open: &OpenView, offset: u64, failure: &Failure) {
    if !open.complained.swap(true, Ordering::Relaxed) {
        let model = shared.engine.model();
        let point = open.point.clone();
        let file = match open.partition {
            None => NodeKey::PointFile(point, PointFile::DiskRaw),
            Some(number) => NodeKey::Inside(point, Inside::Partition(number)),
        };
        let path = tree::path_of(&model, &file);
        let errno = failure.errno;
        shared
            .log
            .note(&format!("read {path} at {offset} {errno}: {failure}"));
    }
}

pub(super) fn release(shared: &Shared, fh: FileHandle) {
    let Some(handle) = shared.handles.remove(fh) else {
        return;
    };
    if let Handle::View(open) = &*handle
        && open.partition.is_none()
    {
        shared.pages.close(&open.point, open.files);
    }
    // first: whoever has closed a point may remove it at once, however long its storage takes
    match &*handle {
        Handle::View(open) => open.view.give_back(),
        Handle::GuestFile(file) => file.disks.give_back(),
        _ => {}
    }
    // the last reader closes the files of the layers, for which their storage may be waited as well
    if let Some(_turn) = shared.storage.turn() {
        return drop(handle);
    }
    let disk = match &*handle {
        Handle::View(open) => open.point.disk.clone(),
        Handle::GuestFile(file) => file.tree.home.disk().to_owned(),
        _ => return,
    };
    shared.storage.hand_over(&disk, move |_turn| drop(handle));
}

/// The bytes of a text that a read asks for.
fn part(text: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(text.len());
    let end = start.saturating_add(size as usize).min(text.len());
    &text[start..end]
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn parts_of_a_text() {
        assert_eq!(part(b"hello", 0, 3), b"hel");
        assert_eq!(part(b"hello", 3, 100), b"lo");
        assert_eq!(part(b"hello", 5, 1), b"");
        assert_eq!(part(b"hello", u64::MAX, u32::MAX), b"");
    }
}
