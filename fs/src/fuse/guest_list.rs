//! Listings of a guest's directories. The reader tells names in batches; what was told is kept as long as the
//! directory is open, so that its offsets stay what they are. Every listing ends.

use super::failed;
use super::guest::{Place, another, file_type, is_hidden};
use super::handles::{Entry, Handle, Names};
use super::replies;
use super::shared::Shared;
use crate::errno::{Errno, Failure};
use crate::guest::{Answer, Number, Question};
use fuser::{FileType, ReplyDirectory, ReplyOpen};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, Mutex, PoisonError};

/// Names of one directory that are listed: more fill the memory of who lists them.
const NAMES_MAX: usize = 2_000_000;
/// Batches without a name that are shown; a directory of more is one that leads in a circle.
const EMPTY_MAX: usize = 100_000;

pub(super) fn opendir(shared: &Arc<Shared>, place: Place, reply: ReplyOpen) {
    let own = |name: &str| Entry {
        // What `..` is the kernel knows better.
        ino: place.number.inode().unwrap_or(1),
        kind: FileType::Directory,
        name: name.into(),
    };
    let names = Names {
        entries: vec![own("."), own("..")],
        next: Some(0),
        empty: 0,
    };
    let handle = shared.handles.insert(Handle::GuestDirectory {
        tree: place.tree,
        number: place.number,
        names: Mutex::new(names),
    });
    reply.opened(handle, fuser::FopenFlags::empty());
}

pub(super) fn readdir(
    shared: &Arc<Shared>,
    handle: Arc<Handle>,
    offset: u64,
    mut reply: ReplyDirectory,
) {
    let Handle::GuestDirectory {
        tree,
        number,
        names,
    } = &*handle
    else {
        return reply.error(fuser::Errno::EBADF);
    };
    let first = usize::try_from(offset).unwrap_or(usize::MAX);
    let cookie = {
        let names = names.lock().unwrap_or_else(PoisonError::into_inner);
        let added = replies::fill(&mut reply, &names.entries, first);
        match names.next {
            Some(cookie) if !added && first >= names.entries.len() => cookie,
            _ => return reply.ok(),
        }
    };
    let question = Question::List {
        directory: number.node,
        cookie,
    };
    let (in_answer, again) = (Arc::clone(shared), Arc::clone(&handle));
    tree.ask(question, move |answer| {
        match answer.and_then(|answer| listed(&in_answer, &again, cookie, answer)) {
            Ok(()) => readdir(&in_answer, again, offset, reply),
            Err(failure) => reply.error(failed(&failure)),
        }
    });
}

/// Adds a batch of names to a listing, unless another reader of it has done so.
fn listed(shared: &Shared, handle: &Handle, cookie: u64, answer: Answer) -> Result<(), Failure> {
    let (
        Handle::GuestDirectory {
            tree,
            number,
            names,
        },
        Answer::Names { entries, next },
    ) = (handle, answer)
    else {
        return Err(another());
    };
    let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
    if names.next != Some(cookie) {
        return Ok(());
    }
    names.empty += usize::from(entries.is_empty());
    let goes_on = next.is_none_or(|next| next > cookie);
    if !goes_on || names.empty > EMPTY_MAX || names.entries.len() + entries.len() > NAMES_MAX {
        return Err(Failure::new(
            Errno::EUCLEAN,
            "damaged: a directory does not end",
        ));
    }
    for named in entries {
        let (kind, node) = match &named.node {
            Some(node) if is_hidden(shared, node) => continue,
            Some(node) => (file_type(node.attributes.kind), node.number),
            // It is listed, and whoever asks for it is told why it cannot be read.
            None => (FileType::RegularFile, 0),
        };
        let of = Number {
            tree: tree.number,
            depth: match kind {
                FileType::Directory => number.depth.saturating_add(1),
                _ => 0,
            },
            node,
        };
        names.entries.push(Entry {
            ino: of.inode().unwrap_or(1),
            kind,
            name: OsString::from_vec(named.name),
        });
    }
    names.next = next;
    Ok(())
}
