//! Directories, read from one end to the other: what makes large ones fast to search looks like
//! empty entries on the way.

use super::inode::{Inode, ROOT_LENGTH};
use super::{Ext, content, xattr};
use crate::Error;
use crate::bytes::{le16, le32, slice, u8};
use crate::filesystem::{DirEntry, FileKind, Listing, is_name};

/// Bytes of a directory that one listing goes through: its names, with all targets of links as long as
/// they can be, are a message of some megabytes.
const PIECE: usize = 16 << 10;
/// A directory begins with `.` and `..`. By another name, on a damaged disk, they would lead a walk around for ever.
const ITSELF_AND_ABOVE: usize = 2;
/// What an entry has before its name.
const HEADER: usize = 8;
/// A directory larger than this has more names than anybody can list.
const SIZE_MAX: u64 = 4 << 30;

pub(super) fn list(ext: &Ext, inode: &Inode, cookie: u64) -> Result<Listing, Error> {
    check(inode)?;
    if inode.is_inline() {
        return inline(ext, inode);
    }
    let piece = PIECE.max(ext.blocks.size as usize);
    // Always at the beginning of a block; a cookie of nobody's making leads to the end.
    if !cookie.is_multiple_of(ext.blocks.size.into()) {
        return Err(Error::NotFound);
    }
    let bytes = content::read(ext, inode, cookie, piece)?;
    let mut entries = Vec::new();
    for (number, block) in bytes.chunks(ext.blocks.size as usize).enumerate() {
        let is_first = cookie == 0 && number == 0;
        add_block(
            ext,
            block,
            if is_first { ITSELF_AND_ABOVE } else { 0 },
            &mut entries,
        )?;
    }
    let end = cookie.saturating_add(bytes.len() as u64);
    Ok(Listing {
        entries,
        next: (!bytes.is_empty() && end < inode.size).then_some(end),
    })
}

pub(super) fn lookup(ext: &Ext, inode: &Inode, name: &[u8]) -> Result<u64, Error> {
    let mut cookie = Some(0);
    while let Some(at) = cookie {
        let listing = list(ext, inode, at)?;
        if let Some(found) = listing.entries.iter().find(|entry| entry.name == name) {
            return Ok(found.node);
        }
        cookie = listing.next;
    }
    Err(Error::NotFound)
}

fn check(inode: &Inode) -> Result<(), Error> {
    if !inode.is_directory() {
        return Err(Error::WrongKind);
    }
    if inode.is_encrypted() {
        return Err(Error::Unsupported("the names are encrypted"));
    }
    if inode.size > SIZE_MAX {
        return Err(Error::Corrupt("a directory is too large"));
    }
    Ok(())
}

/// A directory in its inode: first the number of the one above, then entries, and the rest of them
/// in an extended attribute.
fn inline(ext: &Ext, inode: &Inode) -> Result<Listing, Error> {
    let mut entries = Vec::new();
    add_block(
        ext,
        slice(inode.root()?, 4, ROOT_LENGTH - 4)?,
        0,
        &mut entries,
    )?;
    if inode.size > ROOT_LENGTH as u64 {
        add_block(ext, &xattr::inline_data(ext, inode)?, 0, &mut entries)?;
    }
    Ok(Listing {
        entries,
        next: None,
    })
}

/// Adds the entries of a block behind the first `passed` ones.
fn add_block(
    ext: &Ext,
    block: &[u8],
    mut passed: usize,
    entries: &mut Vec<DirEntry>,
) -> Result<(), Error> {
    let mut at = 0;
    while at + HEADER <= block.len() {
        let node = le32(block, at)?;
        let length = match le16(block, at + 4)? {
            // Blocks of 64 KiB are one longer than the field can say.
            0 | 0xffff if block.len() > 0xffff => block.len(),
            length => usize::from(length),
        };
        if length < HEADER || !length.is_multiple_of(4) || at + length > block.len() {
            return Err(Error::Corrupt("an entry of a directory"));
        }
        let (name_length, kind) = match ext.superblock.has_file_types {
            true => {
                // The upper bits are others' flags.
                let kind = FileKind::of_entry(u8(block, at + 7)? & 0x7);
                (usize::from(u8(block, at + 6)?), kind)
            }
            false => (usize::from(le16(block, at + 6)?), None),
        };
        if HEADER + name_length > length {
            return Err(Error::Corrupt("a name of a directory"));
        }
        let name = slice(block, at + HEADER, name_length)?;
        if passed > 0 {
            passed -= 1;
        } else if node != 0 && is_name(name) {
            entries.push(DirEntry {
                name: name.to_vec(),
                node: node.into(),
                kind,
            });
        }
        at += length;
    }
    Ok(())
}
