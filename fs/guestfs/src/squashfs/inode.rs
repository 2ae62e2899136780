//! Inodes of squashfs: seven kinds, each in a short form and a long one. Pure, but for the bytes that are read.

use super::tables::Stream;
use crate::Error;
use crate::bytes::{le16, le32, le64};
use crate::filesystem::{FileKind, Time};

/// What all of them begin with.
const HEADER: usize = 16;
/// The longest target of a link, as in the kernel.
const TARGET_MAX: u32 = 4096;
/// What stands for no fragment, and for no extended attributes.
const NONE: u32 = u32::MAX;

/// What is known of a node.
pub(super) struct Inode {
    pub(super) kind: FileKind,
    pub(super) permissions: u16,
    /// Indices of owner and group in the table of ids.
    pub(super) owner: (u16, u16),
    pub(super) modified: Time,
    pub(super) links: u32,
    pub(super) size: u64,
    pub(super) body: Body,
    /// Its index in the table of extended attributes.
    pub(super) xattrs: Option<u32>,
}

pub(super) enum Body {
    /// Where its names are: a block, from the beginning of their table on, and a byte of it.
    Directory(u32, usize),
    File(File),
    Link(Vec<u8>),
    Device(u32, u32),
    Other,
}

pub(super) struct File {
    /// Where its first block is.
    pub(super) start: u64,
    /// Bytes of it that are holes; known of the long form alone.
    pub(super) holes: u64,
    /// The fragment with its end, and where in that.
    pub(super) fragment: Option<(u32, u32)>,
    /// Where the sizes of its blocks are.
    pub(super) sizes: (u64, usize),
}

pub(super) fn parse(mut stream: Stream<'_>) -> Result<Inode, Error> {
    let head = stream.take(HEADER)?;
    let number = le16(&head, 0)?;
    let (kind, is_long) = match number {
        1..=7 => (number, false),
        8..=14 => (number - 7, true),
        _ => return Err(Error::Corrupt("an inode is of no kind")),
    };
    let kind = kind_of(kind)?;
    let mut inode = Inode {
        kind,
        permissions: le16(&head, 2)? & 0o7777,
        owner: (le16(&head, 4)?, le16(&head, 6)?),
        modified: Time {
            seconds: le32(&head, 8)?.into(),
            nanoseconds: 0,
        },
        links: 1,
        size: 0,
        body: Body::Other,
        xattrs: None,
    };
    match (kind, is_long) {
        (FileKind::Directory, false) => {
            let its = stream.take(16)?;
            (inode.links, inode.size) = (le32(&its, 4)?, le16(&its, 8)?.into());
            inode.body = Body::Directory(le32(&its, 0)?, le16(&its, 10)?.into());
        }
        (FileKind::Directory, true) => {
            let its = stream.take(24)?;
            (inode.links, inode.size) = (le32(&its, 0)?, le32(&its, 4)?.into());
            inode.body = Body::Directory(le32(&its, 8)?, le16(&its, 18)?.into());
            inode.xattrs = some(le32(&its, 20)?);
        }
        (FileKind::File, false) => {
            let its = stream.take(16)?;
            inode.size = le32(&its, 12)?.into();
            inode.body = Body::File(File {
                start: le32(&its, 0)?.into(),
                holes: 0,
                fragment: some(le32(&its, 4)?).zip(Some(le32(&its, 8)?)),
                sizes: stream.place(),
            });
        }
        (FileKind::File, true) => {
            let its = stream.take(40)?;
            (inode.links, inode.size) = (le32(&its, 24)?, le64(&its, 8)?);
            inode.xattrs = some(le32(&its, 36)?);
            inode.body = Body::File(File {
                start: le64(&its, 0)?,
                holes: le64(&its, 16)?,
                fragment: some(le32(&its, 28)?).zip(Some(le32(&its, 32)?)),
                sizes: stream.place(),
            });
        }
        (FileKind::Symlink, is_long) => {
            let its = stream.take(8)?;
            let length = le32(&its, 4)?;
            if length > TARGET_MAX {
                return Err(Error::Corrupt("the target of a link is too long"));
            }
            (inode.links, inode.size) = (le32(&its, 0)?, length.into());
            inode.body = Body::Link(stream.take(length as usize)?);
            if is_long {
                inode.xattrs = some(le32(&stream.take(4)?, 0)?);
            }
        }
        (FileKind::CharDevice | FileKind::BlockDevice, is_long) => {
            let its = stream.take(8)?;
            inode.links = le32(&its, 0)?;
            let device = le32(&its, 4)?;
            let minor = device & 0xff | device >> 12 & 0xf_ff00;
            inode.body = Body::Device(device >> 8 & 0xfff, minor);
            if is_long {
                inode.xattrs = some(le32(&stream.take(4)?, 0)?);
            }
        }
        (FileKind::Fifo | FileKind::Socket, is_long) => {
            inode.links = le32(&stream.take(4)?, 0)?;
            if is_long {
                inode.xattrs = some(le32(&stream.take(4)?, 0)?);
            }
        }
    }
    if inode.size > i64::MAX as u64 {
        return Err(Error::Corrupt("the size of a file"));
    }
    Ok(inode)
}

/// The kind of the short form of an inode, which directories say, too.
pub(super) fn kind_of(number: u16) -> Result<FileKind, Error> {
    Ok(match number {
        1 => FileKind::Directory,
        2 => FileKind::File,
        3 => FileKind::Symlink,
        4 => FileKind::BlockDevice,
        5 => FileKind::CharDevice,
        6 => FileKind::Fifo,
        7 => FileKind::Socket,
        _ => return Err(Error::Corrupt("an inode is of no kind")),
    })
}

fn some(index: u32) -> Option<u32> {
    (index != NONE).then_some(index)
}
