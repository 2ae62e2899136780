//! Items of Btrfs as its log has them: which keys they have, what is in them, and how they are put together. Pure.

use super::super::INODE_ITEM;
use super::super::content::INLINE;
use super::super::names::{DIR_INDEX, HEADER as ENTRY};
use super::super::tree::Key;
use crate::Error;
use crate::bytes::{le16, le64, slice, u8};

pub(super) const INODE_REF: u8 = 12;
pub(super) const INODE_EXTREF: u8 = 13;
/// Before the name in a reference, and in one of the second kind.
const REF: usize = 10;
const EXTREF: usize = 18;

pub(super) const DAMAGE: Error = Error::Corrupt("its log");

/// One name of an inode: the directory, its place there, and the name.
pub(super) type Reference = (u64, u64, Vec<u8>);

/// An entry of a directory, or an extended attribute: where it leads, its name, and all of it.
pub(super) type Entry = (Key, Vec<u8>, Vec<u8>);

pub(super) fn inode_key(inode: u64) -> Key {
    Key {
        object: inode,
        kind: INODE_ITEM,
        offset: 0,
    }
}

pub(super) fn entry_key(directory: u64, index: u64) -> Key {
    Key {
        object: directory,
        kind: DIR_INDEX,
        offset: index,
    }
}

pub(super) fn write(item: &mut [u8], at: usize, bytes: &[u8]) -> Result<(), Error> {
    let field = item.get_mut(at..at + bytes.len()).ok_or(DAMAGE)?;
    field.copy_from_slice(bytes);
    Ok(())
}

/// Bytes of a file that an extent stands for; one in the tree stands for whole sectors.
pub(super) fn length(item: &[u8], sector: u64) -> Result<u64, Error> {
    match u8(item, 20)? == INLINE {
        true => {
            let bytes = le64(item, 8)?;
            bytes.checked_next_multiple_of(sector).ok_or(DAMAGE)
        }
        false => le64(item, 45),
    }
}

/// Entries of a directory, or extended attributes: where each leads, its name, and all of it.
pub(super) fn entries(item: &[u8]) -> Result<Vec<Entry>, Error> {
    let (mut found, mut rest) = (Vec::new(), item);
    while !rest.is_empty() {
        let (value, name) = (usize::from(le16(rest, 25)?), usize::from(le16(rest, 27)?));
        let whole = slice(rest, 0, ENTRY + name + value)?;
        let name = slice(whole, ENTRY, name)?.to_vec();
        found.push((Key::parse(whole, 0)?, name, whole.to_vec()));
        rest = rest.get(whole.len()..).unwrap_or_default();
    }
    Ok(found)
}

/// The names in an item of references, of either kind.
pub(super) fn references(key: Key, item: &[u8]) -> Result<Vec<Reference>, Error> {
    let (mut found, mut rest) = (Vec::new(), item);
    while !rest.is_empty() {
        let (parent, index, length, head) = match key.kind {
            INODE_REF => (key.offset, le64(rest, 0)?, le16(rest, 8)?, REF),
            _ => (le64(rest, 0)?, le64(rest, 8)?, le16(rest, 16)?, EXTREF),
        };
        let name = slice(rest, head, length.into())?.to_vec();
        rest = rest.get(head + name.len()..).unwrap_or_default();
        found.push((parent, index, name));
    }
    Ok(found)
}

/// The item of these names.
pub(super) fn joined(key: Key, all: &[Reference]) -> Vec<u8> {
    let mut item = Vec::new();
    for (parent, index, name) in all {
        if key.kind != INODE_REF {
            item.extend(parent.to_le_bytes());
        }
        item.extend(index.to_le_bytes());
        // Names are 255 bytes at most.
        item.extend((name.len() as u16).to_le_bytes());
        item.extend(name);
    }
    item
}
