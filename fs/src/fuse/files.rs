//! Open files: texts and waits and views, read and sought.
//! A view is read in the worker; opening one and waiting are the engine's.

use super::handles::{Handle, OpenView, Window};
use super::pages::Habit;
use super::shared::Shared;
use super::shared::stream_of;
use super::{TEXT_FLAGS, caller, failed, guest_data, inside, message, verbs};
use crate::errno::{Errno, Failure};
use crate::nbd::Seek;
use crate::ops::{Request, WaitScope};
use crate::sys::Bytes;
use crate::tree::{self, DiskFile, Inside, JobFile, NodeKey, PointFile, PointKey, RootFile};
use crate::view::{Cursor, View};
use fuser::{
    FileHandle, FopenFlags, INodeNo, OpenFlags, ReplyData, ReplyLseek, ReplyOpen, RequestId,
};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub(super) fn open(shared: &Arc<Shared>, pid: u32, ino: INodeNo, reply: ReplyOpen) {
    let key = match shared.key(ino) {
        Ok(key) => key,
        Err(failure) => return reply.error(failed(&failure)),
    };
    let model = shared.engine.model();
    if !tree::exists(&model, &key) {
        return reply.error(fuser::Errno::ESTALE);
    }
    let job = tree::job_of(&model, &key);
    let scope = match &key {
        NodeKey::RootFile(RootFile::Wait) => Some(WaitScope::Mount),
        NodeKey::DiskFile(disk, DiskFile::Wait) => Some(WaitScope::Disk(disk.clone())),
        NodeKey::JobFile(disk, id, JobFile::Wait) => Some(WaitScope::Job(disk.clone(), id.clone())),
        NodeKey::PointFile(_, PointFile::Wait) => {
            job.clone().map(|(disk, id)| WaitScope::Job(disk, id))
        }
        _ => None,
    };
    if let Some(scope) = scope {
        let handle = shared.handles.insert(Handle::Wait {
            scope,
            text: OnceLock::new(),
        });
        return reply.opened(handle, TEXT_FLAGS);
    }
    if let Some(stream) = stream_of(&key) {
        let handle = shared
            .handles
            .insert(Handle::Lines(stream, Mutex::default()));
        return reply.opened(handle, TEXT_FLAGS);
    }
    if let NodeKey::JobFile(disk, id, JobFile::State | JobFile::Progress) = &key {
        return open_fresh(shared, disk.clone(), id.clone(), key.clone(), reply);
    }
    if let (NodeKey::PointFile(_, PointFile::State | PointFile::Progress), Some((disk, id))) =
        (&key, job)
    {
        return open_fresh(shared, disk, id, key.clone(), reply);
    }
    let path = tree::path_of(&model, &key);
    let (point, partition) = match key {
        NodeKey::PointFile(point, PointFile::DiskRaw) => (point, None),
        NodeKey::Inside(point, Inside::Partition(number)) => (point, Some(number)),
        NodeKey::Inside(point, Inside::Note(number)) => {
            return inside::open_note(shared, point, number, reply);
        }
        NodeKey::PointFile(point, PointFile::PointJson) => {
            return inside::open_description(shared, point, reply);
        }
        key => {
            return match shared.text(&model, &key) {
                Some(text) => reply.opened(
                    shared.handles.insert(Handle::Text(text.into_bytes())),
                    TEXT_FLAGS,
                ),
                None => reply.error(fuser::Errno::EISDIR),
            };
        }
    };
    let (process, key, in_answer) = (caller::process_of(pid), point.clone(), Arc::clone(shared));
    let answer = Box::new(move |opened: Result<Arc<View>, Failure>| match opened {
        Ok(view) => {
            if let Some(number) = partition {
                return open_partition(&in_answer, view, key, number, reply);
            }
            let files = view.fingerprint();
            let flags = in_answer.pages.open(&key, files);
            let passthrough = in_answer.passthrough.as_ref();
            let backing = passthrough.and_then(|it| it.register(&key, &view, &reply));
            let bytes_read = in_answer.log.counters().reads(&key.disk);
            let handle = in_answer.handles.insert(Handle::View(OpenView {
                window: Window {
                    start: 0,
                    length: view.virtual_size(),
                },
                partition: None,
                view,
                bytes_read,
                point: key,
                _backing: backing.clone(),
                cursor: Cursor::default(),
                habit: Habit::default(),
                files,
                complained: AtomicBool::new(false),
            }));
            match backing {
                Some(backing) => reply.opened_passthrough(handle, FopenFlags::empty(), &backing),
                None => reply.opened(handle, flags),
            }
        }
        Err(failure) => reply.error(failed(&in_answer.refused("open", &path, process, failure))),
    });
    shared.engine.send(Request::Open {
        point,
        pid: process,
        answer,
    });
}

