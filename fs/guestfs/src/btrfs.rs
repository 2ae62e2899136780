//! Btrfs on one device: the whole of it, with its subvolumes and snapshots as the directories that they are.
//! A node is a subvolume's index and an inode.
//! Does not know: several devices, and which subvolume the guest mounts.

mod compress;
mod content;
mod log;
mod names;
mod tree;

use crate::bytes::{le16, le32, le64, slice, u8};
use crate::filesystem::{
    Attributes, Extent, FileKind, Filesystem, Journal, Listing, Time, Xattr, by_listing,
};
use crate::{Error, ReadAt};
use std::ops::ControlFlow;
use std::sync::Arc;
use tree::{Chunk, Key, Root, Space};

const SUPERBLOCK: u64 = 64 << 10;
const MAGIC: &[u8] = b"_BHRfS_M";
/// Features that an older reader must not pass over, and that are known here; all but zones, trees of
/// extents of a second kind, and tables of stripes.
const KNOWN: u64 = 0x1_0fff;
const CRC32C: u16 = 0;
/// The tree of all files that are in no other subvolume.
const TOP: u64 = 5;
/// The first number that files and subvolumes have.
const FIRST: u64 = 256;
/// Subvolumes that are shown.
const SUBVOLUMES_MAX: usize = 1 << 16;
/// Bits of a node's number.
const NODE_BITS: u32 = 40;

const INODE_ITEM: u8 = 1;
const CHUNK_ITEM: u8 = 228;
const ROOT_ITEM: u8 = 132;

/// What a node is.
enum Place {
    /// Of the subvolume at this index, by its tree: an inode.
    Inode(usize, Root, u64),
    /// The empty directory that stands for a subvolume that is not there.
    Absent,
}

/// An open Btrfs.
pub struct Btrfs {
    space: Space,
    /// The tree of trees.
    roots: Root,
    /// Numbers and roots of subvolumes, in the order of the numbers.
    subvolumes: Vec<(u64, Root)>,
    sector_size: u32,
    journal: Journal,
}

/// What an inode says.
struct Inode {
    mode: u32,
    size: u64,
    attributes: Attributes,
}

