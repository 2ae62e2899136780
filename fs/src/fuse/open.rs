//! Files of the tree that are opened: texts, `wait` files, the log, control files, views and partitions.
//! What a file is decides how; views and fresh texts are the engine's, everything else is answered at once.

use super::handles::{Handle, OpenView};
use super::shared::{Shared, stream_of};
use super::{TEXT_FLAGS, caller, failed, inside, together, verbs};
use crate::errno::Failure;
use crate::ops::{Request, WaitScope};
use crate::tree::{self, DiskFile, Inside, JobFile, NodeKey, PointFile, PointKey, RootFile};
use crate::view::View;
use fuser::{FopenFlags, INodeNo, ReplyOpen};
use std::sync::{Arc, Mutex, OnceLock};

/// A view is never written: whoever closes it has nothing to be flushed, and waits for nobody.
const VIEW_FLAGS: FopenFlags = FopenFlags::FOPEN_NOFLUSH;

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
        NodeKey::Inside(point, note @ (Inside::Note(_) | Inside::VolumeNote(_))) => {
            return inside::open_note(shared, point, note, reply);
        }
        NodeKey::GroupNote(group, name) => {
            return together::open_note(shared, group, name, reply);
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
            let mut open = OpenView::new(view, key, bytes_read);
            open.backing = backing.clone();
            let handle = in_answer.handles.insert(Handle::View(open));
            match backing {
                Some(backing) => reply.opened_passthrough(handle, VIEW_FLAGS, &backing),
                None => reply.opened(handle, VIEW_FLAGS | flags),
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
        let bytes_read = in_answer.log.counters().reads(&key.disk);
        let mut open = OpenView::new(view, key, bytes_read);
        open.window = window;
        open.partition = Some(number);
        let handle = in_answer.handles.insert(Handle::View(open));
        reply.opened(handle, VIEW_FLAGS | FopenFlags::FOPEN_DIRECT_IO);
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
