//! Listings of a guest's directories. The reader tells names in batches; what was told is kept as long as the
//! directory is open, so that its offsets stay what they are. Every listing ends.

use super::guest::{self, Place, TTL, another, is_hidden};
use super::handles::{Entry, Handle, Names};
use super::shared::Shared;
use super::{GENERATION, failed, plus, replies};
use crate::errno::{Errno, Failure};
use crate::guest::{Answer, Number, Question};
use fuser::{
    FileAttr, FileType, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyOpen, RequestId,
};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

/// Names of one directory that are listed, and their bytes: more fill the memory of who lists them.
const NAMES_MAX: usize = 2_000_000;
const BYTES_MAX: usize = 128 << 20;
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
        bytes: 0,
    };
    let handle = shared.handles.insert(Handle::GuestDirectory {
        tree: place.tree,
        number: place.number,
        names: Mutex::new(names),
    });
    reply.opened(handle, fuser::FopenFlags::empty());
}

/// What is in a listing from an offset on.
enum Rest {
    /// Names, or the end.
    Known,
    /// A batch has to be asked for, from this cookie on.
    Asked(u64),
}

fn rest(names: &Names, first: usize) -> Rest {
    match names.next {
        // `.` and `..` do not come alone.
        Some(0) => Rest::Asked(0),
        Some(cookie) if first >= names.entries.len() => Rest::Asked(cookie),
        Some(_) | None => Rest::Known,
    }
}

pub(super) fn readdir(
    shared: &Arc<Shared>,
    handle: Arc<Handle>,
    offset: u64,
    mut reply: ReplyDirectory,
) {
    let Handle::GuestDirectory { names, .. } = &*handle else {
        return reply.error(fuser::Errno::EBADF);
    };
    let first = usize::try_from(offset).unwrap_or(usize::MAX);
    let cookie = {
        let names = names.lock().unwrap_or_else(PoisonError::into_inner);
        match rest(&names, first) {
            Rest::Asked(cookie) => cookie,
            Rest::Known => {
                replies::fill(&mut reply, &names.entries, first);
                return reply.ok();
            }
        }
    };
    let (in_answer, again) = (Arc::clone(shared), Arc::clone(&handle));
    ask(shared, &handle, cookie, move |listed| match listed {
        Ok(()) => readdir(&in_answer, again, offset, reply),
        Err(failure) => reply.error(failed(&failure)),
    });
}

/// The same with attributes. Where they cannot be told (they are not known any more, or the name is one too many) the
/// name comes without, and is asked for.
pub(super) fn readdirplus(
    shared: &Arc<Shared>,
    request: RequestId,
    handle: Arc<Handle>,
    offset: u64,
    mut reply: ReplyDirectoryPlus,
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
        match rest(&names, first) {
            Rest::Asked(cookie) => cookie,
            Rest::Known => {
                let entries = names.entries.get(first..).unwrap_or_default();
                let node = |entry: &Entry| tree.known_name(number.node, entry.name.as_bytes());
                let attributes = |entry: &Entry| {
                    if is_own(entry) {
                        return Some(nameless(entry));
                    }
                    let named = (*number, entry.name.as_bytes());
                    guest::held(shared, tree, &node(entry)?, named).ok()
                };
                for (index, entry) in entries.iter().enumerate() {
                    let Some(attr) = attributes(entry) else {
                        if index > 0 {
                            break;
                        }
                        let others = entries.iter().skip(1);
                        let unknown = 1 + others.take_while(|it| node(it).is_none()).count();
                        return plus::bare(shared, request, reply, &entries[..unknown], first);
                    };
                    let next = (first + index) as u64 + 1;
                    if reply.add(attr.ino, next, &entry.name, &TTL, &attr, GENERATION) {
                        // There was no room for it.
                        if !is_own(entry) {
                            guest::forget(shared, attr.ino, 1);
                        }
                        break;
                    }
                }
                return reply.ok();
            }
        }
    };
    let (in_answer, again) = (Arc::clone(shared), Arc::clone(&handle));
    ask(shared, &handle, cookie, move |listed| match listed {
        Ok(()) => readdirplus(&in_answer, request, again, offset, reply),
        Err(failure) => reply.error(failed(&failure)),
    });
}

/// Whether an entry is `.` or `..`, of which the kernel is told nothing new.
fn is_own(entry: &Entry) -> bool {
    entry.name == "." || entry.name == ".."
}

/// The attributes of `.` and `..`, of which the kernel takes the number and the kind.
fn nameless(entry: &Entry) -> FileAttr {
    FileAttr {
        ino: INodeNo(entry.ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: entry.kind,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// Asks for a batch of names, and adds it to the listing.
fn ask(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    cookie: u64,
    done: impl FnOnce(Result<(), Failure>) + Send + 'static,
) {
    let Handle::GuestDirectory { tree, number, .. } = &**handle else {
        return done(Err(another()));
    };
    let question = Question::List {
        directory: number.node,
        cookie,
    };
    let (in_answer, again) = (Arc::clone(shared), Arc::clone(handle));
    tree.ask(question, move |answer| {
        done(answer.and_then(|answer| listed(&in_answer, &again, cookie, answer)));
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
    names.bytes += entries.iter().map(|named| named.name.len()).sum::<usize>();
    let goes_on = next.is_none_or(|next| next > cookie);
    let is_large = names.entries.len() + entries.len() > NAMES_MAX || names.bytes > BYTES_MAX;
    if !goes_on || names.empty > EMPTY_MAX || is_large {
        return Err(Failure::new(
            Errno::EUCLEAN,
            "damaged: a directory does not end",
        ));
    }
    let nobody = Number {
        tree: tree.number,
        depth: 0,
        node: 0,
    };
    let nobody = nobody.inode().unwrap_or(1);
    for named in entries {
        let shown = match &named.node {
            Some(node) if is_hidden(shared, node) => continue,
            Some(node) => guest::named(shared, tree, node, *number).ok(),
            None => None,
        };
        // It is listed, and whoever asks for it is told why it cannot be read.
        let (ino, kind) = shown.map_or((nobody, FileType::RegularFile), |it| (it.ino.0, it.kind));
        names.entries.push(Entry {
            ino,
            kind,
            name: OsString::from_vec(named.name),
        });
    }
    names.next = next;
    Ok(())
}
