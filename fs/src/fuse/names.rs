//! Names and attributes: lookup, stat, listings, and what is asked of the mount as a whole.
//! Whatever may take a moment gets the reply along and answers from another thread.

use super::handles::Handle;
use super::kept::KEPT;
use super::shared::Shared;
use super::{GENERATION, NO_TTL, failed, guest_list, inside, plus, replies, together, utf8, verbs};
use crate::errno::Failure;
use crate::model::{Contents, Disk, Model};
use crate::ops::Request;
use crate::tree::{self, NodeKey, PointKind, Section};
use fuser::{
    FileHandle, FileType, INodeNo, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, RequestId,
};
use std::ffi::OsStr;
use std::sync::Arc;

/// Unit of statfs.
const STATFS_BLOCK: u32 = 4096;
/// Longest directory entry, of files of guests: the most that FUSE takes.
const NAME_MAX: u32 = 1024;
/// On the root: the daemon's process id, by which `qmpfs umount` knows when it is gone.
pub(crate) const PID_XATTR: &str = "user.qmpfs.pid";

/// Answers with the entry `key` and its attributes. The name of a directory may be used again, as whoever does asks for its
/// attributes then. These last only where the kernel has the inode: they cannot be taken back from it before.
pub(super) fn reply_entry(shared: &Arc<Shared>, model: &Model, key: NodeKey, reply: ReplyEntry) {
    let in_answer = Arc::clone(shared);
    let of = key.clone();
    shared.attributes(model, &of, move |attributes| match attributes {
        Some((attr, ttl)) => {
            let is_directory = attr.kind == FileType::Directory;
            let ttl = match is_directory && !in_answer.ids.is_held(attr.ino.0) {
                true => NO_TTL,
                false => ttl,
            };
            let name_ttl = match is_directory && !may_be_named_anew(&key) {
                true => KEPT,
                false => NO_TTL,
            };
            in_answer.ids.hold(attr.ino.0, key);
            reply.entry_with_ttls(&ttl, &name_ttl, &attr, GENERATION);
        }
        None => reply.error(fuser::Errno::ENOENT),
    });
}

/// Whether something else may get its name while it is there itself: layers are counted, groups told apart.
fn may_be_named_anew(key: &NodeKey) -> bool {
    match key {
        NodeKey::Point(point) => point.kind == PointKind::Layer,
        NodeKey::Group(_) => true,
        _ => false,
    }
}

/// Whether names come into a directory by the hands of others.
fn changes_behind_our_back(model: &Model, directory: &NodeKey) -> bool {
    match directory {
        NodeKey::Checkpoints | NodeKey::Disks | NodeKey::VmDisks(_) | NodeKey::Section(..) => true,
        NodeKey::Root => model.vm.contents == Contents::Backups,
        _ => false,
    }
}

pub(super) fn lookup(shared: &Arc<Shared>, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
    let model = shared.engine.model();
    let wanted = shared.key(parent).and_then(|parent| {
        let name = utf8(name)?;
        Ok((tree::lookup(&model, &parent, name), parent, name.to_owned()))
    });
    let (parent, name) = match wanted {
        Ok((Some(key), ..)) => return reply_entry(shared, &model, key, reply),
        Ok((None, parent, name)) => (parent, name),
        Err(failure) => return reply.error(failed(&failure)),
    };
    match parent {
        NodeKey::Inside(point, directory) => {
            return inside::lookup(shared, (point, directory), &name, reply);
        }
        NodeKey::GroupFiles(group) => return together::lookup(shared, group, name, reply),
        _ => {}
    }
    if !changes_behind_our_back(&model, &parent) {
        return reply.error(fuser::Errno::ENOENT);
    }
    // What others made since the last look: `blockdev-snapshot` sends no event.
    let in_answer = Arc::clone(shared);
    let answer = Box::new(move |_refreshed: Result<_, Failure>| {
        let model = in_answer.engine.model();
        match tree::lookup(&model, &parent, &name) {
            Some(key) => reply_entry(&in_answer, &model, key, reply),
            None => reply.error(fuser::Errno::ENOENT),
        }
    });
    shared.engine.send(Request::Refresh { answer });
}

pub(super) fn getattr(shared: &Arc<Shared>, ino: INodeNo, reply: ReplyAttr) {
    let model = shared.engine.model();
    match shared.key(ino) {
        Ok(key) => shared.attributes(&model, &key, move |attributes| match attributes {
            Some((attr, ttl)) => reply.attr(&ttl, &attr),
            None => reply.error(fuser::Errno::ESTALE),
        }),
        Err(failure) => reply.error(failed(&failure)),
    }
}

