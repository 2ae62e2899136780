//! squashfs 4: files, the tables that they are found by, and all five ways of compression. A node is the place of
//! an inode: a block of metadata in the table of inodes, and a byte of it.
//! Does not know: versions before 4, and LZMA as it was before XZ.

mod content;
mod inode;
mod tables;
mod xattr;

use crate::bytes::{le16, le32, le64, slice};
use crate::filesystem::{
    Attributes, DirEntry, Extent, Filesystem, Journal, Listing, Xattr, is_name,
};
use crate::{Error, ReadAt};
use content::Layout;
use inode::{Body, Inode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tables::{Blocks, METADATA, Method};
use xattr::Table;

const MAGIC: &[u8] = b"hsqs";
const SUPERBLOCK: usize = 96;
const VERSION: u16 = 4;
/// What stands for a table that is not there.
const NONE: u64 = u64::MAX;
/// Bits of a node's number that are the byte within a block of metadata.
const BYTE_BITS: u32 = METADATA.trailing_zeros();
/// Bits of a node's number; so the table of inodes is read as far as 128 MiB, some ten million files.
const NODE_BITS: u32 = 40;
/// What the size of a directory counts besides its names.
const DOTS: u64 = 3;
/// Names behind one header, as in the kernel.
const NAMES_MAX: u32 = 256;
/// Names of one listing, and those of one header more.
const NAMES: usize = 500;
const ID: usize = 4;

/// An open squashfs.
pub struct Squashfs {
    blocks: Blocks,
    /// Bytes of a block of a file.
    block: u64,
    root: u64,
    inodes: u64,
    directories: u64,
    /// The tables of ids and of fragments, and how many each has.
    ids: (u64, u16),
    fragments: (u64, u32),
    xattrs: Option<Table>,
    /// The file that was read last.
    layout: Mutex<Option<(u64, Arc<Layout>)>>,
    /// Where the last listing ended.
    listed: Mutex<Option<Listed>>,
}

/// How far a directory was listed.
#[derive(Clone, Copy)]
struct Listed {
    directory: u64,
    cookie: u64,
    /// The block of metadata that goes on there, and a byte of it.
    place: (u64, usize),
}

impl Squashfs {
    /// Reads the superblock.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Squashfs, Error> {
        let head = source.bytes(0, SUPERBLOCK)?;
        if slice(&head, 0, 4)? != MAGIC {
            return Err(Error::Corrupt("the superblock has no magic number"));
        }
        if le16(&head, 28)? != VERSION {
            return Err(Error::Unsupported("a version of squashfs"));
        }
        let block = le32(&head, 12)?;
        if !block.is_power_of_two()
            || !(4 << 10..=1 << 20).contains(&block)
            || block.trailing_zeros() != le16(&head, 22)?.into()
        {
            return Err(Error::Corrupt("the size of blocks"));
        }
        if le64(&head, 40)? > source.size() {
            return Err(Error::Corrupt("it goes on behind the end"));
        }
        let xattrs = match le64(&head, 56)? {
            NONE => None,
            at => Some(Table::read(&*source, at)?),
        };
        let root = le64(&head, 32)?;
        Ok(Squashfs {
            blocks: Blocks::new(source, Method::of(le16(&head, 20)?)?),
            block: block.into(),
            root: node(root >> 16, (root & 0xffff) as usize),
            inodes: le64(&head, 64)?,
            directories: le64(&head, 72)?,
            ids: (le64(&head, 48)?, le16(&head, 26)?),
            fragments: (le64(&head, 80)?, le32(&head, 16)?),
            xattrs,
            layout: Mutex::default(),
            listed: Mutex::default(),
        })
    }

    fn inode(&self, node: u64) -> Result<Inode, Error> {
        let (block, byte) = (node >> BYTE_BITS, node & ((1 << BYTE_BITS) - 1));
        let block = self.inodes.checked_add(block);
        if node >> NODE_BITS != 0 {
            return Err(Error::Unsupported("an inode that lies too far away"));
        }
        let block = block.ok_or(Error::Corrupt("an inode is behind the end"))?;
        inode::parse(self.blocks.stream(block, byte as usize))
    }

    fn id(&self, index: u16) -> Result<u32, Error> {
        match index < self.ids.1 {
            true => le32(&self.blocks.entry(self.ids.0, index.into(), ID)?, 0),
            false => Err(Error::Corrupt("a file has no such owner")),
        }
    }

    fn layout(&self, node: u64) -> Result<Arc<Layout>, Error> {
        let mut known = self.layout.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, layout)) = known.as_ref().filter(|(its, _)| *its == node) {
            return Ok(Arc::clone(layout));
        }
        let inode = self.inode(node)?;
        let Body::File(file) = &inode.body else {
            return Err(Error::WrongKind);
        };
        let layout = Layout::read(&self.blocks, self.block, self.fragments, file, inode.size)?;
        let layout = Arc::new(layout);
        *known = Some((node, Arc::clone(&layout)));
        Ok(layout)
    }

    fn listed(&self) -> MutexGuard<'_, Option<Listed>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of an inode; one that nothing has for one that is too far away.
