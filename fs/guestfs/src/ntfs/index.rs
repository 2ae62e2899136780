//! Directories: a root in the file's record and blocks of an index, read from one end to the other, or from the root
//! down to a name.

use super::record::{self, BITMAP, Body, File, INDEX, INDEX_ROOT, NUMBER};
use super::{Ntfs, stream};
use crate::Error;
use crate::bytes::{le16, le32, le64, slice, u8, utf16};
use crate::filesystem::{DirEntry, Listing, is_name};
use std::cmp::Ordering;

/// The index of names: `$I30`.
const NAMES: &[u8] = b"$\0I\x003\x000\0";
/// Blocks that one listing goes through.
const BLOCKS: u64 = 4;
/// Blocks that are not in use and are passed over in one listing.
const UNUSED_MAX: u64 = 1 << 16;
/// The map of the blocks in use: a million of them.
const MAP_MAX: u64 = 128 << 10;
/// Levels of an index; of blocks of 4 KiB with the longest names six are more than a disk has room for.
const LEVELS: usize = 16;
/// Records below are the filesystem's own.
const FIRST_FILE: u64 = 16;
/// A name for DOS, beside another.
const DOS: u8 = 2;
const LAST: u16 = 2;
const DAMAGE: Error = Error::Corrupt("an entry of a directory");
/// There is a block with the names before it.
const BELOW: u16 = 1;
/// What a block begins with before its node.
const HEADER: usize = 24;

/// Cookies: 0 is the root, n+1 is block n.
pub(super) fn list(ntfs: &Ntfs, file: &File, cookie: u64) -> Result<Listing, Error> {
    let root = file.get(INDEX_ROOT, NAMES);
    let Some(Body::Here(root)) = root.map(|it| &it.body) else {
        return Err(Error::WrongKind);
    };
    let size = u64::from(le32(root, 8)?);
    let mut entries = Vec::new();
    if cookie == 0 {
        add(
            slice(root, 16, root.len().saturating_sub(16))?,
            &mut entries,
        )?;
    }
    let blocks = file.get(INDEX, NAMES);
    let Some(Body::Elsewhere(blocks)) = blocks.map(|it| &it.body) else {
        let next = None;
        return Ok(Listing { entries, next });
    };
    if !size.is_power_of_two() || !(512..=64 << 10).contains(&size) {
        return Err(Error::Corrupt("the size of a directory's blocks"));
    }
    let map = match file.get(BITMAP, NAMES) {
        Some(map) => stream::head(ntfs, map, MAP_MAX)?,
        None => return Err(Error::Corrupt("a directory has no map of its blocks")),
    };
    let in_use = |block: u64| {
        let byte = usize::try_from(block / 8).ok().and_then(|at| map.get(at));
        byte.is_some_and(|byte| byte >> (block % 8) & 1 != 0)
    };
    let count = (blocks.size / size).min(map.len() as u64 * 8);
    let mut block = cookie.saturating_sub(1);
    let (mut seen, mut passed) = (0, 0);
    while block < count && seen < BLOCKS && passed < UNUSED_MAX {
        match in_use(block) {
            true => {
                let at = block * size;
                let bytes = super::runs::read(ntfs, &blocks.runs, at, size as usize)?;
                let bytes = record::whole(bytes, b"INDX")?;
                let node = slice(&bytes, HEADER, bytes.len().saturating_sub(HEADER))?;
                add(node, &mut entries)?;
                seen += 1;
            }
            false => passed += 1,
        }
        block += 1;
    }
    let next = (block < count).then_some(block + 1);
    Ok(Listing { entries, next })
}

/// Adds the names of a node.
fn add(node: &[u8], entries: &mut Vec<DirEntry>) -> Result<(), Error> {
    let (mut at, end) = (le32(node, 0)? as usize, le32(node, 4)? as usize);
    while at < end {
        let (length, flags) = (usize::from(le16(node, at + 8)?), le16(node, at + 12)?);
        if flags & LAST != 0 {
            return Ok(());
        }
        if length < 16 {
            return Err(DAMAGE);
        }
        let entry = slice(node, at, length)?;
        let number = le64(entry, 0)? & NUMBER;
        let (characters, space) = (usize::from(u8(entry, 16 + 64)?), u8(entry, 16 + 65)?);
        let name = utf16(slice(entry, 16 + 66, characters * 2)?);
        if space != DOS && number >= FIRST_FILE && is_name(&name) {
            entries.push(DirEntry {
                name,
                node: number,
                kind: None,
            });
        }
        at += length;
    }
    Ok(())
}

