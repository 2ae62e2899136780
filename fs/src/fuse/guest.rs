//! Requests about a guest's own files. Names and attributes come from the tree's reader; bytes of files
//! are read here, from the disk, by the extents that the reader has told.
//! Everything is answered EROFS that would write, to everybody.

use super::guest_extents;
use super::handles::{GuestFile, Handle};
use super::shared::Shared;
use super::{GENERATION, caller, errno, failed, replies};
use crate::errno::{Errno, Failure};
use crate::guest::{
    Answer, Links, Node, Number, Question, Tree, Whence, depends_on_depth, gone, shown,
};
use fuser::{FileAttr, FileType, INodeNo, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, ReplyXattr};
use qmpfs_guestfs::{FileKind, Time};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A guest's files never change; how long the kernel may believe that of one it was told about.
pub(super) const TTL: Duration = Duration::from_secs(30);

/// What an inode number means that is a guest's.
pub(super) struct Place {
    pub(super) tree: Arc<Tree>,
    pub(super) number: Number,
}

/// The guest's file of an inode; None for one of our own.
pub(super) fn place(shared: &Shared, ino: INodeNo) -> Option<Result<Place, fuser::Errno>> {
    let number = Number::of_inode(ino.0)?;
    let tree = shared.guests.numbered(number.tree);
    let tree = tree.filter(|tree| tree.is_there());
    Some(match tree {
        Some(tree) => Ok(Place { tree, number }),
        None => Err(failed(&gone())),
    })
}

/// The kernel lets go of an inode so many times; false for one of our own.
pub(super) fn forget(shared: &Shared, ino: INodeNo, times: u64) -> bool {
    let number = Number::of_inode(ino.0);
    if let Some(number) = number {
        shared.guests.forget(number, times);
    }
    number.is_some()
}

/// What is answered where something would be written; a recursive delete is held against its process.
pub(super) fn no_write(shared: &Shared, pid: u32, ino: INodeNo) -> Option<fuser::Errno> {
    match place(shared, ino)? {
        Ok(place) => {
            let point = place.tree.home.owner();
            let process = caller::process_of(pid);
            shared.sweeps.remember(process, &point, Instant::now());
            Some(fuser::Errno::EROFS)
        }
        Err(errno) => Some(errno),
    }
}

/// The attributes of a node that is named in a directory `depth` below the root.
fn attributes(
    shared: &Shared,
    tree: &Tree,
    node: &Node,
    depth: u8,
) -> Result<FileAttr, fuser::Errno> {
    let of = &node.attributes;
    if i64::try_from(of.size).is_err() {
        // The kernel would not take it, and would not tell either that it forgets what it did not take.
        return Err(errno(Errno::EUCLEAN));
    }
    let links = shared.guests.links();
    let depends = |target: &Vec<u8>| depends_on_depth(links, target);
    let depth = match of.kind {
        FileKind::Directory => depth,
        FileKind::Symlink if node.target.as_ref().is_some_and(depends) => depth,
        _ => 0,
    };
    let number = Number {
        tree: tree.number,
        depth,
        node: node.number,
    };
    let ino = number.inode().ok_or_else(|| {
        failed(&Failure::new(
            Errno::EOPNOTSUPP,
            "this file has a number that cannot be shown",
        ))
    })?;
    let shown = node.target.as_ref().map(|it| shown(links, it, depth));
    let size = match &shown {
        Some(target) => target.as_ref().map_or(0, |target| target.len() as u64),
        None => of.size,
    };
    let (uid, gid, perm) = shared.owner.of_guest(of);
    let (major, minor) = of.device;
    Ok(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: of.blocks,
        atime: system_time(of.accessed),
        mtime: system_time(of.modified),
        ctime: system_time(of.changed),
        crtime: UNIX_EPOCH,
        kind: file_type(of.kind),
        perm,
        nlink: of.links,
        uid,
        gid,
        // as the kernel packs it
        rdev: minor & 0xff | major << 8 | (minor & !0xff) << 12,
        blksize: super::LONGEST_READ,
        flags: 0,
    })
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = match time.seconds < 0 {
        true => UNIX_EPOCH.checked_sub(seconds),
        false => UNIX_EPOCH.checked_add(seconds),
    };
    let time = whole.and_then(|it| it.checked_add(Duration::from_nanos(time.nanoseconds.into())));
    time.unwrap_or(UNIX_EPOCH)
}

