//! XFS, by the crate `rust-fs-xfs`: its log is recovered in memory when it is opened.
//! Here is what it leaves open: where the log ends, where extents are in bytes, devices, ACLs as the kernel gives them, and
//! limits: it goes through as much as an inode says that it has.

mod intents;
mod log;

use crate::bytes::{be16, be32};
use crate::filesystem::{
    Attributes, DirEntry, Extent, FileKind, Filesystem, Journal, Listing, Place, Time, Xattr,
    is_name,
};
use crate::{Error, ReadAt};
use fs_xfs::inode::{Format, Inode};
use fs_xfs::superblock::Superblock;
use intents::Unfinished;
use log::Log;
use std::sync::{Arc, Mutex, PoisonError};

/// Names of one listing.
const NAMES: usize = 1024;
/// Extents of one file, which are in memory all at once.
const EXTENTS_MAX: u64 = 2 << 20;
/// The most bytes that a directory can have, whose names are in memory all at once: two millions of them.
const DIRECTORY_MAX: u64 = 64 << 20;
/// ACLs, as the disk names them and as the kernel does.
const ACLS: [(&[u8], &[u8]); 2] = [
    (b"trusted.SGI_ACL_FILE", b"system.posix_acl_access"),
    (b"trusted.SGI_ACL_DEFAULT", b"system.posix_acl_default"),
];

/// The sector of the superblock, of any size that there is.
const SUPERBLOCK: usize = 4096;

/// The disk as that crate reads it: its log without what does not count.
struct Disk {
    source: Arc<dyn ReadAt>,
    log: Option<Log>,
}

impl Disk {
    fn new(source: Arc<dyn ReadAt>) -> Result<Disk, Error> {
        let superblock = source.bytes(0, SUPERBLOCK)?;
        let superblock = Superblock::parse(&superblock).map_err(failed)?;
        // One on another disk is refused by the crate.
        let log = match superblock.has_internal_log() {
            true => Some(Log::find(&source, &superblock)?),
            false => None,
        };
        Ok(Disk { source, log })
    }
}

impl fs_core::BlockRead for Disk {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> fs_core::Result<()> {
        self.source.read_at(offset, buffer)?;
        if let Some(log) = &self.log {
            log.hide(offset, buffer);
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.source.size()
    }
}

/// An open XFS.
pub struct Xfs {
    filesystem: fs_xfs::Filesystem,
    root: u64,
    /// What the log has begun, which is not ended here.
    unfinished: Unfinished,
    /// The names of the directory that was listed last: they come all at once.
    listed: Mutex<(u64, Vec<DirEntry>)>,
    /// The size and the extents of the file that was asked for last, which come all at once as well.
    mapped: Mutex<Option<(u64, Arc<Mapped>)>>,
}

/// The size of a file, and its extents that were written, in order.
struct Mapped {
    size: u64,
    extents: Vec<Extent>,
}

fn failed(error: fs_xfs::Error) -> Error {
    match error {
        fs_xfs::Error::Io(words) => Error::Io(std::io::Error::other(words)),
        fs_xfs::Error::UnsupportedFeature(_) => Error::Unsupported("a feature of this XFS"),
        fs_xfs::Error::CorruptLog(_) | fs_xfs::Error::DirtyLog => {
            Error::Corrupt("the log of the XFS")
        }
        fs_xfs::Error::NotFound => Error::NotFound,
        fs_xfs::Error::NotADirectory => Error::WrongKind,
        _ => Error::Corrupt("a structure of the XFS"),
    }
}

impl Xfs {
    /// Reads the superblock, and recovers the log if that is needed.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Xfs, Error> {
        let mut disk = Disk::new(source)?;
        let log = disk.log.as_mut();
        let unfinished = log.map(|log| std::mem::take(&mut log.unfinished));
        let filesystem = fs_xfs::Filesystem::mount(Arc::new(disk)).map_err(failed)?;
        let root = filesystem.root_inode().map_err(failed)?.ino;
        Ok(Xfs {
            filesystem,
            root,
            unfinished: unfinished.unwrap_or_default(),
            listed: Mutex::new((0, Vec::new())),
            mapped: Mutex::default(),
        })
    }