/// What an index knows of a name.
pub(super) enum Found {
    /// The record that it names.
    Record(u64),
    Nothing,
    /// There are names that differ in case alone, and their order is the affair of who wrote them.
    Doubtful,
}

/// A name as it is compared: in capitals, by the disk's own table.
fn folded(name: &[u8], capitals: &[u8]) -> Vec<u16> {
    let of = |unit: u16| le16(capitals, usize::from(unit) * 2).unwrap_or(unit);
    let units = name.chunks_exact(2);
    units
        .map(|it| of(u16::from_le_bytes([it[0], it[1]])))
        .collect()
}

/// Goes down to a name, in UTF-16.
pub(super) fn find(ntfs: &Ntfs, file: &File, name: &[u8], capitals: &[u8]) -> Result<Found, Error> {
    let Some(Body::Here(root)) = file.get(INDEX_ROOT, NAMES).map(|it| &it.body) else {
        return Err(Error::WrongKind);
    };
    let size = u64::from(le32(root, 8)?);
    let wanted = folded(name, capitals);
    let mut node = slice(root, 16, root.len().saturating_sub(16))?.to_vec();
    for _ in 0..LEVELS {
        let mut at = le32(&node, 0)? as usize;
        let below = loop {
            let (length, flags) = (usize::from(le16(&node, at + 8)?), le16(&node, at + 12)?);
            let entry = slice(&node, at, length)?;
            let order = match flags & LAST {
                0 => {
                    let (characters, space) = (usize::from(u8(entry, 80)?), u8(entry, 81)?);
                    let its = slice(entry, 82, characters * 2)?;
                    if its == name {
                        let number = le64(entry, 0)? & NUMBER;
                        let is_shown = space != DOS && number >= FIRST_FILE;
                        return Ok(match is_shown {
                            true => Found::Record(number),
                            false => Found::Nothing,
                        });
                    }
                    folded(its, capitals).cmp(&wanted)
                }
                _ => Ordering::Greater,
            };
            match order {
                Ordering::Equal => return Ok(Found::Doubtful),
                Ordering::Greater if flags & BELOW == 0 => return Ok(Found::Nothing),
                Ordering::Greater => break le64(entry, length.saturating_sub(8))?,
                Ordering::Less if length < 16 => return Err(DAMAGE),
                Ordering::Less => at += length,
            }
        };
        let blocks = file.get(INDEX, NAMES).map(|it| &it.body);
        let Some(Body::Elsewhere(blocks)) = blocks else {
            return Err(DAMAGE);
        };
        if !size.is_power_of_two() || !(512..=64 << 10).contains(&size) {
            return Err(DAMAGE);
        }
        // Blocks that are smaller than a cluster are counted in sectors.
        let unit = if size < ntfs.cluster {
            512
        } else {
            ntfs.cluster
        };
        let at = below.checked_mul(unit).filter(|at| *at < blocks.size);
        let bytes = super::runs::read(ntfs, &blocks.runs, at.ok_or(DAMAGE)?, size as usize)?;
        let bytes = record::whole(bytes, b"INDX")?;
        node = slice(&bytes, HEADER, bytes.len().saturating_sub(HEADER))?.to_vec();
    }
    Err(DAMAGE)
}

/// Bytes that a directory takes.
pub(super) fn size(file: &File) -> (u64, u64) {
    let of = |kind| file.get(kind, NAMES).map(|it| &it.body);
    match (of(INDEX), of(INDEX_ROOT)) {
        (Some(Body::Elsewhere(it)), _) => (it.size, it.allocated),
        (_, Some(Body::Here(root))) => (root.len() as u64, 0),
        _ => (0, 0),
    }
}
