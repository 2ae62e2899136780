//! The journal (jbd2) of a filesystem that was in use: which blocks it holds newer than the disk.
//! Nothing is written: what would be replayed is read from its place in the journal instead.
//! As in the kernel, what is not part of a whole transaction does not count.

use super::content;
use super::inode::Inode;
use super::{Blocks, Ext};
use crate::Error;
use crate::bytes::{be16, be32, le16, le32, slice};
use crate::filesystem::{Journal, Place};
use std::collections::{BTreeMap, HashMap};

/// What every block of the journal's own begins with.
pub(super) const MAGIC: u32 = 0xc03b_3998;
const HEADER: usize = 12;
/// Kinds of blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;
/// Features.
const BIT64: u32 = 0x2;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
/// Those that are known here: besides the above revoked blocks, and commits that do not wait.
const KNOWN: u32 = 0x1 | BIT64 | 0x4 | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
/// Flags of a tag.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;
/// Blocks of a fast commit area where the journal does not say.
const FAST_BLOCKS: u64 = 256;
/// The kernel leaves a journal no fewer blocks for whole transactions.
const WHOLE_BLOCKS_MIN: u64 = 1024;
/// Blocks that are kept track of: a journal of 1 GiB with small blocks has no more.
const BLOCKS_MAX: usize = 1 << 20;
/// Pieces that a journal may lie in.
const EXTENTS_MAX: usize = 1 << 16;

/// A block that is read elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Saved {
    /// Where it is.
    pub(super) block: u64,
    /// Its first bytes were taken away, so that nobody takes it for one of the journal's own.
    pub(super) escaped: bool,
}

/// The blocks that are read elsewhere.
#[derive(Default)]
pub(super) struct Overlay(BTreeMap<u64, Saved>);

impl Overlay {
    pub(super) fn get(&self, block: u64) -> Option<Saved> {
        self.0.get(&block).copied()
    }

    /// Whether one of these blocks is.
    pub(super) fn any_in(&self, first: u64, blocks: u64) -> bool {
        let end = first.saturating_add(blocks);
        self.0.range(first..end).next().is_some()
    }
}

/// What came of a journal.
pub(super) struct Replay {
    pub(super) overlay: Overlay,
    pub(super) journal: Journal,
}

/// The journal's file, and what its superblock says.
struct Log<'a> {
    blocks: &'a Blocks,
    /// First block in the file, first on the disk, how many.
    runs: Vec<(u64, u64, u64)>,
    first: u64,
    end: u64,
    features: u32,
    seed: u32,
    uuid: Vec<u8>,
}

/// A block that a transaction holds.
struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
}

pub(super) fn replay(ext: &Ext, inode: u64) -> Result<Replay, Error> {
    let inode = ext.inode(inode)?;
    let runs = runs(ext, &inode)?;
    let mut log = Log {
        blocks: &ext.blocks,
        runs,
        first: 0,
        end: 1,
        features: 0,
        seed: 0,
        uuid: ext.superblock.uuid.to_vec(),
    };
    let head = log.block(0)?;
    let kind = be32(&head, 4)?;
    if be32(&head, 0)? != MAGIC || !matches!(kind, 3 | 4) {
        return Err(Error::Corrupt("the journal has no superblock"));
    }
    if be32(&head, 12)? != ext.blocks.size {
        return Err(Error::Corrupt("the journal has blocks of another size"));
    }
    let start = u64::from(be32(&head, 28)?);
    if kind == 4 {
        log.features = be32(&head, 40)?;
        log.uuid = slice(&head, 48, 16)?.to_vec();
    }
    if log.features & !KNOWN != 0 {
        return Err(Error::Unsupported("a feature of the journal"));
    }
    log.seed = checksum(u32::MAX, &log.uuid);
    log.first = be32(&head, 20)?.into();
    log.end = be32(&head, 16)?.into();
    let has_fast = log.features & FAST_COMMIT != 0;
    let fast = match (has_fast, u64::from(be32(&head, 0x54)?)) {
        (false, _) => 0,
        (true, 0) => FAST_BLOCKS,
        (true, blocks) => blocks,
    };
    let length = log.end;
    log.end = match length.saturating_sub(fast) {
        rest @ WHOLE_BLOCKS_MIN.. => rest,
        _ => length,
    };
    if start == 0 {
        // Nor does the kernel look for fast commits then.
        return Ok(Replay {
            overlay: Overlay::default(),
            journal: Journal::Replayed,
        });
    }
    if !(log.first..log.end).contains(&start) || log.first == 0 {
        return Err(Error::Corrupt("the journal begins nowhere"));
    }
    let sequence = be32(&head, 24)?;
    let (revoked, last) = log.scan(start, sequence)?;
    let overlay = log.saved(start, sequence, last, &revoked)?;
    // One block lies between: the kernel takes the first behind the end for the last before it.
    let fast_start = log.end + 1;
    let has_fast = has_fast && fast_start < length && log.has_fast_commits(fast_start, last)?;
    let journal = match has_fast {
        true => Journal::Partly,
        false => Journal::Replayed,
    };
    Ok(Replay { overlay, journal })
}

