//! The bytes of files: in clusters of the disk, in the tree itself, or compressed.
//! Invariant: stretches are of whole sectors and do not overlap, so that no read unpacks more of them than it has sectors.

use super::compress::{self, Method};
use super::tree::{Key, Root, Space};
use crate::bytes::{le64, u8};
use crate::filesystem::{Extent, Place};
use crate::{Error, stretches};
use std::ops::ControlFlow;

pub(super) const EXTENT_DATA: u8 = 108;
pub(super) const INLINE: u8 = 0;
const PREALLOCATED: u8 = 2;
/// The smallest sector.
const SECTOR: u64 = 4096;
/// The longest extent that the kernel makes, and some more.
const EXTENT_MAX: u64 = 256 << 20;
/// Where an extent is looked for first that reaches behind an offset.
const NEAR: u64 = 64 << 10;
/// The most that is compressed together, and some more.
const COMPRESSED_MAX: u64 = 1 << 20;

/// A stretch of a file as its item describes it.
enum Stretch {
    /// These bytes, as they are in the tree.
    Inline(Method, u64, Vec<u8>),
    Hole,
    /// As it is, from this address on.
    Plain(u64),
    /// These bytes of the disk, and from where on in what they are decompressed to.
    Packed {
        method: Method,
        address: u64,
        packed: u64,
        unpacked: u64,
        skip: u64,
    },
}

/// Offset and length of an item's stretch, and what it is.
fn parse(key: Key, item: &[u8]) -> Result<(u64, u64, Stretch), Error> {
    let (unpacked, method, kind) = (le64(item, 8)?, u8(item, 16)?, u8(item, 20)?);
    let method = Method::of(method)?;
    if u8(item, 17)? != 0 {
        return Err(Error::Unsupported("the file is encrypted"));
    }
    if kind == INLINE {
        let end = key.offset.checked_add(unpacked);
        if unpacked > COMPRESSED_MAX || end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(Error::Corrupt("an extent of a file"));
        }
        let bytes = item.get(21..).unwrap_or_default().to_vec();
        let inline = Stretch::Inline(method, unpacked, bytes);
        return Ok((key.offset, unpacked, inline));
    }
    let (address, packed) = (le64(item, 21)?, le64(item, 29)?);
    let (skip, length) = (le64(item, 37)?, le64(item, 45)?);
    let end = key.offset.checked_add(length);
    let is_whole = key.offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
    if length == 0 || !is_whole || end.is_none_or(|end| end > i64::MAX as u64) {
        return Err(Error::Corrupt("an extent of a file"));
    }
    let stretch = match (address, kind, method) {
        (0, ..) | (_, PREALLOCATED, _) => Stretch::Hole,
        (_, _, Method::None) => {
            let start = address.checked_add(skip);
            Stretch::Plain(start.ok_or(Error::Corrupt("an extent of a file"))?)
        }
        (_, _, method) => Stretch::Packed {
            method,
            address,
            packed,
            unpacked,
            skip,
        },
    };
    Ok((key.offset, length, stretch))
}

/// Shows the stretches of a file from `offset` on.
fn each(
    space: &Space,
    root: Root,
    (inode, offset): (u64, u64),
    visit: &mut dyn FnMut(u64, u64, Stretch) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let key = |offset| Key {
        object: inode,
        kind: EXTENT_DATA,
        offset,
    };
    // The one before `offset` may reach behind it. It is mostly near: of one in many pieces not all are gone through.
    let mut back = NEAR;
    let mut is_found = false;
    while !is_found && back < EXTENT_MAX {
        let before = (key(offset.saturating_sub(back)), key(offset));
        space.each(root, before, &mut |_, _| {
            is_found = true;
            Ok(ControlFlow::Break(()))
        })?;
        back = if is_found { back } else { back * 16 };
    }
    let range = (key(offset.saturating_sub(back)), key(u64::MAX));
    let mut reached = 0;
    space.each(root, range, &mut |key, item| {
        let (start, length, stretch) = parse(key, item)?;
        if start < reached {
            return Err(Error::Corrupt("the extents of a file overlap"));
        }
        reached = start.saturating_add(length);
        match reached > offset {
            true => visit(start, length, stretch),
            false => Ok(ControlFlow::Continue(())),
        }
    })
}

