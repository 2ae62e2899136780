//! `files/` of a point of all disks: logical volumes that lie on several of its disks. Which there are is on the
//! disks, so every answer comes from a thread that looked at them.

use super::handles::{Entry, Handle};
use super::names::reply_entry;
use super::shared::Shared;
use super::{TEXT_FLAGS, failed, inside};
use crate::errno::Failure;
use crate::guest::{Home, Volume, Whole, gone};
use crate::tree::{GroupKey, NodeKey};
use fuser::{FileType, ReplyEntry, ReplyOpen};
use std::sync::Arc;

/// Finds out what the disks of a group hold together; `done` may be called from another thread.
fn with_whole(
    shared: &Shared,
    group: &GroupKey,
    done: impl FnOnce(Result<(Home, Arc<Whole>), Failure>) + Send + 'static,
) {
    match shared.guests.home(group) {
        Some(home) => shared.guests.whole(home.clone(), move |whole| {
            done(whole.map(|whole| (home, whole)));
        }),
        None => done(Err(gone())),
    }
}

fn trees(whole: &Whole) -> impl Iterator<Item = &Volume> {
    whole.logical.iter().filter(|volume| volume.is_readable())
}

/// The texts about volumes of which a part is on none of the disks.
fn notes(group: &GroupKey, whole: &Whole) -> Vec<NodeKey> {
    let partly = whole.partly.iter();
    partly
        .map(|partly| NodeKey::GroupNote(group.clone(), partly.name.clone()))
        .collect()
}

fn name(shared: &Shared, note: &NodeKey) -> String {
    let path = crate::tree::path_of(&shared.engine.model(), note);
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

pub(super) fn lookup(shared: &Arc<Shared>, group: GroupKey, wanted: String, reply: ReplyEntry) {
    let in_answer = Arc::clone(shared);
    with_whole(shared, &group.clone(), move |whole| {
        let (home, whole) = match whole {
            Ok(whole) => whole,
            Err(failure) => return reply.error(failed(&failure)),
        };
        if let Some(volume) = trees(&whole).find(|volume| volume.directory() == wanted) {
            return inside::reply_root(&in_answer, &home, volume, reply);
        }
        let notes = notes(&group, &whole).into_iter();
        let found = notes
            .into_iter()
            .find(|note| name(&in_answer, note) == wanted);
        match found {
            Some(note) => reply_entry(&in_answer, &in_answer.engine.model(), note, reply),
            None => reply.error(fuser::Errno::ENOENT),
        }
    });
}

pub(super) fn opendir(shared: &Arc<Shared>, group: GroupKey, reply: ReplyOpen) {
    let in_answer = Arc::clone(shared);
    with_whole(shared, &group.clone(), move |whole| {
        let (home, whole) = match whole {
            Ok(whole) => whole,
            Err(failure) => return reply.error(failed(&failure)),
        };
        let own = NodeKey::GroupFiles(group.clone());
        let mut entries = in_answer.entries(&in_answer.engine.model(), &own);
        let trees = trees(&whole);
        entries.extend(trees.map(|volume| inside::root_entry(&in_answer, &home, volume)));
        let notes = notes(&group, &whole).into_iter();
        entries.extend(notes.map(|note| Entry {
            ino: in_answer.ids.number(&note),
            kind: FileType::RegularFile,
            name: name(&in_answer, &note).into(),
        }));
        let handle = in_answer.handles.insert(Handle::Directory(entries));
        reply.opened(handle, fuser::FopenFlags::empty());
    });
}

/// Opens what is to be said about a volume.
pub(super) fn open_note(shared: &Arc<Shared>, group: GroupKey, volume: String, reply: ReplyOpen) {
    let in_answer = Arc::clone(shared);
    with_whole(shared, &group.clone(), move |whole| {
        let key = NodeKey::GroupNote(group, volume);
        let text = whole.map(|_| in_answer.text(&in_answer.engine.model(), &key));
        match text {
            Ok(Some(text)) => {
                let handle = in_answer.handles.insert(Handle::Text(text.into_bytes()));
                reply.opened(handle, TEXT_FLAGS);
            }
            Ok(None) => reply.error(fuser::Errno::ESTALE),
            Err(failure) => reply.error(failed(&failure)),
        }
    });
}