/// Whether a node is left out of the tree.
pub(super) fn is_hidden(shared: &Shared, node: &Node) -> bool {
    shared.guests.links() == Links::Hide && node.attributes.kind == FileKind::Symlink
}

/// The attributes of a node that is named in `directory`. What a directory's node stands under in the tree says how
/// deep it is; a link stands in its directory.
pub(super) fn named(
    shared: &Shared,
    tree: &Tree,
    node: &Node,
    directory: Number,
) -> Result<FileAttr, fuser::Errno> {
    let depth = match node.attributes.kind {
        FileKind::Directory => directory.depth.saturating_add(1),
        _ => directory.depth,
    };
    attributes(shared, tree, node, depth)
}

/// The same for an answer that makes the kernel know the node: a directory is held by it until it forgets it.
pub(super) fn held(
    shared: &Shared,
    tree: &Tree,
    node: &Node,
    (directory, name): (Number, &[u8]),
) -> Result<FileAttr, fuser::Errno> {
    let attr = named(shared, tree, node, directory)?;
    if attr.kind == FileType::Directory {
        let directory = directory.node;
        let held = tree.hold(node.number, Whence::Name { directory, name });
        held.map_err(|failure| failed(&failure))?;
    }
    Ok(attr)
}

/// Answers with the attributes of a node.
fn reply_named(
    shared: &Shared,
    tree: &Tree,
    node: &Node,
    named: (Number, &[u8]),
    reply: ReplyEntry,
) {
    if is_hidden(shared, node) {
        return reply.error(fuser::Errno::ENOENT);
    }
    match held(shared, tree, node, named) {
        Ok(attr) => reply.entry_with_ttls(&TTL, &TTL, &attr, GENERATION),
        Err(errno) => reply.error(errno),
    }
}

