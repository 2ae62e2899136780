//! The one ioctl of a mount: where the bytes of an open disk, partition or guest's file come from.

use super::failed;
use super::guest_data::{self, Part};
use super::guest_extents::Window;
use super::handles::{GuestFile, Handle, OpenView};
use super::shared::Shared;
use crate::errno::Failure;
use crate::origin::{self, Origin, Origins};
use fuser::{FileHandle, ReplyIoctl};
use std::sync::Arc;

/// Bytes of a guest's file that one answer is about: on a striped volume they may be in very many pieces.
const AT_ONCE: u64 = 64 << 20;

pub(super) fn ioctl(
    shared: &Shared,
    fh: FileHandle,
    request: u32,
    message: &[u8],
    reply: ReplyIoctl,
) {
    let handle = shared.handles.get(fh);
    let (Some(handle), true, Some((offset, length))) =
        (handle, request == origin::REQUEST, origin::asked(message))
    else {
        return reply.error(fuser::Errno::ENOTTY);
    };
    match &*handle {
        Handle::View(open) => match shared.storage.turn() {
            Some(_turn) => answer(of_view(open, offset, length), reply),
            None => {
                let (disk, handle) = (open.point.disk.clone(), Arc::clone(&handle));
                shared.storage.hand_over(&disk, move |turn| match &*handle {
                    Handle::View(open) => {
                        answer(turn.and_then(|()| of_view(open, offset, length)), reply);
                    }
                    _ => reply.error(fuser::Errno::EBADF),
                });
            }
        },
        Handle::GuestFile(file) => {
            let end = offset.saturating_add(length).min(file.size);
            if offset >= end {
                return answer(Ok(Origins::default()), reply);
            }
            if let Some(window) = file.known(offset) {
                if let Some(_turn) = shared.storage.turn() {
                    return answer(of_guest_file(file, &window, offset, end), reply);
                }
                let (disk, handle) = (file.tree.home.disk().to_owned(), Arc::clone(&handle));
                return shared.storage.hand_over(&disk, move |turn| match &*handle {
                    Handle::GuestFile(file) => {
                        let found = turn.and_then(|()| of_guest_file(file, &window, offset, end));
                        answer(found, reply);
                    }
                    _ => reply.error(fuser::Errno::EBADF),
                });
            }
            let (tree, file) = (Arc::clone(&file.tree), Arc::clone(&handle));
            tree.work(move |desk| {
                let Handle::GuestFile(file) = &*file else {
                    return reply.error(fuser::Errno::EBADF);
                };
                let window = desk.and_then(|desk| file.window(desk, offset));
                answer(
                    window.and_then(|window| of_guest_file(file, &window, offset, end)),
                    reply,
                );
            });
        }
        Handle::Text(_)
        | Handle::Lines(..)
        | Handle::Wait { .. }
        | Handle::Control { .. }
        | Handle::GuestDirectory { .. }
        | Handle::Directory(_) => reply.error(fuser::Errno::ENOTTY),
    }
}

fn of_view(open: &OpenView, offset: u64, length: u64) -> Result<Origins, Failure> {
    let rest = open.window.length.saturating_sub(offset);
    let start = open.window.start.saturating_add(offset);
    let mut origins = Origins::default();
    open.view
        .origins(start..start + length.min(rest), &mut origins)?;
    Ok(origins)
}

fn answer(origins: Result<Origins, Failure>, reply: ReplyIoctl) {
    match origins {
        Ok(origins) => reply.ioctl(0, &origins.message()),
        Err(failure) => reply.error(failed(&failure)),
    }
}

/// As far as the window tells, and not too far; whoever asks goes on from there.
fn of_guest_file(
    file: &GuestFile,
    window: &Window,
    offset: u64,
    end: u64,
) -> Result<Origins, Failure> {
    let mut origins = Origins::default();
    let end = end.min(window.to).min(offset.saturating_add(AT_ONCE));
    let size = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
    for part in guest_data::parts(&file.tree, &window.extents, offset, size)? {
        let goes_on = match part {
            Part::Disk(piece) => {
                let stretch = piece.start..piece.start.saturating_add(piece.length);
                file.disks
                    .view(piece.disk)?
                    .origins(stretch, &mut origins)?
            }
            Part::Hole(length) => origins.add(Origin::zeros(length as u64)),
            Part::Reader(_, length) => origins.add(Origin::unknown(length as u64)),
        };
        if !goes_on {
            break;
        }
    }
    Ok(origins)
}