    fn inode(&self, node: u64) -> Result<(Inode, Vec<u8>), Error> {
        let (inode, raw) = self.filesystem.read_inode_raw(node).map_err(failed)?;
        let extents = inode.nextents.saturating_add(inode.anextents.into());
        // As the kernel has it.
        if extents > inode.nblocks {
            return Err(Error::Corrupt("a file has more extents than blocks"));
        }
        if extents > EXTENTS_MAX {
            return Err(Error::Unsupported("a file in so many pieces"));
        }
        Ok((inode, raw))
    }

    /// An inode whose bytes are asked for. Those of one that is being changed are neither what they were nor what they will be.
    fn inode_of_data(&self, node: u64) -> Result<(Inode, Vec<u8>), Error> {
        match self.unfinished.data.contains(&node) {
            true => Err(Error::Unsupported(
                "its log has only begun to change this file",
            )),
            false => self.inode(node),
        }
    }

    /// Whether a directory's extents are as long as it is, and no longer.
    fn check_directory(&self, inode: &Inode, raw: &[u8]) -> Result<(), Error> {
        /// Behind this byte of a directory there are no names.
        const NAMES_END: u64 = 32 << 30;
        if inode.size > DIRECTORY_MAX {
            return Err(Error::Unsupported("a directory of so many names"));
        }
        if inode.format == Format::Local {
            return Ok(());
        }
        let size = u64::from(self.filesystem.superblock().blocksize);
        let found = self.filesystem.data_extents(inode, raw).map_err(failed)?;
        let of_names = found.iter().take_while(|it| it.startoff < NAMES_END / size);
        let blocks = of_names.fold(0u64, |all, it| all.saturating_add(it.blockcount));
        match blocks.saturating_mul(size) > inode.size {
            true => Err(Error::Corrupt("a directory is longer than its size")),
            false => Ok(()),
        }
    }

    fn mapped(&self, node: u64) -> Result<Arc<Mapped>, Error> {
        let mut known = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, mapped)) = known.as_ref().filter(|(its, _)| *its == node) {
            return Ok(Arc::clone(mapped));
        }
        let (inode, raw) = self.inode_of_data(node)?;
        if !inode.is_regular_file() {
            return Err(Error::WrongKind);
        }
        let superblock = self.filesystem.superblock();
        let size = u64::from(superblock.blocksize);
        let found = self.filesystem.data_extents(&inode, &raw).map_err(failed)?;
        let place = |extent: fs_xfs::extent::Extent| {
            let of = |number: u64| number.checked_mul(size);
            let (start, length) = (of(extent.startoff)?, of(extent.blockcount)?);
            start.checked_add(length)?;
            Some(Extent {
                offset: start,
                length,
                place: Place::At(superblock.fsblock_offset(extent.startblock)),
            })
        };
        let written = found.into_iter().filter(|extent| !extent.unwritten);
        let extents: Option<Vec<Extent>> = written.map(place).collect();
        let mapped = Arc::new(Mapped {
            size: inode.size,
            extents: extents.ok_or(Error::Corrupt("an extent of a file"))?,
        });
        *known = Some((node, Arc::clone(&mapped)));
        Ok(mapped)
    }

    fn names(&self, directory: u64) -> Result<Vec<DirEntry>, Error> {
        let (inode, raw) = self.inode_of_data(directory)?;
        if !inode.is_dir() {
            return Err(Error::WrongKind);
        }
        self.check_directory(&inode, &raw)?;
        let found = self.filesystem.read_dir(&inode, &raw).map_err(failed)?;
        let named = found.into_iter().filter(|entry| is_name(&entry.name));
        Ok(named
            .map(|entry| DirEntry {
                name: entry.name,
                node: entry.ino,
                kind: None,
            })
            .collect())
    }
}

fn time(stamp: fs_xfs::inode::Timestamp) -> Time {
    Time {
        seconds: stamp.sec,
        nanoseconds: stamp.nsec,
    }
}

/// A device's numbers as IRIX packed them.
fn device(inode: &Inode, raw: &[u8]) -> Result<(u32, u32), Error> {
    if inode.format != Format::Dev {
        return Ok((0, 0));
    }
    let packed = be32(raw, inode.data_fork_offset())?;
    Ok((packed >> 18, packed & 0x3_ffff))
}

impl Filesystem for Xfs {
    fn root(&self) -> u64 {
        self.root
    }