fn node(block: u64, byte: usize) -> u64 {
    let is_near = block >> (NODE_BITS - BYTE_BITS) == 0 && byte < METADATA;
    match is_near {
        true => block << BYTE_BITS | byte as u64,
        false => u64::MAX,
    }
}

impl Filesystem for Squashfs {
    fn root(&self) -> u64 {
        self.root
    }

    fn journal(&self) -> Journal {
        Journal::Clean
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Error> {
        let inode = self.inode(node)?;
        let (device, blocks) = match &inode.body {
            Body::Device(major, minor) => ((*major, *minor), 0),
            Body::File(file) => ((0, 0), inode.size.saturating_sub(file.holes).div_ceil(512)),
            Body::Directory(..) | Body::Link(_) | Body::Other => ((0, 0), 0),
        };
        // As the kernel counts them.
        let of_xattrs = match (inode.xattrs, &self.xattrs) {
            (Some(index), Some(table)) => table.size(&self.blocks, index)?.div_ceil(512),
            (Some(_) | None, _) => 0,
        };
        Ok(Attributes {
            kind: inode.kind,
            permissions: inode.permissions,
            links: inode.links,
            owner: (self.id(inode.owner.0)?, self.id(inode.owner.1)?),
            size: inode.size,
            blocks: blocks + u64::from(of_xattrs),
            device,
            accessed: inode.modified,
            modified: inode.modified,
            changed: inode.modified,
        })
    }

    /// The cookie counts the bytes of the names before; it is always that of a header.
    fn list(&self, directory: u64, cookie: u64) -> Result<Listing, Error> {
        let inode = self.inode(directory)?;
        let Body::Directory(block, byte) = inode.body else {
            return Err(Error::WrongKind);
        };
        let size = inode.size.saturating_sub(DOTS);
        let far = Error::Corrupt("a directory is behind the end");
        let block = self.directories.checked_add(block.into()).ok_or(far)?;
        let is_here = |it: &Listed| (it.directory, it.cookie) == (directory, cookie);
        let known = self.listed().filter(is_here);
        let mut stream = match known {
            Some(Listed {
                place: (block, byte),
                ..
            }) => self.blocks.stream(block, byte),
            None => {
                let mut stream = self.blocks.stream(block, byte);
                stream.skip(cookie.min(size))?;
                stream
            }
        };
        let (mut at, mut seen, mut entries) = (cookie, 0, Vec::new());
        while at < size && seen < NAMES {
            let head = stream.take(12)?;
            let (last, block) = (le32(&head, 0)?, le32(&head, 4)?);
            at += 12;
            if last >= NAMES_MAX {
                return Err(Error::Corrupt("a header of a directory"));
            }
            for _ in 0..=last {
                let head = stream.take(8)?;
                let length = usize::from(le16(&head, 6)?) + 1;
                let name = stream.take(length)?;
                at += 8 + length as u64;
                seen += 1;
                if at > size {
                    return Err(Error::Corrupt("a directory is longer than its size"));
                }
                if is_name(&name) {
                    entries.push(DirEntry {
                        name,
                        node: node(block.into(), le16(&head, 0)?.into()),
                        kind: Some(inode::kind_of(le16(&head, 4)?)?),
                    });
                }
            }
        }
        *self.listed() = Some(Listed {
            directory,
            cookie: at,
            place: stream.place(),
        });
        let next = (at < size).then_some(at);
        Ok(Listing { entries, next })
    }

    fn target(&self, node: u64) -> Result<Vec<u8>, Error> {
        match self.inode(node)?.body {
            Body::Link(target) => Ok(target),
            Body::Directory(..) | Body::File(_) | Body::Device(..) | Body::Other => {
                Err(Error::WrongKind)
            }
        }
    }

    fn extents(&self, node: u64, offset: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        self.layout(node)?.extents(&self.blocks, offset, limit)
    }

    fn read(&self, node: u64, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        self.layout(node)?.bytes(&self.blocks, offset, length)
    }

    fn xattrs(&self, node: u64) -> Result<Vec<Xattr>, Error> {
        match (self.inode(node)?.xattrs, &self.xattrs) {
            (Some(index), Some(table)) => table.of(&self.blocks, index),
            (Some(_) | None, _) => Ok(Vec::new()),
        }
    }
}