/// Where the journal's blocks are.
fn runs(ext: &Ext, inode: &Inode) -> Result<Vec<(u64, u64, u64)>, Error> {
    let size = u64::from(ext.blocks.size);
    let extents = content::extents(ext, inode, 0, EXTENTS_MAX)?;
    let run = |extent: &crate::Extent| match extent.place {
        Place::At(at) => Ok((extent.offset / size, at / size, extent.length / size)),
        Place::Reader => Err(Error::Corrupt("the journal is no plain file")),
    };
    extents.iter().map(run).collect()
}

impl Log<'_> {
    /// The block of the disk that holds block `number` of the journal.
    fn place(&self, number: u64) -> Result<u64, Error> {
        let after = self.runs.partition_point(|(first, ..)| *first <= number);
        let run = after.checked_sub(1).and_then(|index| self.runs.get(index));
        match run {
            Some((first, at, blocks)) if number - first < *blocks => Ok(at + (number - first)),
            Some(_) | None => Err(Error::Corrupt("the journal has holes")),
        }
    }

    fn block(&self, number: u64) -> Result<Vec<u8>, Error> {
        self.blocks.block(self.place(number)?)
    }

    /// The block after `number`: at its end the journal goes on at its beginning.
    fn after(&self, number: u64, blocks: u64) -> u64 {
        let length = self.end - self.first;
        self.first + (number - self.first + blocks) % length
    }

    /// Fast commits begin with a tag that says so, and of which transaction they are; those of one that is whole by
    /// now are left where they were.
    fn has_fast_commits(&self, start: u64, sequence: u32) -> Result<bool, Error> {
        const HEAD: u16 = 0x9;
        let block = self.block(start)?;
        Ok(le16(&block, 0)? == HEAD && le32(&block, 8)? == sequence)
    }

    fn has_checksums(&self) -> bool {
        self.features & (CSUM_V2 | CSUM_V3) != 0
    }

    /// Finds the whole transactions: what they revoke, and the number after the last of them.
    fn scan(&self, start: u64, first: u32) -> Result<(HashMap<u64, u32>, u32), Error> {
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        let mut pending: Vec<u64> = Vec::new();
        let (mut at, mut sequence, mut seen) = (start, first, 0);
        while seen < self.end - self.first {
            let block = self.block(at)?;
            if be32(&block, 0)? != MAGIC || be32(&block, 8)? != sequence {
                break;
            }
            let mut passed = 1;
            match be32(&block, 4)? {
                DESCRIPTOR => {
                    if !self.tail_is_right(&block)? {
                        break;
                    }
                    passed += self.tags(&block)?.len() as u64;
                }
                COMMIT => {
                    if !self.commit_is_right(&block)? {
                        break;
                    }
                    for block in pending.drain(..) {
                        revoked.insert(block, sequence);
                    }
                    sequence = sequence.wrapping_add(1);
                }
                REVOKE => {
                    if !self.tail_is_right(&block)? {
                        break;
                    }
                    pending.extend(self.revoked(&block)?);
                }
                _ => break,
            }
            if pending.len() + revoked.len() > BLOCKS_MAX {
                return Err(Error::Corrupt("the journal revokes too much"));
            }
            at = self.after(at, passed);
            seen += passed;
        }
        Ok((revoked, sequence))
    }

    /// The newest copy of each block, of the transactions before `end`.
    fn saved(
        &self,
        start: u64,
        first: u32,
        end: u32,
        revoked: &HashMap<u64, u32>,
    ) -> Result<Overlay, Error> {
        let mut saved = BTreeMap::new();
        let (mut at, mut sequence) = (start, first);
        while sequence != end {
            let block = self.block(at)?;
            let mut passed = 1;
            match be32(&block, 4)? {
                DESCRIPTOR => {
                    for tag in self.tags(&block)? {
                        let place = self.place(self.after(at, passed))?;
                        passed += 1;
                        // Revoked by itself or by a later one; the numbers wrap.
                        let is_revoked = revoked
                            .get(&tag.block)
                            .is_some_and(|by| by.wrapping_sub(sequence).cast_signed() >= 0);
                        if is_revoked {
                            continue;
                        }
                        self.data_is_right(place, sequence, &tag)?;
                        let escaped = tag.flags & ESCAPED != 0;
                        saved.insert(
                            tag.block,
                            Saved {
                                block: place,
                                escaped,
                            },
                        );
                    }
                }
                COMMIT => sequence = sequence.wrapping_add(1),
                _ => {}
            }
            if saved.len() > BLOCKS_MAX {
                return Err(Error::Unsupported("the journal holds too much"));
            }
            at = self.after(at, passed);
        }
        Ok(Overlay(saved))
    }

    /// Bytes of a block that tags or revoked numbers may take.
    fn usable(&self, block: &[u8]) -> usize {
        match self.has_checksums() {
            true => block.len() - 4,
            false => block.len(),
        }
    }

    fn tags(&self, block: &[u8]) -> Result<Vec<Tag>, Error> {
        let wide = self.features & BIT64 != 0;
        let end = self.usable(block);
        let length = if self.features & CSUM_V3 != 0 {
            16
        } else {
            8 + if wide { 4 } else { 0 } + if self.features & CSUM_V2 != 0 { 2 } else { 0 }
        };
        let mut tags = Vec::new();
        let mut at = HEADER;
        while at + length <= end {
            let low = be32(block, at)?;
            let (flags, high, checksum) = if self.features & CSUM_V3 != 0 {
                (
                    be32(block, at + 4)?,
                    be32(block, at + 8)?,
                    be32(block, at + 12)?,
                )
            } else {
                let high = if wide { be32(block, at + 8)? } else { 0 };
                let checksum = be16(block, at + 4)?.into();
                (be16(block, at + 6)?.into(), high, checksum)
            };
            let high = if wide { high } else { 0 };
            tags.push(Tag {
                block: u64::from(high) << 32 | u64::from(low),
                flags,
                checksum,
            });
            at += length;
            if flags & SAME_UUID == 0 {
                at += 16;
            }
            if flags & LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    fn revoked(&self, block: &[u8]) -> Result<Vec<u64>, Error> {
        let wide = self.features & BIT64 != 0;
        let length = if wide { 8 } else { 4 };
        let used = (be32(block, HEADER)? as usize).min(self.usable(block));
        let numbers = slice(block, HEADER + 4, used.saturating_sub(HEADER + 4))?;
        let number = |bytes: &[u8]| match wide {
            true => crate::bytes::be64(bytes, 0),
            false => be32(bytes, 0).map(u64::from),
        };
        numbers.chunks_exact(length).map(number).collect()
    }

    /// Whether the checksum at the end of a block is right, where there is one.
    fn tail_is_right(&self, block: &[u8]) -> Result<bool, Error> {
        if !self.has_checksums() {
            return Ok(true);
        }
        let at = block.len() - 4;
        let sum = checksum(checksum(self.seed, &block[..at]), &[0; 4]);
        Ok(sum == be32(block, at)?)
    }

    fn commit_is_right(&self, block: &[u8]) -> Result<bool, Error> {
        if !self.has_checksums() {
            return Ok(true);
        }
        const AT: usize = 16;
        let sum = checksum(self.seed, &block[..AT]);
        let sum = checksum(checksum(sum, &[0; 4]), &block[AT + 4..]);
        Ok(sum == be32(block, AT)?)
    }

    /// A saved block of a whole transaction must be what was saved.
    fn data_is_right(&self, place: u64, sequence: u32, tag: &Tag) -> Result<(), Error> {
        if !self.has_checksums() {
            return Ok(());
        }
        let sum = checksum(self.seed, &sequence.to_be_bytes());
        let sum = checksum(sum, &self.blocks.block(place)?);
        let right = match self.features & CSUM_V3 != 0 {
            true => sum == tag.checksum,
            false => sum & 0xffff == tag.checksum,
        };
        match right {
            true => Ok(()),
            false => Err(Error::Corrupt("a block of the journal")),
        }
    }
}

/// CRC-32C as the kernel computes it: without turning the bits over at the end.
fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}
