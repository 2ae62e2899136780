//! mkdir and rmdir, and what is refused. `intent` says what a verb means; the engine does it and
//! answers; refusals are written down here.

use super::handles::Handle;
use super::names::reply_entry;
use super::shared::Shared;
use super::{caller, errno, failed, utf8};
use crate::errno::{Errno, Failure};
use crate::guest::Number;
use crate::intent;
use crate::ops::Request;
use crate::tree::{self, NodeKey, Section};
use fuser::{FileHandle, INodeNo, ReplyEmpty, ReplyEntry, ReplyWrite};
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Instant;

pub(super) fn mkdir(
    shared: &Arc<Shared>,
    pid: u32,
    parent: INodeNo,
    name: &OsStr,
    reply: ReplyEntry,
) {
    let model = shared.engine.model();
    let wanted = shared.key(parent).and_then(|parent| {
        let name = name.to_str().ok_or_else(|| {
            Failure::new(Errno::EINVAL, "a name must be UTF-8")
                .next("use letters, digits, '.', '_' and '-'")
        })?;
        match intent::mkdir(&model, shared.verbs, &parent, name) {
            Ok(intent) => Ok((intent, parent, name.to_owned())),
            Err(failure) => {
                Err(shared.refused("mkdir", &shared.path(&model, &parent, name), pid, failure))
            }
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
            Some(key) => reply_entry(&in_answer, &model, key, reply),
            None => {
                let path = in_answer.path(&model, &parent, &name);
                in_answer
                    .log
                    .note(&format!("bug: {path} was made and is not in the tree"));
                reply.error(errno(Errno::EIO));
            }
        }
    });
    shared.engine.send(Request::Do {
        intent,
        pid: caller::process_of(pid),
        answer,
    });
}

pub(super) fn rmdir(
    shared: &Arc<Shared>,
    pid: u32,
    parent: INodeNo,
    name: &OsStr,
    reply: ReplyEmpty,
) {
    let model = shared.engine.model();
    let process = caller::process_of(pid);
    let wanted = shared.key(parent).and_then(|parent| {
        let name = utf8(name)?;
        let key = tree::lookup(&model, &parent, name)
            .ok_or_else(|| Failure::new(Errno::ENOENT, "no such name"))?;
        let intent = if shared.sweeps.tried(process, &key, Instant::now()) {
            Err(Failure::new(
                Errno::ENOTEMPTY,
                "the same process tried to remove files inside: taken for a recursive delete",
            )
            .next("use rmdir on the point itself, from a process of its own"))
        } else {
            intent::rmdir(&model, shared.verbs, &key)
        };
        if let NodeKey::Inside(point, _) = &key {
            let point = NodeKey::Point(point.clone());
            shared.sweeps.remember(process, &point, Instant::now());
        }
        intent.map_err(|failure| {
            shared.refused("rmdir", &shared.path(&model, &parent, name), pid, failure)
        })
    });
    match wanted {
        Ok(intent) => {
            let answer = Box::new(move |done: Result<(), Failure>| match done {
                Ok(()) => reply.ok(),
                Err(failure) => reply.error(failed(&failure)),
            });
            shared.engine.send(Request::Do {
                intent,
                pid: process,
                answer,
            });
        }
        Err(failure) => reply.error(failed(&failure)),
    }
}

/// Whether a line written to this file may be a verb.
pub(super) fn may_control(shared: &Shared, ino: INodeNo) -> bool {
    !shared.verbs.read_only && shared.key(ino).is_ok_and(|key| key.control().is_some())
}

/// One write(2) to a control file is one verb, and its errno is the verb's.
pub(super) fn write(
    shared: &Arc<Shared>,
    pid: u32,
    fh: FileHandle,
    data: &[u8],
    reply: ReplyWrite,
) {
    let handle = shared.handles.get(fh);
    let Some(Handle::Control { key, .. }) = handle.as_deref() else {
        return reply.error(fuser::Errno::EBADF);
    };
    let model = shared.engine.model();
    match intent::write(&model, shared.verbs, key, data) {
        Ok(intent) => {
            let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let answer = Box::new(move |done: Result<(), Failure>| match done {
                Ok(()) => reply.written(length),
                Err(failure) => reply.error(failed(&failure)),
            });
            shared.engine.send(Request::Do {
                intent,
                pid: caller::process_of(pid),
                answer,
            });
        }
        Err(failure) => {
            let path = tree::path_of(&model, key);
            reply.error(failed(&shared.refused("write", &path, pid, failure)));
        }
    }
}

