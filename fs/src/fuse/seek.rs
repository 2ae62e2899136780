//! SEEK_DATA and SEEK_HOLE in open files: holes of a view are holes, a text is all data.

use super::handles::{Handle, OpenView, Window};
use super::shared::Shared;
use super::units::Search;
use super::{failed, guest_data};
use crate::errno::Failure;
use crate::nbd::Seek;
use fuser::{FileHandle, ReplyLseek};
use std::ops::ControlFlow;
use std::sync::Arc;

pub(super) fn lseek(shared: &Shared, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
    let Some(handle) = shared.handles.get(fh) else {
        return reply.error(fuser::Errno::EBADF);
    };
    let Some(seek) = seek_of(whence) else {
        return reply.error(fuser::Errno::EINVAL);
    };
    let Ok(offset) = u64::try_from(offset) else {
        return reply.error(fuser::Errno::ENXIO);
    };
    let length = match &*handle {
        Handle::View(open) => open.window.length,
        Handle::GuestFile(file) => file.size,
        Handle::Text(text) | Handle::Control { text, .. } => text.len() as u64,
        Handle::Lines(stream, _) => shared.log.stream(*stream).length(),
        Handle::Wait { .. } | Handle::Directory(_) | Handle::GuestDirectory { .. } => 0,
    };
    if offset >= length {
        return reply.error(fuser::Errno::ENXIO);
    }
    let search = Search::new(seek, offset, length);
    match &*handle {
        Handle::View(open) if open.view.waits() => search_later(handle, search, reply),
        Handle::View(open) => match shared.storage.turn() {
            Some(_turn) => answer(search_now(open, search), reply),
            None => search_in_turn(shared, Arc::clone(&handle), search, reply),
        },
        Handle::GuestFile(_) => guest_data::lseek(handle, search, reply),
        _ => answer(Ok(Some(seek_text(seek, offset, length))), reply),
    }
}

fn seek_of(whence: i32) -> Option<Seek> {
    match whence {
        libc::SEEK_DATA => Some(Seek::Data),
        libc::SEEK_HOLE => Some(Seek::Hole),
        _ => None,
    }
}

pub(super) fn answer(found: Result<Option<u64>, Failure>, reply: ReplyLseek) {
    match found.map(|found| found.map(i64::try_from)) {
        Ok(Some(Ok(offset))) => reply.offset(offset),
        Ok(Some(Err(_))) => reply.error(fuser::Errno::EOVERFLOW),
        Ok(None) => reply.error(fuser::Errno::ENXIO),
        Err(failure) => reply.error(failed(&failure)),
    }
}

fn search_now(open: &OpenView, search: Search) -> Result<Option<u64>, Failure> {
    let OpenView { view, window, .. } = open;
    search.find(|seek, at| {
        let at = window.start.saturating_add(at);
        let found = match seek {
            Seek::Data => view.seek_data(at)?,
            Seek::Hole => Some(view.seek_hole(at)?),
        };
        Ok(in_window(found, *window, seek))
    })
}

/// The same, by a thread that may wait for the storage.
fn search_in_turn(shared: &Shared, handle: Arc<Handle>, search: Search, reply: ReplyLseek) {
    let Handle::View(open) = &*handle else {
        return reply.error(fuser::Errno::EBADF);
    };
    let disk = open.point.disk.clone();
    shared.storage.hand_over(&disk, move |turn| match &*handle {
        Handle::View(open) => answer(turn.and_then(|()| search_now(open, search)), reply),
        _ => reply.error(fuser::Errno::EBADF),
    });
}

/// The same, where a server is asked: each answer leads to the next question.
fn search_later(handle: Arc<Handle>, search: Search, reply: ReplyLseek) {
    let Handle::View(open) = &*handle else {
        return reply.error(fuser::Errno::EBADF);
    };
    let (view, window) = (Arc::clone(&open.view), open.window);
    let (seek, at) = search.question();
    view.seek_later(window.start.saturating_add(at), seek, move |found| {
        let told = found.map(|found| search.told(in_window(found, window, seek)));
        match told {
            Ok(ControlFlow::Continue(search)) => search_later(handle, search, reply),
            Ok(ControlFlow::Break(found)) => answer(Ok(found), reply),
            Err(failure) => answer(Err(failure), reply),
        }
    });
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

/// A text is all data.
fn seek_text(seek: Seek, offset: u64, length: u64) -> u64 {
    match seek {
        Seek::Data => offset,
        Seek::Hole => length,
    }
}