pub(super) fn readlink(shared: &Shared, ino: INodeNo, reply: ReplyData) {
    let target = match shared.key(ino) {
        Ok(NodeKey::GroupLink(group, disk)) => {
            tree::link_target(&shared.engine.model(), &group, &disk)
        }
        Ok(NodeKey::CheckpointLink(checkpoint, disk)) => {
            tree::checkpoint_link(&shared.engine.model(), &checkpoint, &disk)
        }
        Ok(_) => return reply.error(fuser::Errno::EINVAL),
        Err(failure) => return reply.error(failed(&failure)),
    };
    match target {
        Some(target) => reply.data(target.as_bytes()),
        None => reply.error(fuser::Errno::ENOENT),
    }
}

pub(super) fn opendir(shared: &Arc<Shared>, pid: u32, ino: INodeNo, reply: ReplyOpen) {
    let key = match shared.key(ino) {
        Ok(key) => key,
        Err(failure) => return reply.error(failed(&failure)),
    };
    verbs::listed(shared, pid, &key);
    match key {
        NodeKey::Inside(point, directory) => {
            return inside::opendir(shared, (point, directory), reply);
        }
        NodeKey::GroupFiles(group) => return together::opendir(shared, group, reply),
        _ => {}
    }
    let shows_others = matches!(
        key,
        NodeKey::Groups(_) | NodeKey::Group(_) | NodeKey::Checkpoint(_) | NodeKey::Backups(_)
    );
    if !shows_others && !changes_behind_our_back(&shared.engine.model(), &key) {
        return opened_directory(shared, &key, reply);
    }
    let shared_in_answer = Arc::clone(shared);
    // A failed refresh leaves the model as it was last seen, which is what can be listed.
    let answer = Box::new(move |_refreshed: Result<_, Failure>| {
        opened_directory(&shared_in_answer, &key, reply)
    });
    shared.engine.send(Request::Refresh { answer });
}

fn opened_directory(shared: &Shared, key: &NodeKey, reply: ReplyOpen) {
    let model = shared.engine.model();
    if !tree::exists(&model, key) {
        return reply.error(fuser::Errno::ENOENT);
    }
    let handle = shared
        .handles
        .insert(Handle::Directory(shared.entries(&model, key)));
    reply.opened(handle, fuser::FopenFlags::empty());
}

pub(super) fn readdir(
    shared: &Arc<Shared>,
    fh: FileHandle,
    offset: u64,
    mut reply: ReplyDirectory,
) {
    let handle = shared.handles.get(fh);
    if let Some(handle) = &handle
        && matches!(&**handle, Handle::GuestDirectory { .. })
    {
        return guest_list::readdir(shared, Arc::clone(handle), offset, reply);
    }
    let Some(Handle::Directory(entries)) = handle.as_deref() else {
        return reply.error(fuser::Errno::EBADF);
    };
    let first = usize::try_from(offset).unwrap_or(usize::MAX);
    replies::fill(&mut reply, entries, first);
    reply.ok();
}

pub(super) fn readdirplus(
    shared: &Arc<Shared>,
    request: RequestId,
    fh: FileHandle,
    offset: u64,
    reply: ReplyDirectoryPlus,
) {
    let handle = shared.handles.get(fh);
    if let Some(handle) = &handle
        && matches!(&**handle, Handle::GuestDirectory { .. })
    {
        return guest_list::readdirplus(shared, request, Arc::clone(handle), offset, reply);
    }
    let Some(Handle::Directory(entries)) = handle.as_deref() else {
        return reply.error(fuser::Errno::EBADF);
    };
    let first = usize::try_from(offset).unwrap_or(usize::MAX);
    // Their attributes are asked for when somebody wants them: some have to be measured, and all may change.
    let rest = entries.get(first..).unwrap_or_default();
    plus::bare(shared, request, reply, rest, first);
}

pub(super) fn getxattr(ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
    if ino != INodeNo::ROOT || name != PID_XATTR {
        return reply.error(fuser::Errno::ENOTSUP);
    }
    replies::xattr(reply, size, std::process::id().to_string().as_bytes());
}

/// As full as a read-only filesystem is: what the layers take, and nothing free.
pub(super) fn statfs(shared: &Shared, reply: ReplyStatfs) {
    let model = shared.engine.model();
    let layers = model.disks.iter().flat_map(Disk::chain);
    let bytes = layers.fold(0u64, |sum, layer| sum.saturating_add(layer.allocated_size));
    let points = model.disks.iter().map(|disk| {
        Section::ALL
            .into_iter()
            .map(|section| {
                tree::children(&model, &NodeKey::Section(disk.name.clone(), section)).len() as u64
            })
            .sum::<u64>()
    });
    let blocks = bytes.div_ceil(u64::from(STATFS_BLOCK));
    reply.statfs(
        blocks,
        0,
        0,
        points.sum(),
        0,
        STATFS_BLOCK,
        NAME_MAX,
        STATFS_BLOCK,
    );
}
