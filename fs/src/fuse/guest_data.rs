//! The bytes of a guest's file: read from the disk where its extents say they are, zeros between them.
//! What the reader says is checked: nothing outside its partition is ever read for it.

use super::guest_extents::Extents;
use super::handles::{GuestFile, Handle};
use super::message;
use super::shared::Shared;
use super::units::Search;
use super::{errno, failed, seek};
use crate::errno::{Errno, Failure};
use crate::guest::{Answer, Desk, Disks, Node, Piece, Question, Tree};
use crate::nbd::Seek;
use crate::sys::Bytes;
use crate::view::Cursor;
use fuser::{ReplyData, ReplyLseek, RequestId};
use qmpfs_guestfs::{Extent, Place};
use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// Bytes that lie in several places; each worker keeps its own.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl GuestFile {
    pub(super) fn new(
        tree: Arc<Tree>,
        disks: Disks,
        node: &Node,
        extents: Vec<Extent>,
        bytes_read: Arc<AtomicU64>,
    ) -> GuestFile {
        let size = node.attributes.size;
        GuestFile {
            tree,
            disks,
            node: node.number,
            size,
            extents: Extents::new(extents, size),
            cursor: Cursor::default(),
            bytes_read,
        }
    }
}

/// A part of a read.
pub(super) enum Part {
    /// Of a disk.
    Disk(Piece),
    Hole(usize),
    /// Of the file, by its reader.
    Reader(u64, usize),
}

/// The parts of a stretch of a file, by extents that cover it.
pub(super) fn parts(
    tree: &Tree,
    extents: &[Extent],
    offset: u64,
    size: usize,
) -> Result<Vec<Part>, Failure> {
    let end = offset + size as u64;
    let mut parts = Vec::new();
    let mut at = offset;
    let first = extents.partition_point(|it| it.offset.saturating_add(it.length) <= offset);
    for extent in extents.get(first..).unwrap_or_default() {
        if extent.offset >= end {
            break;
        }
        let extent_end = extent.offset.checked_add(extent.length).ok_or_else(lie)?;
        if extent_end <= at {
            return Err(lie());
        }
        if extent.offset > at {
            parts.push(Part::Hole((extent.offset - at) as usize));
            at = extent.offset;
        }
        let length = (extent_end.min(end) - at) as usize;
        match extent.place {
            Place::Reader => parts.push(Part::Reader(at, length)),
            Place::At(start) => {
                let within = start.checked_add(at - extent.offset).ok_or_else(lie)?;
                let pieces = tree.volume.pieces(within, length as u64).ok_or_else(lie)?;
                parts.extend(pieces.into_iter().map(Part::Disk));
            }
        }
        at += length as u64;
    }
    if at < end {
        parts.push(Part::Hole((end - at) as usize));
    }
    Ok(parts)
}

pub(super) fn lie() -> Failure {
    Failure::new(Errno::EUCLEAN, "damaged: the stretches of a file")
}

pub(super) fn read(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    request: RequestId,
    (offset, size): (u64, u32),
    reply: ReplyData,
) {
    let Handle::GuestFile(file) = &**handle else {
        return reply.error(fuser::Errno::EBADF);
    };
    let rest = usize::try_from(file.size.saturating_sub(offset)).unwrap_or(usize::MAX);
    let size = rest.min(size as usize);
    if size == 0 {
        return reply.data(&[]);
    }
    let end = offset + size as u64;
    let known = file.known(offset).filter(|window| end <= window.to);
    let known = known.filter(|_| !file.disks.has_server());
    let here = known.map(|window| parts(&file.tree, &window.extents, offset, size));
    match here {
        Some(Err(failure)) => reply.error(failed(&failure)),
        Some(Ok(parts)) if !parts.iter().any(|part| matches!(part, Part::Reader(..))) => {
            if let Some(_turn) = shared.storage.turn() {
                return read_here(shared, file, request, &parts, reply);
            }
            let (in_turn, handle) = (Arc::clone(shared), Arc::clone(handle));
            shared
                .storage
                .hand_over(file.tree.home.disk(), move |turn| match (turn, &*handle) {
                    (Ok(()), Handle::GuestFile(file)) => {
                        read_here(&in_turn, file, request, &parts, reply);
                    }
                    (Ok(()), _) => reply.error(fuser::Errno::EBADF),
                    (Err(failure), _) => reply.error(failed(&failure)),
                });
        }
        // A reader or a server has to be asked, and may take its time.
        Some(Ok(_)) | None => {
            let file = Arc::clone(handle);
            let tree = Arc::clone(match &*file {
                Handle::GuestFile(file) => &file.tree,
                _ => return reply.error(fuser::Errno::EBADF),
            });
            tree.work(move |desk| {
                let Handle::GuestFile(file) = &*file else {
                    return reply.error(fuser::Errno::EBADF);
                };
                match desk.and_then(|desk| read_asking(desk, file, offset, size)) {
                    Ok(bytes) => {
                        file.bytes_read
                            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        reply.data(&bytes);
                    }
                    Err(failure) => reply.error(failed(&failure)),
                }
            });
        }
    }
}