    fn journal(&self) -> Journal {
        let unfinished = &self.unfinished;
        let is_whole = unfinished.data.is_empty() && unfinished.attributes.is_empty();
        match (self.filesystem.was_replayed(), is_whole) {
            (true, true) => Journal::Replayed,
            (true, false) => Journal::Partly,
            (false, _) => Journal::Clean,
        }
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Error> {
        let (inode, raw) = self.inode(node)?;
        let kind = FileKind::of_mode(inode.mode.into());
        let kind = kind.ok_or(Error::Corrupt("an inode is of no kind"))?;
        let size = self.filesystem.superblock().blocksize;
        Ok(Attributes {
            kind,
            permissions: inode.mode & 0o7777,
            links: inode.nlink,
            owner: (inode.uid, inode.gid),
            size: inode.size,
            blocks: inode.nblocks.saturating_mul(u64::from(size) / 512),
            device: device(&inode, &raw)?,
            accessed: time(inode.atime),
            modified: time(inode.mtime),
            changed: time(inode.ctime),
        })
    }

    fn has_index(&self) -> bool {
        true
    }

    fn lookup(&self, directory: u64, name: &[u8]) -> Result<u64, Error> {
        let (inode, raw) = self.inode_of_data(directory)?;
        if !is_name(name) {
            return Err(Error::NotFound);
        }
        let found = self.filesystem.lookup(&inode, &raw, name);
        Ok(found.map_err(failed)?.ino)
    }

    fn list(&self, directory: u64, cookie: u64) -> Result<Listing, Error> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.0 != directory || cookie == 0 {
            *listed = (directory, self.names(directory)?);
        }
        let start = usize::try_from(cookie).unwrap_or(usize::MAX);
        let rest = listed.1.get(start..).ok_or(Error::NotFound)?;
        let entries: Vec<DirEntry> = rest.iter().take(NAMES).cloned().collect();
        let next = (entries.len() < rest.len()).then_some(cookie + entries.len() as u64);
        Ok(Listing { entries, next })
    }

    fn target(&self, node: u64) -> Result<Vec<u8>, Error> {
        let (inode, raw) = self.inode_of_data(node)?;
        if !inode.is_symlink() {
            return Err(Error::WrongKind);
        }
        self.filesystem.read_link(&inode, &raw).map_err(failed)
    }

    fn extents(&self, node: u64, offset: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        let mapped = self.mapped(node)?;
        if offset >= mapped.size {
            return Ok(Vec::new());
        }
        let end = |extent: &Extent| extent.offset + extent.length;
        let first = mapped.extents.partition_point(|it| end(it) <= offset);
        let rest = mapped.extents.iter().skip(first);
        let within = rest.take_while(|extent| extent.offset < mapped.size);
        Ok(within.take(limit).copied().collect())
    }

    fn read(&self, node: u64, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let (inode, raw) = self.inode_of_data(node)?;
        let mut bytes = vec![0; length];
        let read = self.filesystem.read_at(&inode, &raw, offset, &mut bytes);
        bytes.truncate(read.map_err(failed)?);
        Ok(bytes)
    }

    fn xattrs(&self, node: u64) -> Result<Vec<Xattr>, Error> {
        if self.unfinished.attributes.contains(&node) {
            return Err(Error::Unsupported(
                "its log has only begun to change attributes of this file",
            ));
        }
        let (inode, raw) = self.inode(node)?;
        let found = self.filesystem.list_xattrs(&inode, &raw).map_err(failed)?;
        let mut all = Vec::new();
        for xattr in found {
            let known = ACLS.iter().find(|(disk, _)| *disk == xattr.name);
            if let Some((_, name)) = known {
                all.push((name.to_vec(), acl(&xattr.value)?));
            }
            all.push((xattr.name, xattr.value));
        }
        Ok(all)
    }
}

/// From the way the disk has it to the way the kernel gives it.
fn acl(disk: &[u8]) -> Result<Vec<u8>, Error> {
    /// Tags of users and groups; the ids of others say nothing.
    const NAMED: [u32; 2] = [2, 8];
    let mut value = 2u32.to_le_bytes().to_vec();
    for index in 0..be32(disk, 0)? as usize {
        let at = 4 + index * 12;
        let (tag, id, permissions) = (be32(disk, at)?, be32(disk, at + 4)?, be16(disk, at + 8)?);
        let id = if NAMED.contains(&tag) { id } else { u32::MAX };
        value.extend((tag as u16).to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Ok(value)
}
