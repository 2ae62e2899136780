//! Extended attributes: in the inode, in a block of their own, and large values in inodes of theirs.

use super::inode::Inode;
use super::{Ext, content};
use crate::Error;
use crate::bytes::{le16, le32, slice, u8};
use crate::filesystem::Xattr;

const MAGIC: u32 = 0xea02_0000;
/// What an entry has before its name.
const ENTRY: usize = 16;
/// What a block has before its entries.
const BLOCK_HEADER: usize = 32;
/// The largest value that Linux knows.
const VALUE_MAX: usize = 64 << 10;
/// Bytes of all extended attributes of a file, as Linux limits each.
const XATTRS_MAX: usize = 1 << 20;
/// The names of ACLs, which the disk writes in a shorter way.
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
/// Where a file in its inode has what does not fit into it; no attribute of anybody's.
const DATA: &[u8] = b"system.data";

/// All but what the filesystem keeps there for itself.
pub(super) fn all(ext: &Ext, inode: &Inode) -> Result<Vec<Xattr>, Error> {
    let mut found = gather(ext, inode)?;
    found.retain(|(name, _)| name != DATA);
    for (name, value) in &mut found {
        if name == ACCESS || name == DEFAULT {
            *value = acl(value)?;
        }
    }
    Ok(found)
}

/// The rest of a file that is in its inode.
pub(super) fn inline_data(ext: &Ext, inode: &Inode) -> Result<Vec<u8>, Error> {
    let found = gather(ext, inode)?;
    let data = found.into_iter().find(|(name, _)| name == DATA);
    Ok(data.map(|(_, value)| value).unwrap_or_default())
}

#[derive(Default)]
struct Found {
    all: Vec<Xattr>,
    bytes: usize,
}

fn gather(ext: &Ext, inode: &Inode) -> Result<Vec<Xattr>, Error> {
    let mut found = Found::default();
    let room = inode.xattr_room()?;
    if room.len() > 4 && le32(room, 0)? == MAGIC {
        let entries = &room[4..];
        add(ext, entries, entries, &mut found)?;
    }
    if inode.xattr_block != 0 {
        let block = ext.blocks.block(inode.xattr_block)?;
        if le32(&block, 0)? != MAGIC {
            return Err(Error::Corrupt("a block of extended attributes"));
        }
        add(ext, &block[BLOCK_HEADER..], &block, &mut found)?;
    }
    Ok(found.all)
}

/// Adds the entries of a list. Their values are counted from the beginning of `values`.
fn add(ext: &Ext, entries: &[u8], values: &[u8], found: &mut Found) -> Result<(), Error> {
    let mut at = 0;
    while at + 4 <= entries.len() && le32(entries, at)? != 0 {
        let length = usize::from(u8(entries, at)?);
        let suffix = slice(entries, at + ENTRY, length)?;
        let offset = usize::from(le16(entries, at + 2)?);
        let (owner, size) = (le32(entries, at + 4)?, le32(entries, at + 8)? as usize);
        if size > VALUE_MAX {
            return Err(Error::Corrupt("an extended attribute is too long"));
        }
        found.bytes += ENTRY + length + size;
        if found.bytes > XATTRS_MAX {
            return Err(Error::Corrupt("a file has too many extended attributes"));
        }
        let value = match owner {
            0 => slice(values, offset, size)?.to_vec(),
            owner => content::read(ext, &ext.inode(owner.into())?, 0, size)?,
        };
        if let Some(prefix) = prefix(u8(entries, at + 1)?) {
            found.all.push(([prefix, suffix].concat(), value));
        }
        at += (ENTRY + length).next_multiple_of(4);
    }
    Ok(())
}

/// The number before a name; None for what Linux does not show.
fn prefix(index: u8) -> Option<&'static [u8]> {
    Some(match index {
        0 => b"",
        1 => b"user.",
        2 => ACCESS,
        3 => DEFAULT,
        4 => b"trusted.",
        6 => b"security.",
        7 => b"system.",
        8 => b"system.richacl",
        _ => return None,
    })
}

/// From the way the disk has it to the way the kernel gives it.
fn acl(disk: &[u8]) -> Result<Vec<u8>, Error> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    if le32(disk, 0)? != 1 {
        return Err(Error::Unsupported("an ACL of another version"));
    }
    let mut value = 2u32.to_le_bytes().to_vec();
    let mut at = 4;
    while at < disk.len() {
        let (tag, permissions) = (le16(disk, at)?, le16(disk, at + 2)?);
        at += 4;
        let id = match tag {
            USER | GROUP => {
                at += 4;
                le32(disk, at - 4)?
            }
            _ => u32::MAX,
        };
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Ok(value)
}