/// Reads what lies on the disk, on the thread that has a turn to wait for it.
fn read_here(
    shared: &Shared,
    file: &GuestFile,
    request: RequestId,
    parts: &[Part],
    reply: ReplyData,
) {
    let mut reply = Some(reply);
    let read = BUFFER.with_borrow_mut(|buffer| {
        if let [Part::Disk(piece)] = parts {
            let view = file.disks.view(piece.disk)?;
            // As much as the kernel asks for at once.
            let length = piece.length as usize;
            let answered = view.answer(&file.cursor, piece.start, length, buffer, |parts| {
                let reply = reply.take()?;
                Some(message::answer(shared.device(), request, reply, parts))
            })?;
            file.bytes_read.fetch_add(piece.length, Ordering::Relaxed);
            return match answered {
                Some(Err(error)) if error.raw_os_error() != Some(libc::ENOENT) => {
                    Err(Failure::io("hand the bytes to the kernel", &error))
                }
                Some(_) | None => Ok(()),
            };
        }
        buffer.clear();
        for part in parts {
            let start = buffer.len();
            match part {
                Part::Hole(length) | Part::Reader(_, length) => buffer.resize(start + length, 0),
                Part::Disk(piece) => {
                    buffer.resize(start + piece.length as usize, 0);
                    let view = file.disks.view(piece.disk)?;
                    view.read(piece.start, &mut buffer[start..])?;
                }
            }
        }
        file.bytes_read
            .fetch_add(buffer.len() as u64, Ordering::Relaxed);
        if let Some(reply) = reply.take() {
            let whole = [Bytes::from(&buffer[..])];
            if let Err(error) = message::answer(shared.device(), request, reply, &whole) {
                tracing::debug!(%error, "nobody waits for what was read");
            }
        }
        Ok(())
    });
    if let (Err(failure), Some(reply)) = (read, reply) {
        reply.error(failed(&failure));
    }
}

fn read_asking(
    desk: &mut Desk,
    file: &GuestFile,
    offset: u64,
    size: usize,
) -> Result<Vec<u8>, Failure> {
    let end = offset + size as u64;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let at = offset + bytes.len() as u64;
        let window = file.window(desk, at)?;
        // It leads on, and no further than was asked for.
        let length = (window.to.min(end) - at) as usize;
        for part in parts(&file.tree, &window.extents, at, length)? {
            read_part(desk, file, part, &mut bytes)?;
        }
    }
    Ok(bytes)
}

/// Adds the bytes of a part.
fn read_part(
    desk: &mut Desk,
    file: &GuestFile,
    part: Part,
    bytes: &mut Vec<u8>,
) -> Result<(), Failure> {
    let start = bytes.len();
    match part {
        Part::Hole(length) => bytes.resize(start + length, 0),
        Part::Disk(piece) => {
            bytes.resize(start + piece.length as usize, 0);
            let view = file.disks.view(piece.disk)?;
            view.read(piece.start, &mut bytes[start..])?;
        }
        Part::Reader(at, length) => {
            let question = Question::Read {
                node: file.node,
                offset: at,
                // As much as the kernel asks for at once.
                length: length as u32,
            };
            match desk.ask(&question)? {
                Answer::Bytes(read) if read.len() == length => bytes.extend(read),
                _ => return Err(lie()),
            }
        }
    }
    Ok(())
}

pub(super) fn lseek(handle: Arc<Handle>, search: Search, reply: ReplyLseek) {
    let Handle::GuestFile(file) = &*handle else {
        return reply.error(fuser::Errno::EBADF);
    };
    if let Some(found) = sought_in_known(file, search) {
        return seek::answer(Ok(found), reply);
    }
    let tree = Arc::clone(&file.tree);
    tree.work(move |desk| {
        let Handle::GuestFile(file) = &*handle else {
            return reply.error(errno(Errno::EIO));
        };
        seek::answer(desk.and_then(|desk| sought(desk, file, search)), reply);
    });
}

/// Where it is, if the window that is known tells.
fn sought_in_known(file: &GuestFile, search: Search) -> Option<Option<u64>> {
    let found = search.find(|seek, at| {
        let window = file.known(at).ok_or(())?;
        match window.sought(file.size, at, seek == Seek::Data) {
            ControlFlow::Break(found) => Ok(found),
            ControlFlow::Continue(_) => Err(()),
        }
    });
    found.ok()
}

fn sought(desk: &mut Desk, file: &GuestFile, search: Search) -> Result<Option<u64>, Failure> {
    search.find(|seek, from| {
        let mut at = from;
        loop {
            match file
                .window(desk, at)?
                .sought(file.size, at, seek == Seek::Data)
            {
                ControlFlow::Break(found) => return Ok(found),
                // Behind the window, and before the end of the file.
                ControlFlow::Continue(further) => at = further,
            }
        }
    })
}
