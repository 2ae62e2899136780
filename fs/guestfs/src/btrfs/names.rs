//! Names: of directories, in the order in which they were made and by their hashes, and of extended attributes.

use super::tree::{Key, Root, Space};
use super::{Btrfs, FIRST, ROOT_ITEM, all};
use crate::Error;
use crate::bytes::{le16, le64, slice, u8};
use crate::filesystem::{Attributes, DirEntry, FileKind, Listing, Time, Xattr, is_name};
use std::ops::ControlFlow;

pub(super) const XATTR_ITEM: u8 = 24;
pub(super) const DIR_INDEX: u8 = 96;
const DIR_ITEM: u8 = 84;
const ROOT_REF: u8 = 156;
/// What an entry has before its name.
pub(super) const HEADER: usize = 30;
/// Names of one listing: with all targets of links as long as they can be, a message of some megabytes.
const NAMES: usize = 500;
/// Bytes of all extended attributes of a file, as Linux limits each.
const XATTRS_MAX: usize = 1 << 20;

pub(super) fn list(
    btrfs: &Btrfs,
    (index, root, directory): (usize, Root, u64),
    cookie: u64,
) -> Result<Listing, Error> {
    let (mut entries, mut next) = (Vec::new(), None);
    let (mut from, to) = all(directory, DIR_INDEX);
    from.offset = cookie;
    let mut foreign = Vec::new();
    btrfs.space.each(root, (from, to), &mut |key, item| {
        if entries.len() >= NAMES {
            next = Some(key.offset);
            return Ok(ControlFlow::Break(()));
        }
        let length = usize::from(le16(item, 27)?);
        let (its, name) = (Key::parse(item, 0)?, slice(item, HEADER, length)?);
        if !is_name(name) {
            return Ok(ControlFlow::Continue(()));
        }
        if its.kind == ROOT_ITEM {
            foreign.push((entries.len(), its.object));
        }
        entries.push(DirEntry {
            name: name.to_vec(),
            node: btrfs.node(index, its.object),
            kind: FileKind::of_entry(u8(item, 29)?),
        });
        Ok(ControlFlow::Continue(()))
    })?;
    for (at, subvolume) in foreign {
        let entry = &mut entries[at];
        entry.node = btrfs.subvolume((index, directory), &entry.name, subvolume)?;
    }
    Ok(Listing { entries, next })
}

/// The node of a name; those of one hash are in one item.
pub(super) fn find(
    btrfs: &Btrfs,
    (index, root, directory): (usize, Root, u64),
    name: &[u8],
) -> Result<u64, Error> {
    if !is_name(name) {
        return Err(Error::NotFound);
    }
    let key = Key {
        object: directory,
        kind: DIR_ITEM,
        // The kernel begins with !1, and does not turn the bits at the end.
        offset: (!crc32c::crc32c_append(1, name)).into(),
    };
    let item = btrfs.space.get(root, key)?.unwrap_or_default();
    let mut rest = &item[..];
    while !rest.is_empty() {
        let (value, length) = (usize::from(le16(rest, 25)?), usize::from(le16(rest, 27)?));
        if slice(rest, HEADER, length)? == name {
            let its = Key::parse(rest, 0)?;
            return match its.kind {
                ROOT_ITEM => btrfs.subvolume((index, directory), name, its.object),
                _ => Ok(btrfs.node(index, its.object)),
            };
        }
        rest = rest.get(HEADER + length + value..).unwrap_or_default();
    }
    Err(Error::NotFound)
}

impl Btrfs {
    /// The root directory of a subvolume that is named in a directory. In a snapshot such a name stands for
    /// nothing: the subvolume is named where it was made, and there alone.
    fn subvolume(
        &self,
        (index, directory): (usize, u64),
        name: &[u8],
        subvolume: u64,
    ) -> Result<u64, Error> {
        let parent = self.subvolumes.get(index).map_or(0, |(number, _)| *number);
        let key = Key {
            object: parent,
            kind: ROOT_REF,
            offset: subvolume,
        };
        let reference = self.space.get(self.roots, key)?;
        let is_here = |it: &Vec<u8>| {
            le64(it, 0).is_ok_and(|its| its == directory) && it.get(18..) == Some(name)
        };
        let found = self.subvolumes.binary_search_by_key(&subvolume, |it| it.0);
        match (reference.filter(is_here), found) {
            (Some(_), Ok(at)) => Ok(self.node(at, FIRST)),
            (None, _) | (_, Err(_)) => Ok(self.absent(index, subvolume)),
        }
    }
}

/// The empty directory that the kernel shows where a subvolume is not.
pub(super) fn absent() -> Attributes {
    Attributes {
        kind: FileKind::Directory,
        permissions: 0o755,
        links: 1,
        owner: (0, 0),
        size: 0,
        blocks: 0,
        device: (0, 0),
        accessed: Time::EPOCH,
        modified: Time::EPOCH,
        changed: Time::EPOCH,
    }
}

/// Extended attributes; several may be in one item.
pub(super) fn xattrs(space: &Space, root: Root, inode: u64) -> Result<Vec<Xattr>, Error> {
    let (mut found, mut total) = (Vec::new(), 0);
    space.each(root, all(inode, XATTR_ITEM), &mut |_, item| {
        let mut rest = item;
        while !rest.is_empty() {
            let (value, name) = (usize::from(le16(rest, 25)?), usize::from(le16(rest, 27)?));
            let end = HEADER + name + value;
            found.push((
                slice(rest, HEADER, name)?.to_vec(),
                slice(rest, HEADER + name, value)?.to_vec(),
            ));
            rest = rest.get(end..).unwrap_or_default();
            total += end;
            if total > XATTRS_MAX {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}
