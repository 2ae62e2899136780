//! The reader's process: it parses what a guest wrote, and can do nothing else. It has one socket,
//! asks for bytes over it, and answers questions until the socket closes.

use super::remote::Remote;
use super::wire::{self, Answer, Named, Node, Question, Trouble, Word};
use crate::errno::Failure;
use crate::sys;
use qmpfs_guestfs::{DirEntry, Error, FileKind, Filesystem};
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Names that are kept to be found again: a large directory is gone through once, not for each name.
const INDEX_MAX: usize = 400_000;

/// `qmpfs guest-reader`: serves the socket that is its standard input.
pub fn serve() -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::io("read for a mount", &error);
    sys::close_inherited().map_err(failed)?;
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    sys::confine().map_err(failed)?;
    let disk = Arc::new(Remote::new(UnixStream::from(socket)));
    let mut reader = Reader {
        disk,
        filesystem: None,
        index: HashMap::new(),
        indexed: 0,
    };
    loop {
        let question = match reader.disk.receive() {
            Ok(question) => question,
            // Nobody asks any more.
            Err(_) => return Ok(()),
        };
        let answer = reader.answer(question);
        let answer = answer.map_err(|error| Trouble::from(&error));
        reader.disk.send(&Word::Answer(answer)).map_err(failed)?;
    }
}

struct Reader {
    disk: Arc<Remote>,
    filesystem: Option<Box<dyn Filesystem>>,
    /// Names of directories that were searched.
    index: HashMap<u64, HashMap<Vec<u8>, u64>>,
    indexed: usize,
}

impl Reader {
    fn answer(&mut self, question: Question) -> Result<Answer, Error> {
        if let Question::Open { kind, length } = question {
            self.disk.set_length(length);
            let disk: Arc<dyn qmpfs_guestfs::ReadAt> = Arc::clone(&self.disk) as _;
            let filesystem = qmpfs_guestfs::open(kind, disk)?;
            // A filesystem whose root cannot be listed is not open.
            filesystem.attributes(filesystem.root())?;
            filesystem.list(filesystem.root(), 0)?;
            let (root, journal) = (filesystem.root(), filesystem.journal());
            self.filesystem = Some(filesystem);
            return Ok(Answer::Opened { root, journal });
        }
        if let Question::Lookup { directory, name } = &question {
            let number = self.find(*directory, name)?;
            return self.node(number).map(Answer::Node);
        }
        let filesystem = self.filesystem()?;
        Ok(match question {
            Question::Open { .. } | Question::Lookup { .. } => return Err(Error::WrongKind),
            Question::Node(node) => Answer::Node(self.node(node)?),
            Question::List { directory, cookie } => {
                let listing = filesystem.list(directory, cookie)?;
                Answer::Names {
                    entries: listing
                        .entries
                        .into_iter()
                        .map(|it| self.named(it))
                        .collect(),
                    next: listing.next,
                }
            }
            Question::Extents {
                node,
                offset,
                limit,
            } => Answer::Extents(filesystem.extents(node, offset, limit as usize)?),
            Question::Read {
                node,
                offset,
                length,
            } => {
                let length = length.min(wire::READ_MAX);
                Answer::Bytes(filesystem.read(node, offset, length as usize)?)
            }
            Question::Xattrs(node) => Answer::Xattrs(filesystem.xattrs(node)?),
        })
    }

    fn filesystem(&self) -> Result<&dyn Filesystem, Error> {
        self.filesystem.as_deref().ok_or(Error::WrongKind)
    }

    fn node(&self, number: u64) -> Result<Node, Error> {
        let filesystem = self.filesystem()?;
        let mut attributes = filesystem.attributes(number)?;
        let target = match attributes.kind {
            FileKind::Symlink => Some(filesystem.target(number)?),
            FileKind::File
            | FileKind::Directory
            | FileKind::CharDevice
            | FileKind::BlockDevice
            | FileKind::Fifo
            | FileKind::Socket => None,
        };
        if let Some(target) = &target {
            if target.is_empty() || target.contains(&0) {
                return Err(Error::Corrupt("the target of a link"));
            }
            attributes.size = target.len() as u64;
        }
        Ok(Node {
            number,
            attributes,
            target,
        })
    }

    /// `ls -l` asks each file for its extended attributes; nearly none has any.
    fn named(&self, entry: DirEntry) -> Named {
        let xattrs = self.filesystem().and_then(|it| it.xattrs(entry.node));
        Named {
            bare: xattrs.is_ok_and(|all| all.is_empty()),
            node: self.node(entry.node).ok(),
            name: entry.name,
        }
    }

    /// The node of a name: by the directory's own index, or by one that is made here where it is not too large.
    fn find(&mut self, directory: u64, name: &[u8]) -> Result<u64, Error> {
        let filesystem = self.filesystem()?;
        if filesystem.has_index() {
            return filesystem.lookup(directory, name);
        }
        if let Some(names) = self.index.get(&directory) {
            return names.get(name).copied().ok_or(Error::NotFound);
        }
        let mut names = HashMap::new();
        let mut cookie = Some(0);
        while let Some(at) = cookie {
            let listing = self.filesystem()?.list(directory, at)?;
            let entries = listing.entries.into_iter();
            names.extend(entries.map(|entry| (entry.name, entry.node)));
            if names.len() > INDEX_MAX {
                return self.filesystem()?.lookup(directory, name);
            }
            cookie = listing.next;
        }
        if self.indexed + names.len() > INDEX_MAX {
            self.index.clear();
            self.indexed = 0;
        }
        let found = names.get(name).copied();
        self.indexed += names.len();
        self.index.insert(directory, names);
        found.ok_or(Error::NotFound)
    }
}
