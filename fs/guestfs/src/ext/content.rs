//! Where a file's bytes are: extents, lists of blocks, or the inode itself.
//! Invariant: however nodes and lists lead to each other, what is gone through is bounded by what is found, or by a
//! named limit.

use super::inode::Inode;
use super::{Ext, xattr};
use crate::Error;
use crate::bytes::{le16, le32};
use crate::filesystem::{Extent, Place};

const MAGIC: u16 = 0xf30a;
/// The kernel's own limit for a tree of extents.
const DEPTH_MAX: u16 = 5;
/// An extent of more blocks is one that was never written, and reads as zeros.
const WRITTEN_MAX: u16 = 32768;
/// Block numbers in the inode itself; behind them come one, two and three levels of lists.
const DIRECT: u64 = 12;
/// Extents that one read goes through: a piece of each block is more than it can ask for.
const READ_EXTENTS: usize = 1 << 16;

/// Lists that lead to no block, and are gone through for one question: a list is freed with its last block.
const EMPTY_LISTS_MAX: u32 = 256;

/// A run of blocks of a file.
struct Run {
    logical: u64,
    physical: u64,
    blocks: u64,
}

/// Gathers runs from a block on, as many as are wanted.
struct Runs {
    from: u64,
    limit: usize,
    found: Vec<Run>,
    /// The first block of the file that can still come: what a tree says goes up, in all its nodes.
    next: u64,
    /// Blocks that lists led to, also those before the first that is wanted.
    blocks: u64,
    empty_lists: u32,
}

impl Runs {
    fn new(from: u64, limit: usize) -> Runs {
        Runs {
            from,
            limit,
            found: Vec::new(),
            next: 0,
            blocks: 0,
            empty_lists: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.found.len() >= self.limit
    }

    fn add(&mut self, logical: u64, physical: u64, blocks: u64) {
        if logical + blocks <= self.from {
            return;
        }
        if let Some(last) = self.found.last_mut()
            && last.logical + last.blocks == logical
            && last.physical + last.blocks == physical
        {
            last.blocks += blocks;
        } else {
            self.found.push(Run {
                logical,
                physical,
                blocks,
            });
        }
    }
}

/// The stretches of a file from `offset` on.
pub(super) fn extents(
    ext: &Ext,
    inode: &Inode,
    offset: u64,
    limit: usize,
) -> Result<Vec<Extent>, Error> {
    if !inode.is_file() && !inode.is_directory() && !inode.is_symlink() {
        return Err(Error::WrongKind);
    }
    if offset >= inode.size {
        return Ok(Vec::new());
    }
    if inode.is_inline() {
        return Ok(vec![Extent {
            offset: 0,
            length: inode.size,
            place: Place::Reader,
        }]);
    }
    let size = u64::from(ext.blocks.size);
    let mut runs = Runs::new(offset / size, limit);
    match inode.has_extents() {
        true => tree(ext, inode.root()?, None, &mut runs)?,
        false => lists(ext, inode, &mut runs)?,
    }
    let mut found = Vec::new();
    for run in runs.found {
        if run.logical.saturating_mul(size) >= inode.size {
            break;
        }
        let end = run.physical.checked_add(run.blocks);
        if end.is_none_or(|end| end > ext.blocks.count) {
            return Err(Error::Corrupt("a file has blocks behind the end"));
        }
        let saved = ext.blocks.overlay.any_in(run.physical, run.blocks);
        found.push(Extent {
            offset: run.logical * size,
            length: run.blocks * size,
            place: match saved {
                true => Place::Reader,
                false => Place::At(run.physical * size),
            },
        });
    }
    Ok(found)
}

/// Goes through a node of the tree of extents. `above` is the depth of the one that led here.
fn tree(ext: &Ext, node: &[u8], above: Option<u16>, runs: &mut Runs) -> Result<(), Error> {
    let (magic, entries, depth) = (le16(node, 0)?, le16(node, 2)?, le16(node, 6)?);
    let is_deeper = above.map_or(depth <= DEPTH_MAX, |above| {
        above.checked_sub(1) == Some(depth)
    });
    if magic != MAGIC || !is_deeper {
        return Err(Error::Corrupt("a node of extents"));
    }
    for index in 0..usize::from(entries) {
        if runs.is_full() {
            return Ok(());
        }
        let at = 12 + index * 12;
        let logical = u64::from(le32(node, at)?);
        if logical < runs.next {
            return Err(Error::Corrupt("the extents of a file are out of order"));
        }
        if depth == 0 {
            let length = le16(node, at + 4)?;
            let physical = u64::from(le16(node, at + 6)?) << 32 | u64::from(le32(node, at + 8)?);
            if (1..=WRITTEN_MAX).contains(&length) {
                runs.add(logical, physical, length.into());
            }
            let blocks = length.checked_sub(WRITTEN_MAX).filter(|it| *it > 0);
            runs.next = logical + u64::from(blocks.unwrap_or(length).max(1));
            continue;
        }
        // What the next one begins with is where this one ends.
        let next = match index + 1 < usize::from(entries) {
            true => le32(node, at + 12)?.into(),
            false => u64::MAX,
        };
        if next > runs.from {
            let child = u64::from(le32(node, at + 4)?) | u64::from(le16(node, at + 8)?) << 32;
            tree(ext, &ext.blocks.block(child)?, Some(depth), runs)?;
        }
        runs.next = runs.next.max(logical + 1);
    }
    Ok(())
}

/// Goes through the lists of blocks of ext2 and ext3.
fn lists(ext: &Ext, inode: &Inode, runs: &mut Runs) -> Result<(), Error> {
    let per_list = u64::from(ext.blocks.size / 4);
    let end = inode.size.div_ceil(ext.blocks.size.into());
    let root = inode.root()?;
    let mut logical = 0;
    for index in 0..15 {
        let number = le32(root, index * 4)?;
        let level = (index as u64).saturating_sub(DIRECT - 1) as u32;
        let span = per_list.saturating_pow(level);
        if number != 0 && logical < end && logical.saturating_add(span) > runs.from {
            list(ext, number.into(), level, logical, end, runs)?;
        }
        logical = logical.saturating_add(span);
        if runs.is_full() {
            break;
        }
    }
    Ok(())
}

/// What block `number` leads to: itself at level 0, else a list of blocks.
fn list(
    ext: &Ext,
    number: u64,
    level: u32,
    logical: u64,
    end: u64,
    runs: &mut Runs,
) -> Result<(), Error> {
    let Some(below) = level.checked_sub(1) else {
        runs.blocks += 1;
        runs.add(logical, number, 1);
        return Ok(());
    };
    let before = runs.blocks;
    let block = ext.blocks.block(number)?;
    let span = u64::from(ext.blocks.size / 4).saturating_pow(below);
    for (index, entry) in block.chunks_exact(4).enumerate() {
        let at = logical.saturating_add(span.saturating_mul(index as u64));
        if at >= end || runs.is_full() {
            break;
        }
        let number = le32(entry, 0)?;
        if number != 0 && at.saturating_add(span) > runs.from {
            list(ext, number.into(), below, at, end, runs)?;
        }
    }
    runs.empty_lists += u32::from(runs.blocks == before);
    match runs.empty_lists {
        ..=EMPTY_LISTS_MAX => Ok(()),
        _ => Err(Error::Corrupt("lists of blocks that lead to none")),
    }
}

/// Bytes of a file, directory or link; fewer only at its end.
pub(super) fn read(ext: &Ext, inode: &Inode, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
    let rest = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX);
    let length = length.min(rest);
    if inode.is_inline() {
        let whole = inline(ext, inode)?;
        let start = offset.min(whole.len() as u64) as usize;
        return Ok(whole[start..(start + length).min(whole.len())].to_vec());
    }
    let mut bytes = vec![0; length];
    let end = offset + length as u64;
    let size = u64::from(ext.blocks.size);
    for extent in extents_with_blocks(ext, inode, offset, end)? {
        let (logical, physical, blocks) = extent;
        for index in 0..blocks {
            let at = (logical + index) * size;
            let (from, to) = (at.max(offset), (at + size).min(end));
            if from >= to {
                continue;
            }
            let (within, length) = ((from - at) as usize, (to - from) as usize);
            let part = ext.blocks.part(physical + index, within, length)?;
            let start = (from - offset) as usize;
            bytes[start..start + length].copy_from_slice(&part);
        }
    }
    Ok(bytes)
}