impl Btrfs {
    /// Reads the superblock and the trees of chunks and of subvolumes.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Btrfs, Error> {
        let block = source.bytes(SUPERBLOCK, 4096)?;
        if slice(&block, 64, 8)? != MAGIC {
            return Err(Error::Corrupt("the superblock has no magic number"));
        }
        let has_crc = le16(&block, 196)? == CRC32C;
        if has_crc && crc32c::crc32c(slice(&block, 32, 4096 - 32)?) != le32(&block, 0)? {
            return Err(Error::Corrupt("the checksum of the superblock"));
        }
        if le64(&block, 188)? & !KNOWN != 0 {
            return Err(Error::Unsupported("a feature of this Btrfs"));
        }
        if le64(&block, 136)? != 1 {
            return Err(Error::Unsupported("it is on several devices"));
        }
        let (sector_size, node_size) = (le32(&block, 144)?, le32(&block, 148)?);
        let is_size = |size: u32| size.is_power_of_two() && (4096..=64 << 10).contains(&size);
        if !is_size(sector_size) || !is_size(node_size) {
            return Err(Error::Corrupt("the size of nodes"));
        }
        let mut space = Space::new(source, node_size, has_crc);
        let mut system = slice(&block, 811, (le32(&block, 160)? as usize).min(2048))?;
        while !system.is_empty() {
            let (address, item) = (le64(system, 9)?, system.get(17..).unwrap_or_default());
            let (chunk, length) = Chunk::parse(item)?;
            space.add(address, chunk)?;
            system = item.get(length..).unwrap_or_default();
        }
        let root = |address: usize, level: usize| {
            Ok::<_, Error>(Root {
                address: le64(&block, address)?,
                level: u8(&block, level)?,
            })
        };
        let mut chunks = Vec::new();
        space.each(root(88, 199)?, all(FIRST, CHUNK_ITEM), &mut |key, item| {
            chunks.push((key.offset, Chunk::parse(item)?.0));
            Ok(ControlFlow::Continue(()))
        })?;
        for (address, chunk) in chunks {
            space.add(address, chunk)?;
        }
        let roots = root(80, 198)?;
        let subvolumes = subvolumes(&space, roots)?;
        let journal = match le64(&block, 96)? {
            0 => Journal::Clean,
            _ => {
                let sector = u64::from(sector_size);
                match log::replay(&mut space, root(96, 200)?, &subvolumes, sector) {
                    Ok(()) => Journal::Replayed,
                    Err(Error::Io(error)) => return Err(Error::Io(error)),
                    // What was committed is whole without it.
                    Err(_) => {
                        space.uncover();
                        Journal::Left
                    }
                }
            }
        };
        Ok(Btrfs {
            space,
            roots,
            subvolumes,
            sector_size,
            journal,
        })
    }

    /// Bits of a number that are the inode's, or the number of a subvolume that is absent. The bit above them says which,
    /// the others are the index of the subvolume that it is in.
    fn inode_bits(&self) -> u32 {
        let indices = self.subvolumes.len().max(2) - 1;
        NODE_BITS - (usize::BITS - indices.leading_zeros()) - 1
    }

    /// The number of an inode of a subvolume; one that nothing has for one that is too large.
    fn node(&self, index: usize, inode: u64) -> u64 {
        let bits = self.inode_bits();
        match inode >> bits {
            0 => (index as u64) << (bits + 1) | inode,
            _ => u64::MAX,
        }
    }

    /// The number of what stands in a subvolume for another that is not there.
    fn absent(&self, index: usize, subvolume: u64) -> u64 {
        match self.node(index, subvolume) {
            u64::MAX => u64::MAX,
            node => node | 1 << self.inode_bits(),
        }
    }

    /// What a number stands for.
    fn place(&self, node: u64) -> Result<Place, Error> {
        let bits = self.inode_bits();
        let index = usize::try_from(node >> (bits + 1)).unwrap_or(usize::MAX);
        let found = self.subvolumes.get(index);
        let (_, root) = found.ok_or(Error::Corrupt("a number is of no file"))?;
        let inode = node & ((1 << bits) - 1);
        Ok(match node >> bits & 1 {
            0 => Place::Inode(index, *root, inode),
            _ => Place::Absent,
        })
    }

    fn inode(&self, root: Root, number: u64) -> Result<Inode, Error> {
        let key = Key {
            object: number,
            kind: INODE_ITEM,
            offset: 0,
        };
        let item = self.space.get(root, key)?;
        let item = item.ok_or(Error::Corrupt("a name leads to no file"))?;
        let mode = le32(&item, 52)?;
        let (size, bytes) = (le64(&item, 16)?, le64(&item, 24)?);
        let kind = FileKind::of_mode(mode).ok_or(Error::Corrupt("an inode is of no kind"))?;
        if size > i64::MAX as u64 {
            return Err(Error::Corrupt("the size of a file"));
        }
        let rdev = le64(&item, 56)?;
        let time = |at: usize| {
            Ok::<_, Error>(Time {
                seconds: le64(&item, at)?.cast_signed(),
                nanoseconds: le32(&item, at + 8)? % 1_000_000_000,
            })
        };
        let sector = u64::from(self.sector_size);
        let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        Ok(Inode {
            mode,
            size,
            attributes: Attributes {
                kind,
                permissions: (mode & 0o7777) as u16,
                links: le32(&item, 40)?,
                owner: (le32(&item, 44)?, le32(&item, 48)?),
                size,
                blocks: bytes.div_ceil(sector).saturating_mul(sector / 512),
                device: match is_device {
                    true => ((rdev >> 20) as u32, (rdev & 0xf_ffff) as u32),
                    false => (0, 0),
                },
                accessed: time(112)?,
                changed: time(124)?,
                modified: time(136)?,
            },
        })
    }

    /// A file or link, and its size.
    fn content(&self, node: u64, kind: FileKind) -> Result<(Root, u64, u64), Error> {
        let Place::Inode(_, root, number) = self.place(node)? else {
            return Err(Error::WrongKind);
        };
        let inode = self.inode(root, number)?;
        match FileKind::of_mode(inode.mode) == Some(kind) {
            true => Ok((root, number, inode.size)),
            false => Err(Error::WrongKind),
        }
    }
}

