//! An inode: what stat(2) shows of it, and the fields others follow.

use super::superblock::Superblock;
use crate::Error;
use crate::bytes::{le16, le32, slice};
use crate::filesystem::{Attributes, FileKind, Time};

const ENCRYPTED: u32 = 0x800;
const EXTENTS: u32 = 0x8_0000;
const HUGE_FILE: u32 = 0x4_0000;
const INLINE: u32 = 0x1000_0000;
/// Bytes of the field that holds extents, block numbers, or a short target.
pub(super) const ROOT_LENGTH: usize = 60;
const ROOT_OFFSET: usize = 0x28;
/// What every inode has; the rest has a length of its own.
const BASE: usize = 128;

pub(super) struct Inode {
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) xattr_block: u64,
    blocks: u64,
    flags: u32,
    bytes: Vec<u8>,
}

impl Inode {
    pub(super) fn parse(bytes: Vec<u8>, superblock: &Superblock) -> Result<Inode, Error> {
        let mode = u32::from(le16(&bytes, 0)?);
        let flags = le32(&bytes, 0x20)?;
        let is_file = FileKind::of_mode(mode) == Some(FileKind::File);
        let high = match is_file || superblock.has_large_directories {
            true => le32(&bytes, 0x6c)?,
            false => 0,
        };
        let size = u64::from(le32(&bytes, 0x4)?) | u64::from(high) << 32;
        let mut blocks = u64::from(le32(&bytes, 0x1c)?);
        if superblock.has_huge_files {
            blocks |= u64::from(le16(&bytes, 0x74)?) << 32;
            if flags & HUGE_FILE != 0 {
                blocks *= u64::from(superblock.block_size / 512);
            }
        }
        if is_file && flags & INLINE != 0 {
            // As the kernel counts it, so that nobody takes it for a hole.
            blocks += size.div_ceil(512);
        }
        let xattr_block = u64::from(le32(&bytes, 0x68)?) | u64::from(le16(&bytes, 0x76)?) << 32;
        Ok(Inode {
            mode,
            size,
            xattr_block,
            blocks,
            flags,
            bytes,
        })
    }

    pub(super) fn attributes(&self) -> Result<Attributes, Error> {
        let bytes = &self.bytes;
        let kind = FileKind::of_mode(self.mode);
        let links = le16(bytes, 0x1a)?;
        if links == 0 {
            return Err(Error::Corrupt("a name leads to a removed file"));
        }
        let kind = kind.ok_or(Error::Corrupt("an inode is of no kind"))?;
        let whole = |low: usize, high: usize| {
            Ok::<_, Error>(u32::from(le16(bytes, low)?) | u32::from(le16(bytes, high)?) << 16)
        };
        Ok(Attributes {
            kind,
            permissions: (self.mode & 0o7777) as u16,
            links: links.into(),
            owner: (whole(0x2, 0x78)?, whole(0x18, 0x7a)?),
            size: self.size,
            blocks: self.blocks,
            device: match kind {
                FileKind::CharDevice | FileKind::BlockDevice => self.device()?,
                FileKind::File
                | FileKind::Directory
                | FileKind::Symlink
                | FileKind::Fifo
                | FileKind::Socket => (0, 0),
            },
            accessed: self.time(0x8, 0x8c)?,
            changed: self.time(0xc, 0x84)?,
            modified: self.time(0x10, 0x88)?,
        })
    }

    /// The length of the part behind the first 128 bytes that is in use.
    fn extra(&self) -> Result<usize, Error> {
        match self.bytes.len() {
            ..=BASE => Ok(0),
            _ => Ok(usize::from(le16(&self.bytes, BASE)?)),
        }
    }

    fn time(&self, low: usize, high: usize) -> Result<Time, Error> {
        let seconds = i64::from(le32(&self.bytes, low)?.cast_signed());
        if high + 4 > BASE + self.extra()? {
            return Ok(Time {
                seconds,
                nanoseconds: 0,
            });
        }
        let more = le32(&self.bytes, high)?;
        Ok(Time {
            seconds: seconds + (i64::from(more & 3) << 32),
            nanoseconds: more >> 2,
        })
    }

    /// Two ways to write it: the first field is the old one.
    fn device(&self) -> Result<(u32, u32), Error> {
        let old = le32(&self.bytes, ROOT_OFFSET)?;
        if old != 0 {
            return Ok((old >> 8 & 0xff, old & 0xff));
        }
        let new = le32(&self.bytes, ROOT_OFFSET + 4)?;
        Ok((new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00))
    }

    pub(super) fn is_directory(&self) -> bool {
        FileKind::of_mode(self.mode) == Some(FileKind::Directory)
    }

    pub(super) fn is_symlink(&self) -> bool {
        FileKind::of_mode(self.mode) == Some(FileKind::Symlink)
    }

    pub(super) fn is_file(&self) -> bool {
        FileKind::of_mode(self.mode) == Some(FileKind::File)
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.flags & ENCRYPTED != 0
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags & EXTENTS != 0
    }

    pub(super) fn is_inline(&self) -> bool {
        self.flags & INLINE != 0
    }

    /// The field that holds extents, block numbers, or the beginning of what is inline.
    pub(super) fn root(&self) -> Result<&[u8], Error> {
        slice(&self.bytes, ROOT_OFFSET, ROOT_LENGTH)
    }

    /// A target that is in the inode itself.
    pub(super) fn short_target(&self) -> Result<Option<Vec<u8>>, Error> {
        let is_short = !self.has_extents() && !self.is_inline() && self.size < ROOT_LENGTH as u64;
        Ok(match is_short {
            true => Some(self.root()?[..self.size as usize].to_vec()),
            false => None,
        })
    }

    /// The part of the inode that is left for extended attributes.
    pub(super) fn xattr_room(&self) -> Result<&[u8], Error> {
        let extra = self.extra()?;
        if extra == 0 {
            return Ok(&[]);
        }
        let start = BASE + extra;
        let length = self.bytes.len().saturating_sub(start);
        slice(&self.bytes, start, length)
    }
}