/// Opens a partition. Its pages are no others than the disk's: it is read past the kernel's cache.
fn open_partition(
    shared: &Arc<Shared>,
    view: Arc<View>,
    point: PointKey,
    number: u32,
    reply: ReplyOpen,
) {
    let (in_answer, key) = (Arc::clone(shared), point.clone());
    shared.guests.survey(&point, move |survey| {
        let survey = match survey {
            Ok(survey) => survey,
            Err(failure) => return reply.error(failed(&failure)),
        };
        let window = match inside::window(&survey, number) {
            Ok(window) => window,
            Err(errno) => return reply.error(errno),
        };
        let files = view.fingerprint();
        let handle = in_answer.handles.insert(Handle::View(OpenView {
            bytes_read: in_answer.log.counters().reads(&key.disk),
            view,
            window,
            partition: Some(number),
            point: key,
            _backing: None,
            cursor: Cursor::default(),
            habit: Habit::default(),
            files,
            complained: AtomicBool::new(false),
        }));
        reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO);
    });
}

/// Opens a text about a running job, as QEMU has it now.
fn open_fresh(shared: &Arc<Shared>, disk: String, id: String, key: NodeKey, reply: ReplyOpen) {
    let in_answer = Arc::clone(shared);
    let answer = Box::new(move |looked: Result<_, Failure>| {
        let model = looked.unwrap_or_else(|_| in_answer.engine.model());
        match in_answer.text(&model, &key) {
            Some(text) => reply.opened(
                in_answer.handles.insert(Handle::Text(text.into_bytes())),
                TEXT_FLAGS,
            ),
            None => reply.error(fuser::Errno::ESTALE),
        }
    });
    shared.engine.send(Request::Progress { disk, id, answer });
}

/// Opens a control file for the lines that are written to it. No other file is ever written.
pub(super) fn open_control(shared: &Arc<Shared>, ino: INodeNo, reply: ReplyOpen) {
    if !verbs::may_control(shared, ino) {
        return reply.error(fuser::Errno::EROFS);
    }
    let model = shared.engine.model();
    let opened = shared.key(ino).ok().and_then(|key| {
        let text = shared.text(&model, &key)?.into_bytes();
        Some(Handle::Control { key, text })
    });
    match opened {
        Some(handle) => reply.opened(shared.handles.insert(handle), TEXT_FLAGS),
        None => reply.error(fuser::Errno::ESTALE),
    }
}

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
        Handle::View(open) => match open.view.server() {
            None => {
                let place = open.window.on_disk(offset, size);
                read_view(shared, open, request, flags, place, reply);
            }
            Some(server) => {
                let (offset, size) = open.window.on_disk(offset, size);
                let (shared, handle) = (Arc::clone(shared), Arc::clone(&handle));
                server.read(offset, size as usize, move |read| {
                    served(&shared, &handle, offset, read, reply);
                });
            }
        },
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
    if let Some(Handle::View(open)) = shared.handles.remove(fh).as_deref()
        && open.partition.is_none()
    {
        shared.pages.close(&open.point, open.files);
    }
}

/// The bytes of a text that a read asks for.
fn part(text: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(text.len());
    let end = start.saturating_add(size as usize).min(text.len());
    &text[start..end]
}

pub(super) fn lseek(shared: &Shared, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
    let handle = shared.handles.get(fh);
    let found = match (handle.as_deref(), u64::try_from(offset)) {
        (None, _) => return reply.error(fuser::Errno::EBADF),
        (_, Err(_)) => return reply.error(fuser::Errno::ENXIO),
        (Some(Handle::View(open)), Ok(offset)) => match (open.view.server(), seek_of(whence)) {
            (Some(server), Some(seek)) => {
                let (handle, window) = (handle.clone(), open.window);
                if offset >= window.length {
                    return reply.error(fuser::Errno::ENXIO);
                }
                return server.seek(window.start + offset, seek, move |found| {
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
    use super::{part, seek_text};

    #[test]
    fn parts_of_a_text() {
        assert_eq!(part(b"hello", 0, 3), b"hel");
        assert_eq!(part(b"hello", 3, 100), b"lo");
        assert_eq!(part(b"hello", 5, 1), b"");
        assert_eq!(part(b"hello", u64::MAX, u32::MAX), b"");
    }

    #[test]
    fn a_text_is_all_data() {
        assert_eq!(seek_text(5, 2, libc::SEEK_DATA), Some(2));
        assert_eq!(seek_text(5, 2, libc::SEEK_HOLE), Some(5));
        assert_eq!(seek_text(5, 5, libc::SEEK_DATA), None);
        assert_eq!(seek_text(5, 5, libc::SEEK_HOLE), None);
        assert_eq!(seek_text(5, 0, libc::SEEK_SET), None);
    }
}