/// The runs that have bytes between `offset` and `end`, cut to these.
fn extents_with_blocks(
    ext: &Ext,
    inode: &Inode,
    offset: u64,
    end: u64,
) -> Result<Vec<(u64, u64, u64)>, Error> {
    let size = u64::from(ext.blocks.size);
    let (first, last) = (offset / size, end.div_ceil(size));
    let limit = usize::try_from(last - first).unwrap_or(READ_EXTENTS);
    let mut runs = Runs::new(first, limit.clamp(1, READ_EXTENTS));
    match inode.has_extents() {
        true => tree(ext, inode.root()?, None, &mut runs)?,
        false => lists(ext, inode, &mut runs)?,
    }
    let cut = |run: Run| {
        let skipped = first.saturating_sub(run.logical).min(run.blocks);
        let logical = run.logical + skipped;
        let blocks = (run.blocks - skipped).min(last.saturating_sub(logical));
        (logical, run.physical + skipped, blocks)
    };
    let cut = runs.found.into_iter().map(cut);
    Ok(cut.filter(|(_, _, blocks)| *blocks > 0).collect())
}

/// All bytes of a file that is in its inode.
pub(super) fn inline(ext: &Ext, inode: &Inode) -> Result<Vec<u8>, Error> {
    let mut bytes = inode.root()?.to_vec();
    if inode.size > bytes.len() as u64 {
        bytes.extend(xattr::inline_data(ext, inode)?);
    }
    bytes.truncate(usize::try_from(inode.size).unwrap_or(usize::MAX));
    Ok(bytes)
}
