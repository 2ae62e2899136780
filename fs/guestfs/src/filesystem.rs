//! A guest's filesystem as a tree of nodes. Each format has its reader behind this trait.

use crate::{Error, Kind, ReadAt, btrfs, exfat, ext, fat, iso, ntfs, squashfs, xfs};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A filesystem that is read. Nodes are numbers that stay the same as long as the bytes do.
pub trait Filesystem: Send {
    /// The node of the root directory.
    fn root(&self) -> u64;

    /// What became of its journal.
    fn journal(&self) -> Journal;

    /// What stat(2) shows.
    fn attributes(&self, node: u64) -> Result<Attributes, Error>;

    /// Whether `lookup` goes by an index of the directory, and not by all of its names.
    fn has_index(&self) -> bool {
        false
    }

    /// The node called `name` in a directory: by its listings, where the format has no shorter way.
    fn lookup(&self, directory: u64, name: &[u8]) -> Result<u64, Error> {
        by_listing(self, directory, name)
    }

    /// Some names of a directory, from `cookie` on, which is 0 or the one of another listing.
    /// `.` and `..` are left out.
    fn list(&self, directory: u64, cookie: u64) -> Result<Listing, Error>;

    /// Where a symbolic link leads. Not every format has them.
    fn target(&self, _node: u64) -> Result<Vec<u8>, Error> {
        Err(Error::WrongKind)
    }

    /// Where the bytes of a file are, from the one at `offset` on, in order: `limit` stretches at most.
    /// What is between them is a hole. Nothing means that there is a hole to the end.
    fn extents(&self, node: u64, offset: u64, limit: usize) -> Result<Vec<Extent>, Error>;

    /// Bytes of a file, fewer only at its end. For what no extent points to.
    fn read(&self, node: u64, offset: u64, length: usize) -> Result<Vec<u8>, Error>;

    /// Extended attributes, as the kernel gives them. Not every format has them.
    fn xattrs(&self, _node: u64) -> Result<Vec<Xattr>, Error> {
        Ok(Vec::new())
    }
}

/// The node called `name` in a directory, by its listings.
pub(crate) fn by_listing<F: Filesystem + ?Sized>(
    filesystem: &F,
    directory: u64,
    name: &[u8],
) -> Result<u64, Error> {
    let mut cookie = Some(0);
    while let Some(at) = cookie {
        let listing = filesystem.list(directory, at)?;
        if let Some(found) = listing.entries.iter().find(|entry| entry.name == name) {
            return Ok(found.node);
        }
        cookie = listing.next;
    }
    Err(Error::NotFound)
}

/// Opens the filesystem in a source.
type Opener = fn(Arc<dyn ReadAt>) -> Result<Box<dyn Filesystem>, Error>;

/// The reader for a kind.
fn opener(kind: Kind) -> Option<Opener> {
    Some(match kind {
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => |source| Ok(Box::new(ext::Ext::open(source)?)),
        Kind::Xfs => |source| Ok(Box::new(xfs::Xfs::open(source)?)),
        Kind::Fat => |source| Ok(Box::new(fat::Fat::open(source)?)),
        Kind::ExFat => |source| Ok(Box::new(exfat::ExFat::open(source)?)),
        Kind::Ntfs => |source| Ok(Box::new(ntfs::Ntfs::open(source)?)),
        Kind::Btrfs => |source| Ok(Box::new(btrfs::Btrfs::open(source)?)),
        Kind::Iso9660 => |source| Ok(Box::new(iso::Iso::open(source)?)),
        Kind::Squashfs => |source| Ok(Box::new(squashfs::Squashfs::open(source)?)),
        Kind::Swap
        | Kind::Luks
        | Kind::BitLocker
        | Kind::Lvm2
        | Kind::LinuxRaid
        | Kind::Unknown
        | Kind::Empty => return None,
    })
}

/// Whether there is a reader for a kind.
pub fn is_known(kind: Kind) -> bool {
    opener(kind).is_some()
}

/// Opens the filesystem of a kind; Unsupported where there is no reader for it.
pub fn open(kind: Kind, source: Arc<dyn ReadAt>) -> Result<Box<dyn Filesystem>, Error> {
    match opener(kind) {
        Some(open) => open(source),
        None => Err(Error::Unsupported("there is no reader for it")),
    }
}

