//! What each request does: look things up, render, and either answer at once or move the reply
//! into the engine's answer. No policy: refusals come from `intent` and from the engine.

use super::handles::Handle;
use super::shared::{Attributes, Shared};
use super::{GENERATION, NO_TTL, TEXT_FLAGS, VIEW_FLAGS, caller, errno, failed, utf8};
use crate::errno::{Errno, Failure};
use crate::intent;
use crate::ops::{Request, WaitScope};
use crate::tree::{self, DiskFile, JobFile, NodeKey, PointFile, Section};
use crate::view::View;
use fuser::{
    FileHandle, INodeNo, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Unit of statfs.
const STATFS_BLOCK: u32 = 4096;
/// Longest directory entry, as on other filesystems.
const NAME_MAX: u32 = 255;
/// On the root: the daemon's process id, by which `qmpfs umount` knows when it is gone.
pub(crate) const PID_XATTR: &str = "user.qmpfs.pid";

fn reply_entry(reply: ReplyEntry, attributes: Attributes) {
    match attributes {
        Some((attr, ttl)) => reply.entry_with_ttls(&ttl, &NO_TTL, &attr, GENERATION),
        None => reply.error(fuser::Errno::ENOENT),
    }
}

pub(super) fn lookup(shared: &Arc<Shared>, pid: u32, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
    let model = shared.engine.model();
    let found = shared.key(parent).and_then(|parent| Ok(tree::lookup(&model, &parent, utf8(name)?)));
    match found {
        Ok(Some(key)) => {
            shared.attributes(pid, &model, &key, move |attributes| reply_entry(reply, attributes));
        }
        Ok(None) => reply.error(fuser::Errno::ENOENT),
        Err(failure) => reply.error(failed(&failure)),
    }
}

pub(super) fn getattr(shared: &Arc<Shared>, pid: u32, ino: INodeNo, reply: ReplyAttr) {
    let model = shared.engine.model();
    match shared.key(ino) {
        Ok(key) => shared.attributes(pid, &model, &key, move |attributes| match attributes {
            Some((attr, ttl)) => reply.attr(&ttl, &attr),
            None => reply.error(fuser::Errno::ESTALE),
        }),
        Err(failure) => reply.error(failed(&failure)),
    }
}

pub(super) fn opendir(shared: &Arc<Shared>, ino: INodeNo, reply: ReplyOpen) {
    let key = match shared.key(ino) {
        Ok(key) => key,
        Err(failure) => return reply.error(failed(&failure)),
    };
    if !matches!(key, NodeKey::Disks | NodeKey::Section(..)) {
        return opened_directory(shared, &key, reply);
    }
    let shared_in_answer = Arc::clone(shared);
    // A failed refresh leaves the model as it was last seen, which is what can be listed.
    let answer = Box::new(move |_refreshed: Result<_, Failure>| opened_directory(&shared_in_answer, &key, reply));
    shared.engine.send(Request::Refresh { answer });
}

fn opened_directory(shared: &Shared, key: &NodeKey, reply: ReplyOpen) {
    let model = shared.engine.model();
    if !tree::exists(&model, key) {
        return reply.error(fuser::Errno::ENOENT);
    }
    let handle = shared.handles.insert(Handle::Directory(shared.entries(&model, key)));
    reply.opened(handle, fuser::FopenFlags::empty());
}

pub(super) fn readdir(shared: &Shared, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
    let handle = shared.handles.get(fh);
    let Some(Handle::Directory(entries)) = handle.as_deref() else {
        return reply.error(fuser::Errno::EBADF);
    };
    let first = usize::try_from(offset).unwrap_or(usize::MAX);
    for (index, entry) in entries.iter().enumerate().skip(first) {
        if reply.add(INodeNo(entry.ino), index as u64 + 1, entry.kind, &entry.name) {
            break;
        }
    }
    reply.ok();
}

pub(super) fn open(shared: &Arc<Shared>, pid: u32, ino: INodeNo, reply: ReplyOpen) {
    let key = match shared.key(ino) {
        Ok(key) => key,
        Err(failure) => return reply.error(failed(&failure)),
    };
    let model = shared.engine.model();
    if !tree::exists(&model, &key) {
        return reply.error(fuser::Errno::ESTALE);
    }
    let scope = match &key {
        NodeKey::Wait => Some(WaitScope::Mount),
        NodeKey::DiskFile(disk, DiskFile::Wait) => Some(WaitScope::Disk(disk.clone())),
        NodeKey::JobFile(disk, id, JobFile::Wait) => Some(WaitScope::Job(disk.clone(), id.clone())),
        _ => None,
    };
    if let Some(scope) = scope {
        let handle = shared.handles.insert(Handle::Wait { scope, text: OnceLock::new() });
        return reply.opened(handle, TEXT_FLAGS);
    }
    let NodeKey::PointFile(point, PointFile::DiskRaw) = key else {
        return match shared.text(&model, &key) {
            Some(text) => reply.opened(shared.handles.insert(Handle::Text(text.into_bytes())), TEXT_FLAGS),
            None => reply.error(fuser::Errno::EISDIR),
        };
    };
    let path = tree::path_of(&model, &NodeKey::PointFile(point.clone(), PointFile::DiskRaw));
    let (process, key, in_answer) = (caller::process_of(pid), point.clone(), Arc::clone(shared));
    let answer = Box::new(move |opened: Result<Arc<View>, Failure>| match opened {
        Ok(view) => {
            let handle = Handle::View { view, point: key, complained: AtomicBool::new(false) };
            reply.opened(in_answer.handles.insert(handle), VIEW_FLAGS);
        }
        Err(failure) => reply.error(failed(&in_answer.refused("open", &path, process, failure))),
    });
    shared.engine.send(Request::Open { point, pid: process, answer });
}

thread_local! {
    /// The bytes on their way from the view to the kernel; each worker keeps its own.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn read(shared: &Arc<Shared>, fh: FileHandle, offset: u64, size: u32, reply: ReplyData) {
    let Some(handle) = shared.handles.get(fh) else {
        return reply.error(fuser::Errno::EBADF);
    };
    match &*handle {
        Handle::Directory(_) => reply.error(fuser::Errno::EISDIR),
        Handle::Text(text) => reply.data(part(text, offset, size)),
        Handle::Wait { scope, text } => {
            if let Some(text) = text.get() {
                return reply.data(part(text.as_bytes(), offset, size));
            }
            let (scope, handle) = (scope.clone(), Arc::clone(&handle));
            let answer = Box::new(move |ended: Result<String, Failure>| match (ended, &*handle) {
                // Two readers of one descriptor: the first answer stays.
                (Ok(answer), Handle::Wait { text, .. }) => {
                    reply.data(part(text.get_or_init(|| answer).as_bytes(), offset, size));
                }
                (Ok(answer), _) => reply.data(part(answer.as_bytes(), offset, size)),
                (Err(failure), _) => reply.error(failed(&failure)),
            });
            shared.engine.send(Request::Wait { scope, answer });
        }
        Handle::View { view, point, complained } => BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match view.read_at(&mut buffer[..size], offset) {
                Ok(count) => reply.data(&buffer[..count]),
                Err(failure) => {
                    reply.error(failed(&failure));
                    if !complained.swap(true, Ordering::Relaxed) {
                        let model = shared.engine.model();
                        let path = tree::path_of(&model, &NodeKey::PointFile(point.clone(), PointFile::DiskRaw));
                        shared.log.note(&format!("read {path} at {offset} {}: {failure}", failure.errno));
                    }
                }
            }
        }),
    }
}