/// Answers with the root of a tree.
pub(super) fn reply_root(shared: &Shared, tree: &Tree, node: &Node, reply: ReplyEntry) {
    let held = attributes(shared, tree, node, 0).and_then(|attr| {
        let held = tree.hold(node.number, Whence::Outside);
        held.map(|()| attr).map_err(|failure| failed(&failure))
    });
    match held {
        Ok(attr) => reply.entry_with_ttls(&TTL, &TTL, &attr, GENERATION),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn lookup(shared: &Arc<Shared>, place: Place, name: &OsStr, reply: ReplyEntry) {
    let Place { tree, number } = place;
    let name = name.as_bytes().to_vec();
    if let Some(node) = tree.known_name(number.node, &name) {
        return reply_named(shared, &tree, &node, (number, &name), reply);
    }
    let (in_answer, of) = (Arc::clone(shared), Arc::clone(&tree));
    let question = Question::Lookup {
        directory: number.node,
        name: name.clone(),
    };
    tree.ask(question, move |answer| match node_of(answer) {
        Ok(node) => reply_named(&in_answer, &of, &node, (number, &name), reply),
        Err(failure) => reply.error(failed(&failure)),
    });
}

/// The node of an answer.
pub(super) fn node_of(answer: Result<Answer, Failure>) -> Result<Node, Failure> {
    match answer? {
        Answer::Node(node) => Ok(node),
        _ => Err(another()),
    }
}

pub(super) fn another() -> Failure {
    Failure::new(Errno::EIO, "the reader answered another question")
}

/// Finds out about a node and hands it to `done`.
fn with_node(place: &Place, done: impl FnOnce(Result<Node, Failure>) + Send + 'static) {
    match place.tree.known(place.number.node) {
        Some(node) => done(Ok(node)),
        None => {
            let question = Question::Node(place.number.node);
            place
                .tree
                .ask(question, move |answer| done(node_of(answer)));
        }
    }
}

pub(super) fn getattr(shared: &Arc<Shared>, place: Place, reply: ReplyAttr) {
    let (in_answer, tree, depth) = (
        Arc::clone(shared),
        Arc::clone(&place.tree),
        place.number.depth,
    );
    with_node(&place, move |node| {
        let node = node.map_err(|failure| failed(&failure));
        match node.and_then(|node| attributes(&in_answer, &tree, &node, depth)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    });
}

pub(super) fn readlink(shared: &Arc<Shared>, place: Place, reply: ReplyData) {
    let (links, depth) = (shared.guests.links(), place.number.depth);
    with_node(&place, move |node| match node {
        Ok(node) => match node.target.as_ref().map(|it| shown(links, it, depth)) {
            Some(Some(target)) => reply.data(&target),
            Some(None) => {
                tracing::warn!("this link leads out of the tree");
                reply.error(fuser::Errno::ELOOP);
            }
            None => reply.error(fuser::Errno::EINVAL),
        },
        Err(failure) => reply.error(failed(&failure)),
    });
}

pub(super) fn open(shared: &Arc<Shared>, pid: u32, place: Place, reply: ReplyOpen) {
    let Place { tree, number } = place;
    let process = caller::process_of(pid);
    let (in_answer, of) = (Arc::clone(shared), Arc::clone(&tree));
    tree.work(move |desk| {
        let opened = desk.and_then(|desk| {
            let node = match of.known(number.node) {
                Some(node) => node,
                None => node_of(desk.ask(&Question::Node(number.node)))?,
            };
            let question = guest_extents::first(number.node);
            let Answer::Extents(extents) = desk.ask(&question)? else {
                return Err(another());
            };
            // From here on nobody takes the point away.
            let disks = desk.disks().again(process)?;
            let first = of.home.points().first().ok_or_else(gone)?;
            let bytes_read = in_answer.log.counters().reads(&first.disk);
            let mut flags = fuser::FopenFlags::empty();
            let stay = of.pages_may_stay(disks.fingerprint());
            flags.set(fuser::FopenFlags::FOPEN_KEEP_CACHE, stay);
            // There is nothing to be flushed: that is one question less for each file that is closed.
            flags.insert(fuser::FopenFlags::FOPEN_NOFLUSH);
            let file = GuestFile::new(of, disks, &node, extents, bytes_read);
            Ok((file, flags))
        });
        match opened {
            Ok((file, flags)) => {
                let handle = in_answer.handles.insert(Handle::GuestFile(file));
                reply.opened(handle, flags);
            }
            Err(failure) => reply.error(failed(&failure)),
        }
    });
}

/// What `getxattr` and `listxattr` answer with.
pub(super) enum Wanted {
    Value(Vec<u8>),
    Names,
}

pub(super) fn xattr(place: &Place, wanted: Wanted, size: u32, reply: ReplyXattr) {
    if place.tree.has_no_xattrs(place.number.node) {
        return match wanted {
            Wanted::Value(_) => reply.error(fuser::Errno::NO_XATTR),
            Wanted::Names => replies::xattr(reply, size, &[]),
        };
    }
    let question = Question::Xattrs(place.number.node);
    place.tree.ask(question, move |answer| {
        let all = match answer {
            Ok(Answer::Xattrs(all)) => all,
            Ok(_) => return reply.error(failed(&another())),
            Err(failure) => return reply.error(failed(&failure)),
        };
        let value = match wanted {
            Wanted::Value(name) => match all.into_iter().find(|(its, _)| *its == name) {
                Some((_, value)) => value,
                None => return reply.error(fuser::Errno::NO_XATTR),
            },
            Wanted::Names => {
                let names = all.into_iter().filter(|(name, _)| !name.contains(&0));
                names
                    .flat_map(|(mut name, _)| {
                        name.push(0);
                        name
                    })
                    .collect()
            }
        };
        replies::xattr(reply, size, &value);
    });
}