/// A directory is read. Whoever lists bitmaps/ and then removes from it by itself sweeps the mount:
/// a person's `rm` is told the names by a shell.
pub(super) fn listed(shared: &Shared, pid: u32, key: &NodeKey) {
    if matches!(key, NodeKey::Section(_, Section::Bitmaps)) {
        let process = caller::process_of(pid);
        shared.sweeps.remember(process, key, Instant::now());
    }
}

/// `rm`: of a bitmap it is a verb.
pub(super) fn unlink(
    shared: &Arc<Shared>,
    pid: u32,
    parent: INodeNo,
    name: &OsStr,
    reply: ReplyEmpty,
) {
    let directory = shared.key(parent);
    let Ok(directory @ NodeKey::Section(_, Section::Bitmaps)) = directory else {
        refused_unlink(shared, pid, parent, name);
        return reply.error(fuser::Errno::EPERM);
    };
    let model = shared.engine.model();
    let process = caller::process_of(pid);
    let wanted = if shared.sweeps.tried(process, &directory, Instant::now()) {
        Err(Failure::new(
            Errno::EPERM,
            "the same process has listed this directory: taken for a recursive delete",
        )
        .next("use rm on the bitmap itself"))
    } else {
        let key = utf8(name).and_then(|name| {
            tree::lookup(&model, &directory, name)
                .ok_or_else(|| Failure::new(Errno::ENOENT, "no such name"))
        });
        key.and_then(|key| intent::unlink(&model, shared.verbs, &key))
    };
    match wanted {
        Ok(intent) => shared.engine.send(Request::Do {
            intent,
            pid: process,
            answer: Box::new(move |done: Result<(), Failure>| match done {
                Ok(()) => reply.ok(),
                Err(failure) => reply.error(failed(&failure)),
            }),
        }),
        Err(failure) => {
            let path = shared.path(&model, &directory, &name.to_string_lossy());
            reply.error(failed(&shared.refused("rm", &path, pid, failure)));
        }
    }
}

/// A file cannot be removed. Inside a point or a job it is held against a later rmdir.
fn refused_unlink(shared: &Arc<Shared>, pid: u32, parent: INodeNo, name: &OsStr) {
    let Ok(directory) = shared.key(parent) else {
        return;
    };
    // Who sweeps what is inside a point comes to the point itself in the end, however long that takes.
    let directory = match directory {
        NodeKey::Inside(point, _) => NodeKey::Point(point),
        other => other,
    };
    if !matches!(
        directory,
        NodeKey::Disk(_)
            | NodeKey::Point(_)
            | NodeKey::Group(_)
            | NodeKey::Checkpoint(_)
            | NodeKey::Job(..)
    ) {
        return;
    }
    let first = shared
        .sweeps
        .remember(caller::process_of(pid), &directory, Instant::now());
    if first {
        let model = shared.engine.model();
        let failure = Failure::new(Errno::EPERM, "no file inside a point can be removed")
            .next("use rmdir on the point itself");
        shared.refused(
            "unlink",
            &shared.path(&model, &directory, &name.to_string_lossy()),
            pid,
            failure,
        );
    }
}

/// What a change of attributes is answered with: a file is a view, a directory has no such verb.
pub(super) fn no_write(shared: &Shared, ino: INodeNo) -> fuser::Errno {
    if Number::of_inode(ino.0).is_some() {
        return fuser::Errno::EROFS;
    }
    match shared.key(ino) {
        Ok(key) if key.is_dir() => fuser::Errno::EPERM,
        Ok(_) => fuser::Errno::EROFS,
        Err(failure) => failed(&failure),
    }
}