pub(super) fn extents(
    space: &Space,
    root: Root,
    (inode, size): (u64, u64),
    offset: u64,
    limit: usize,
) -> Result<Vec<Extent>, Error> {
    let mut found: Vec<Extent> = Vec::new();
    each(
        space,
        root,
        (inode, offset),
        &mut |start, length, stretch| {
            if start >= size {
                return Ok(ControlFlow::Break(()));
            }
            let before = found.len();
            match stretch {
                Stretch::Hole => {}
                Stretch::Plain(address) => {
                    stretches::add(&mut found, start, length, space.place(address, length)?);
                }
                Stretch::Inline(..) | Stretch::Packed { .. } => found.push(Extent {
                    offset: start,
                    length,
                    place: Place::Reader,
                }),
            }
            if found.len() > limit {
                found.truncate(before);
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        },
    )?;
    Ok(found)
}

pub(super) fn read(
    space: &Space,
    root: Root,
    (inode, size): (u64, u64),
    offset: u64,
    length: usize,
) -> Result<Vec<u8>, Error> {
    let rest = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length.min(rest)];
    let end = offset.saturating_add(bytes.len() as u64);
    each(
        space,
        root,
        (inode, offset),
        &mut |start, length, stretch| {
            let (from, to) = (start.max(offset), start.saturating_add(length).min(end));
            if start >= end {
                return Ok(ControlFlow::Break(()));
            }
            if from >= to {
                return Ok(ControlFlow::Continue(()));
            }
            let within = from - start;
            let into = &mut bytes[(from - offset) as usize..(to - offset) as usize];
            match stretch {
                Stretch::Hole => {}
                Stretch::Plain(address) => {
                    into.copy_from_slice(&space.bytes(address + within, into.len())?);
                }
                Stretch::Inline(method, unpacked, packed) => {
                    copy(&expanded(method, &packed, unpacked)?, within, into);
                }
                Stretch::Packed {
                    method,
                    address,
                    packed,
                    unpacked,
                    skip,
                } => {
                    if packed > COMPRESSED_MAX {
                        return Err(Error::Corrupt("a compressed extent"));
                    }
                    let packed = space.bytes(address, packed as usize)?;
                    let whole = expanded(method, &packed, unpacked)?;
                    copy(&whole, skip.saturating_add(within), into);
                }
            }
            Ok(ControlFlow::Continue(()))
        },
    )?;
    Ok(bytes)
}

/// Copies what there is from an offset on.
fn copy(whole: &[u8], from: u64, into: &mut [u8]) {
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    for (to, from) in into.iter_mut().zip(whole.get(from..).unwrap_or_default()) {
        *to = *from;
    }
}

fn expanded(method: Method, packed: &[u8], unpacked: u64) -> Result<Vec<u8>, Error> {
    match unpacked {
        ..=COMPRESSED_MAX => compress::expand(method, packed, unpacked as usize),
        _ => Err(Error::Corrupt("a compressed extent")),
    }
}

/// The bytes of a link's target, which are in the tree.
pub(super) fn inline(space: &Space, root: Root, inode: u64, size: u64) -> Result<Vec<u8>, Error> {
    /// Longest target of a link, as in the kernel.
    const TARGET_MAX: u64 = 4096;
    match size {
        ..=TARGET_MAX => read(space, root, (inode, size), 0, size as usize),
        _ => Err(Error::Corrupt("the target of a link is too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::{EXTENT_DATA, SECTOR, extents, read};
    use crate::btrfs::tree::tests::{key, tree};

    const FILE: u64 = 257;

    /// An extent that is a hole.
    fn hole(length: u64) -> Vec<u8> {
        let mut item = vec![0; 53];
        item[20] = 1;
        item[45..].copy_from_slice(&length.to_le_bytes());
        item
    }

    #[test]
    fn stretches_are_of_whole_sectors_and_do_not_overlap() {
        let file = |stretches: &[(u64, u64)]| {
            let items = stretches.iter();
            let items = items.map(|(at, length)| (key(FILE, EXTENT_DATA, *at), hole(*length)));
            let (space, root) = tree(&items.collect::<Vec<_>>());
            let of = (FILE, 8 * SECTOR);
            let bytes = read(&space, root, of, 4 * SECTOR, 1);
            (extents(&space, root, of, 0, 9).is_ok(), bytes.is_ok())
        };
        const S: u64 = SECTOR;
        assert_eq!(file(&[(0, S), (S, 2 * S), (4 * S, S)]), (true, true));
        for bad in [
            &[(0, S), (S - 1, S)][..],
            &[(512, S)],
            &[(0, S + 1)],
            &[(0, 2 * S), (S, S)],
        ] {
            assert_eq!(file(bad), (false, false), "{bad:?}");
        }
    }
}