/// All items of an object that are of a kind.
fn all(object: u64, kind: u8) -> (Key, Key) {
    let key = |offset| Key {
        object,
        kind,
        offset,
    };
    (key(0), key(u64::MAX))
}

/// The trees of files.
fn subvolumes(space: &Space, roots: Root) -> Result<Vec<(u64, Root)>, Error> {
    let key = |object, offset| Key {
        object,
        kind: ROOT_ITEM,
        offset,
    };
    let mut found: Vec<(u64, Root)> = Vec::new();
    space.each(
        roots,
        (key(TOP, 0), key(u64::MAX - 255, 0)),
        &mut |key, item| {
            let is_of_files = key.kind == ROOT_ITEM && (key.object == TOP || key.object >= FIRST);
            // Without references it is being removed.
            if !is_of_files || le32(item, 216)? == 0 {
                return Ok(ControlFlow::Continue(()));
            }
            if found.len() >= SUBVOLUMES_MAX {
                return Err(Error::Unsupported("it has too many subvolumes"));
            }
            let root = Root {
                address: le64(item, 176)?,
                level: u8(item, 238)?,
            };
            // Keys only grow: another of the same subvolume is the last one.
            let _older = found.pop_if(|(number, _)| *number == key.object);
            found.push((key.object, root));
            Ok(ControlFlow::Continue(()))
        },
    )?;
    match found.first() {
        Some((TOP, _)) => Ok(found),
        Some(_) | None => Err(Error::Corrupt("it has no tree of files")),
    }
}

impl Filesystem for Btrfs {
    fn root(&self) -> u64 {
        self.node(0, FIRST)
    }

    fn journal(&self) -> Journal {
        self.journal
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Error> {
        match self.place(node)? {
            Place::Inode(_, root, number) => Ok(self.inode(root, number)?.attributes),
            Place::Absent => Ok(names::absent()),
        }
    }

    fn list(&self, directory: u64, cookie: u64) -> Result<Listing, Error> {
        let Place::Inode(index, root, number) = self.place(directory)? else {
            return Ok(Listing {
                entries: Vec::new(),
                next: None,
            });
        };
        match FileKind::of_mode(self.inode(root, number)?.mode) {
            Some(FileKind::Directory) => names::list(self, (index, root, number), cookie),
            Some(_) | None => Err(Error::WrongKind),
        }
    }

    /// What the log adds has no entries by hash.
    fn has_index(&self) -> bool {
        self.journal != Journal::Replayed
    }

    fn lookup(&self, directory: u64, name: &[u8]) -> Result<u64, Error> {
        if !self.has_index() {
            return by_listing(self, directory, name);
        }
        let Place::Inode(index, root, number) = self.place(directory)? else {
            return Err(Error::NotFound);
        };
        match FileKind::of_mode(self.inode(root, number)?.mode) {
            Some(FileKind::Directory) => names::find(self, (index, root, number), name),
            Some(_) | None => Err(Error::WrongKind),
        }
    }

    fn target(&self, node: u64) -> Result<Vec<u8>, Error> {
        let (root, number, size) = self.content(node, FileKind::Symlink)?;
        content::inline(&self.space, root, number, size)
    }

    fn extents(&self, node: u64, offset: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        let (root, number, size) = self.content(node, FileKind::File)?;
        content::extents(&self.space, root, (number, size), offset, limit)
    }

    fn read(&self, node: u64, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let (root, number, size) = self.content(node, FileKind::File)?;
        content::read(&self.space, root, (number, size), offset, length)
    }

    fn xattrs(&self, node: u64) -> Result<Vec<Xattr>, Error> {
        match self.place(node)? {
            Place::Inode(_, root, number) => names::xattrs(&self.space, root, number),
            Place::Absent => Ok(Vec::new()),
        }
    }
}