/// What a filesystem's log had to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Journal {
    /// It was unmounted, or has none.
    Clean,
    /// It was in use: what its log held is seen as written.
    Replayed,
    /// It was in use, and its newest changes, in a part of the log that is not known here, are missing.
    Partly,
    /// It was in use, and what its log held is not seen.
    Left,
}

/// Kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl FileKind {
    /// Of what has directories and files alone.
    pub(crate) fn of_directory(is_directory: bool) -> FileKind {
        match is_directory {
            true => FileKind::Directory,
            false => FileKind::File,
        }
    }

    /// From the byte by which a directory says it (`d_type`), in ext and Btrfs.
    pub(crate) fn of_entry(byte: u8) -> Option<FileKind> {
        Some(match byte {
            1 => FileKind::File,
            2 => FileKind::Directory,
            3 => FileKind::CharDevice,
            4 => FileKind::BlockDevice,
            5 => FileKind::Fifo,
            6 => FileKind::Socket,
            7 => FileKind::Symlink,
            _ => return None,
        })
    }

    /// The same, the other way round.
    pub(crate) fn entry(self) -> u8 {
        match self {
            FileKind::File => 1,
            FileKind::Directory => 2,
            FileKind::CharDevice => 3,
            FileKind::BlockDevice => 4,
            FileKind::Fifo => 5,
            FileKind::Socket => 6,
            FileKind::Symlink => 7,
        }
    }

    /// From the file type of a Unix mode.
    pub(crate) fn of_mode(mode: u32) -> Option<FileKind> {
        Some(match mode & 0o170_000 {
            0o100_000 => FileKind::File,
            0o040_000 => FileKind::Directory,
            0o120_000 => FileKind::Symlink,
            0o020_000 => FileKind::CharDevice,
            0o060_000 => FileKind::BlockDevice,
            0o010_000 => FileKind::Fifo,
            0o140_000 => FileKind::Socket,
            _ => return None,
        })
    }
}

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl Time {
    /// The beginning of all times, for what says none.
    pub(crate) const EPOCH: Time = Time {
        seconds: 0,
        nanoseconds: 0,
    };
}

/// What stat(2) shows of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Which kind.
    pub kind: FileKind,
    /// The twelve permission bits.
    pub permissions: u16,
    /// Names it has.
    pub links: u32,
    /// Owner and group, as the guest numbers them.
    pub owner: (u32, u32),
    /// Bytes of a file, or of a link's target.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Last read.
    pub accessed: Time,
    /// Last written.
    pub modified: Time,
    /// Last changed in any way.
    pub changed: Time,
}

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// The name; never empty, without `/` and NUL.
    pub name: Vec<u8>,
    /// What it names.
    pub node: u64,
    /// Which kind that is, where the directory says so.
    pub kind: Option<FileKind>,
}

/// Some names of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// They.
    pub entries: Vec<DirEntry>,
    /// Where to go on; None at the end.
    pub next: Option<u64>,
}

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Its first byte in the file.
    pub offset: u64,
    /// Its bytes; the last stretch may be longer than the file.
    pub length: u64,
    /// Where they are.
    pub place: Place,
}

/// Where the bytes of a stretch are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// As they are, from this byte of the source on.
    At(u64),
    /// Only the reader can give them.
    Reader,
}

/// A name and a value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// The longest name that FUSE takes; with a longer one among them a listing comes to nothing. Linux's own filesystems
/// have names of 255 bytes, those of Windows of 255 units of UTF-16, which are up to 765 bytes.
const NAME_MAX: usize = 1024;

/// Whether a name can stand in a directory. What a guest calls `..` leads nowhere.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= NAME_MAX
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

#[cfg(test)]
mod tests {
    use super::{NAME_MAX, is_name};

    #[test]
    fn names_are_what_a_directory_takes() {
        let windows = "\u{6587}".repeat(255);
        assert!(is_name(windows.as_bytes()) && is_name(b"..."));
        assert!(is_name(&[b'x'; NAME_MAX]) && !is_name(&[b'x'; NAME_MAX + 1]));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