/// The bytes of a text that a read asks for.
fn part(text: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let end = start.saturating_add(size as usize).min(text.len());
    &text[start..end]
}

pub(super) fn lseek(shared: &Shared, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
    let handle = shared.handles.get(fh);
    let found = match (handle.as_deref(), u64::try_from(offset)) {
        (None, _) => return reply.error(fuser::Errno::EBADF),
        (_, Err(_)) => return reply.error(fuser::Errno::ENXIO),
        (Some(Handle::View { view, .. }), Ok(offset)) => seek_view(view, offset, whence),
        // A text is all data.
        (Some(Handle::Text(text)), Ok(offset)) => Ok(seek_text(text.len() as u64, offset, whence)),
        (Some(Handle::Wait { .. } | Handle::Directory(_)), Ok(offset)) => Ok(seek_text(0, offset, whence)),
    };
    match found.map(|found| found.map(i64::try_from)) {
        Ok(Some(Ok(offset))) => reply.offset(offset),
        Ok(Some(Err(_))) => reply.error(fuser::Errno::EOVERFLOW),
        Ok(None) if matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) => reply.error(fuser::Errno::ENXIO),
        Ok(None) => reply.error(fuser::Errno::EINVAL),
        Err(failure) => reply.error(failed(&failure)),
    }
}

fn seek_view(view: &View, offset: u64, whence: i32) -> Result<Option<u64>, Failure> {
    if offset >= view.virtual_size() {
        return Ok(None);
    }
    match whence {
        libc::SEEK_DATA => view.seek_data(offset),
        libc::SEEK_HOLE => view.seek_hole(offset).map(Some),
        _ => Ok(None),
    }
}

fn seek_text(length: u64, offset: u64, whence: i32) -> Option<u64> {
    match whence {
        libc::SEEK_DATA if offset < length => Some(offset),
        libc::SEEK_HOLE if offset < length => Some(length),
        _ => None,
    }
}

pub(super) fn mkdir(shared: &Arc<Shared>, pid: u32, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
    let model = shared.engine.model();
    let wanted = shared.key(parent).and_then(|parent| {
        let name = name.to_str().ok_or_else(|| Failure::new(Errno::EINVAL, "a name must be UTF-8"))?;
        match intent::mkdir(&model, shared.verbs, &parent, name) {
            Ok(intent) => Ok((intent, parent, name.to_owned())),
            Err(failure) => Err(shared.refused("mkdir", &shared.path(&model, &parent, name), pid, failure)),
        }
    });
    let (intent, parent, name) = match wanted {
        Ok(wanted) => wanted,
        Err(failure) => return reply.error(failed(&failure)),
    };
    let in_answer = Arc::clone(shared);
    let answer = Box::new(move |done: Result<(), Failure>| {
        if let Err(failure) = done {
            return reply.error(failed(&failure));
        }
        // The engine has published the model that has the new point before it answers.
        let model = in_answer.engine.model();
        match tree::lookup(&model, &parent, &name) {
            Some(key) => {
                in_answer.attributes(pid, &model, &key, move |attributes| reply_entry(reply, attributes));
            }
            None => {
                let path = in_answer.path(&model, &parent, &name);
                in_answer.log.note(&format!("bug: {path} was made and is not in the tree"));
                reply.error(errno(Errno::EIO));
            }
        }
    });
    shared.engine.send(Request::Do { intent, pid: caller::process_of(pid), answer });
}

pub(super) fn rmdir(shared: &Arc<Shared>, pid: u32, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
    let model = shared.engine.model();
    let process = caller::process_of(pid);
    let wanted = shared.key(parent).and_then(|parent| {
        let name = utf8(name)?;
        let key = tree::lookup(&model, &parent, name).ok_or_else(|| Failure::new(Errno::ENOENT, "no such name"))?;
        let intent = if shared.sweeps.tried(process, &key, Instant::now()) {
            Err(Failure::new(Errno::ENOTEMPTY, "the same process tried to remove files inside: taken for a recursive delete")
                .next("use rmdir on the point itself, from a process of its own"))
        } else {
            intent::rmdir(&model, shared.verbs, &key)
        };
        intent.map_err(|failure| shared.refused("rmdir", &shared.path(&model, &parent, name), pid, failure))
    });
    match wanted {
        Ok(intent) => {
            let answer = Box::new(move |done: Result<(), Failure>| match done {
                Ok(()) => reply.ok(),
                Err(failure) => reply.error(failed(&failure)),
            });
            shared.engine.send(Request::Do { intent, pid: process, answer });
        }
        Err(failure) => reply.error(failed(&failure)),
    }
}

/// A file cannot be removed. Inside a point or a job it is held against a later rmdir.
pub(super) fn refused_unlink(shared: &Arc<Shared>, pid: u32, parent: INodeNo, name: &OsStr) {
    let Ok(directory) = shared.key(parent) else {
        return;
    };
    if !matches!(directory, NodeKey::Point(_) | NodeKey::Job(..)) {
        return;
    }
    let first = shared.sweeps.remember(caller::process_of(pid), &directory, Instant::now());
    if first {
        let model = shared.engine.model();
        let failure = Failure::new(Errno::EPERM, "no file inside a point can be removed")
            .next("use rmdir on the point itself");
        shared.refused("unlink", &shared.path(&model, &directory, &name.to_string_lossy()), pid, failure);
    }
}

/// What a change of attributes is answered with: a file is a view, a directory has no such verb.
pub(super) fn no_write(shared: &Shared, ino: INodeNo) -> fuser::Errno {
    match shared.key(ino) {
        Ok(key) if key.is_dir() => fuser::Errno::EPERM,
        Ok(_) => fuser::Errno::EROFS,
        Err(failure) => failed(&failure),
    }
}

pub(super) fn getxattr(ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
    if ino != INodeNo::ROOT || name != PID_XATTR {
        return reply.error(fuser::Errno::ENOTSUP);
    }
    let pid = std::process::id().to_string();
    let length = u32::try_from(pid.len()).expect("ten digits at most");
    if size == 0 {
        reply.size(length);
    } else if size < length {
        reply.error(fuser::Errno::ERANGE);
    } else {
        reply.data(pid.as_bytes());
    }
}

/// As full as a read-only filesystem is: what the layers take, and nothing free.
pub(super) fn statfs(shared: &Shared, reply: ReplyStatfs) {
    let model = shared.engine.model();
    let layers = model.disks.iter().flat_map(|disk| disk.layers.iter().chain([&disk.active]));
    let bytes = layers.fold(0u64, |sum, layer| sum.saturating_add(layer.allocated_size));
    let points = model.disks.iter().map(|disk| {
        Section::ALL.into_iter().map(|section| {
            tree::children(&model, &NodeKey::Section(disk.name.clone(), section)).len() as u64
        }).sum::<u64>()
    });
    let blocks = bytes.div_ceil(u64::from(STATFS_BLOCK));
    reply.statfs(blocks, 0, 0, points.sum(), 0, STATFS_BLOCK, NAME_MAX, STATFS_BLOCK);
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
