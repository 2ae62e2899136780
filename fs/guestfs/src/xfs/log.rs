//! The log of an XFS (`xfs_log_format.h`), looked through before it is replayed: where it ends, and whether it is whole up to
//! there.
//!
//! XFS writes up to eight records at once, in no order. A copy of a running disk may have one of them and not the one before
//! it, or half of one. The kernel ends the log where the last whole record ends; what is behind that is hidden from the crate,
//! which would take the record with the greatest number for the newest.

use super::intents::{Intents, Unfinished};
use crate::bytes::{be32, be64, le32, slice, u8};
use crate::{Error, ReadAt};
use fs_xfs::superblock::Superblock;
use std::ops::Range;

/// The basic blocks that a log is counted in (`BBSIZE`).
const BLOCK: u64 = 512;
/// What the header of a record begins with (`XLOG_HEADER_MAGIC_NUM`).
const MAGIC: u32 = 0xfeed_babe;
/// The bit of `h_version` of a record whose header may have more blocks than one (`XLOG_VERSION_2`).
const VERSION_2: u32 = 2;
/// The bytes of a record that one block of its header has the cycles of (`XLOG_HEADER_CYCLE_SIZE`).
const CYCLE_SIZE: u32 = 32 << 10;
/// The largest record (`XLOG_MAX_RECORD_BSIZE`).
const RECORD_MAX: u32 = 256 << 10;
/// The blocks of the largest record, with its header.
const RECORD_BLOCKS_MAX: u64 = RECORD_MAX as u64 / BLOCK + (RECORD_MAX / CYCLE_SIZE) as u64;
/// Records that are written at once at the most (`XLOG_MAX_ICLOGS`): as in the kernel so many of the last may be torn.
const TORN_MAX: usize = 8;
/// How far before its end the log may have blocks that were not written (`XLOG_TOTAL_REC_SHIFT`).
const WINDOW: u64 = TORN_MAX as u64 * RECORD_MAX as u64 / BLOCK;
/// The most bytes of a log that are replayed: what it changes is in memory all at once, and a reader has 512 MiB in all. Of
/// 177 MiB one was lost.
const ACTIVE_MAX: u64 = 128 << 20;
/// The flag of an operation that says that the filesystem was unmounted (`XLOG_UNMOUNT_TRANS`).
const UNMOUNTED: u8 = 0x20;

const DAMAGED: Error = Error::Corrupt("the log of the XFS");

/// Where the log is, and what of it counts.
pub(super) struct Log {
    /// Its first byte on the disk.
    start: u64,
    /// Its basic blocks.
    blocks: u64,
    /// Those that count, from the tail on; behind the end of the ring it goes on at the beginning.
    active: Range<u64>,
    /// The block behind the last that counts; as many as there are, where that is the last of the ring.
    head: u64,
    /// The cycle of what is before the head; what is behind it is of the one before.
    cycle: u32,
    /// The changes that it has begun and not ended.
    pub(super) unfinished: Unfinished,
}

impl Log {
    /// Looks for the end of the log, and whether all that counts is whole.
    pub(super) fn find(source: &dyn ReadAt, superblock: &Superblock) -> Result<Log, Error> {
        let ring = Ring::of(source, superblock)?;
        let Some(head) = ring.head()? else {
            return Ok(ring.log(0..0, 0, 0));
        };
        let mut newest = ring.last_before(head)?;
        // Where records are torn, the last whole one says where the tail is.
        for _ in 0..2 {
            if ring.says_unmounted(&newest)? {
                return ring.log_until(newest.position, &newest);
            }
            let tail = ring.tail(&newest)?;
            if ring.distance(tail.block, newest.position.block) > ACTIVE_MAX / BLOCK {
                return Err(Error::Unsupported(
                    "its log is too large to be replayed in memory",
                ));
            }
            match ring.walk(tail, &newest)? {
                Walk::Whole(unfinished) => {
                    let log = ring.log_until(tail, &newest)?;
                    return Ok(Log { unfinished, ..log });
                }
                Walk::Torn(last, at) if ring.may_be_torn(at, head)? => newest = last,
                Walk::Torn(..) => return Err(DAMAGED),
            }
        }
        Err(DAMAGED)
    }

    /// Whether bytes from `offset` on are of the log.
    fn has(&self, offset: u64, length: usize) -> bool {
        let end = self.start + self.blocks * BLOCK;
        offset < end && offset.saturating_add(length as u64) > self.start
    }

    /// Shows those blocks of the log that do not count as empty ones, in bytes that were read from `offset` on.
    pub(super) fn hide(&self, offset: u64, bytes: &mut [u8]) {
        if !self.has(offset, bytes.len()) {
            return;
        }
        let mut at = offset.max(self.start);
        let end = (self.start + self.blocks * BLOCK).min(offset + bytes.len() as u64);
        while at < end {
            let number = (at - self.start) / BLOCK;
            let first = self.start + number * BLOCK;
            let stop = end.min(first + BLOCK);
            if let Some(empty) = self.empty(number) {
                let shown = &empty[(at - first) as usize..(stop - first) as usize];
                bytes[(at - offset) as usize..(stop - offset) as usize].copy_from_slice(shown);
            }
            at = stop;
        }
    }

    /// A block that does not count, as one without a record: it begins with the cycle that it was written in, as each does, by
    /// which the head is found.
    fn empty(&self, number: u64) -> Option<[u8; BLOCK as usize]> {
        if self.active.contains(&number) || self.active.contains(&(number + self.blocks)) {
            return None;
        }
        let cycle = match number < self.head {
            true => self.cycle,
            false => self.cycle.saturating_sub(1),
        };
        let mut bytes = [0; BLOCK as usize];
        bytes[..4].copy_from_slice(&cycle.to_be_bytes());
        Some(bytes)
    }
}

/// Where a record is: its number (`h_lsn`) is nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    cycle: u32,
    block: u64,
}

impl Position {
    fn of(number: u64) -> Position {
        Position {
            cycle: (number >> 32) as u32,
            block: number & 0xffff_ffff,
        }
    }
}

/// What the header of a record says (`xlog_rec_header`).
struct Record {
    position: Position,
    tail: Position,
    /// The blocks of its header.
    headers: u64,
    /// The bytes that come after those.
    length: u32,
    operations: u32,
}

impl Record {
    fn blocks(&self) -> u64 {
        self.headers + u64::from(self.length).div_ceil(BLOCK)
    }
}

/// How a walk from the tail to a record ended.
enum Walk {
    /// All that is between them is whole; what it has not ended.
    Whole(Unfinished),
    /// The last record that is whole, and the block where the next one is not.
    Torn(Record, u64),
}

/// The blocks of the log.
struct Ring<'a> {
    source: &'a dyn ReadAt,
    start: u64,
    blocks: u64,
    uuid: [u8; 16],
}

impl<'a> Ring<'a> {
    fn of(source: &'a dyn ReadAt, superblock: &Superblock) -> Result<Ring<'a>, Error> {
        let start = superblock.fsblock_offset(superblock.logstart);
        let length = u64::from(superblock.logblocks) * u64::from(superblock.blocksize);
        let end = start.checked_add(length);
        if length < 2 * BLOCK || end.is_none_or(|end| end > source.size()) {
            return Err(DAMAGED);
        }
        Ok(Ring {
            source,
            start,
            blocks: length / BLOCK,
            uuid: superblock.uuid,
        })
    }

    fn log(&self, active: Range<u64>, head: u64, cycle: u32) -> Log {
        Log {
            start: self.start,
            blocks: self.blocks,
            active,
            head,
            cycle,
            unfinished: Unfinished::default(),
        }
    }

    /// The log from `tail` to the end of the newest record.
    fn log_until(&self, tail: Position, newest: &Record) -> Result<Log, Error> {
        let length = self.distance(tail.block, newest.position.block) + newest.blocks();
        if length > self.blocks {
            return Err(DAMAGED);
        }
        let end = newest.position.block + newest.blocks();
        let (head, cycle) = match end > self.blocks {
            true => (end - self.blocks, newest.position.cycle.saturating_add(1)),
            false => (end, newest.position.cycle),
        };
        Ok(self.log(tail.block..tail.block + length, head, cycle))
    }

    /// `count` blocks from `at`, which is within the ring; behind its end it goes on at the beginning.
    fn read(&self, at: u64, count: u64) -> Result<Vec<u8>, Error> {
        let first = count.min(self.blocks - at);
        let place = self.start + at * BLOCK;
        let mut bytes = self.source.bytes(place, (first * BLOCK) as usize)?;
        if first < count {
            let rest = (count - first).min(self.blocks) * BLOCK;
            bytes.extend(self.source.bytes(self.start, rest as usize)?);
        }
        Ok(bytes)
    }

    /// Blocks from one to another, in the order of writing.
    fn distance(&self, from: u64, to: u64) -> u64 {
        match to >= from {
            true => to - from,
            false => to + self.blocks - from,
        }
    }

    /// As many blocks before another; before the first comes the last.
    fn back(&self, from: u64, count: u64) -> u64 {
        (from + self.blocks - count) % self.blocks
    }

    /// The cycle that a block was written in (`xlog_get_cycle`).
    fn cycle(block: &[u8]) -> Result<u32, Error> {
        match be32(block, 0)? {
            MAGIC => be32(block, 4),
            cycle => Ok(cycle),
        }
    }

    fn cycle_at(&self, at: u64) -> Result<u32, Error> {
        Self::cycle(&self.read(at, 1)?)
    }

    /// The block behind the last that was written (`xlog_find_head`): before it is one cycle, from it on the one before, or
    /// zeros. None in a log that has never been written.
    fn head(&self) -> Result<Option<u64>, Error> {
        let (first, last) = (self.cycle_at(0)?, self.cycle_at(self.blocks - 1)?);
        if first == 0 {
            return Ok(None);
        }
        let head = match first == last {
            true => self.blocks,
            false => self.first_of(last)?,
        };
        // What was not written yet, though something behind it was.
        let older = match first == last {
            true => last.wrapping_sub(1),
            false => last,
        };
        let window = WINDOW.min(self.blocks);
        if head < window && older != 0 {
            let count = window - head;
            let oldest = older.wrapping_sub(1);
            if let Some(at) = self.find_cycle(self.blocks - count, count, oldest)? {
                return Ok(Some(at));
            }
        }
        let from = head.saturating_sub(window);
        let found = self.find_cycle(from, head - from, older)?;
        Ok(Some(found.unwrap_or(head)))
    }

    /// The first block of a cycle that the ring ends with (`xlog_find_cycle_start`).
    fn first_of(&self, cycle: u32) -> Result<u64, Error> {
        let (mut before, mut from) = (0, self.blocks - 1);
        while from - before > 1 {
            let middle = before + (from - before) / 2;
            match self.cycle_at(middle)? == cycle {
                true => from = middle,
                false => before = middle,
            }
        }
        Ok(from)
    }

    /// The first of some blocks that is of this cycle.
    fn find_cycle(&self, from: u64, count: u64, cycle: u32) -> Result<Option<u64>, Error> {
        let bytes = self.read(from, count)?;
        for (number, block) in (from..).zip(bytes.as_chunks::<{ BLOCK as usize }>().0) {
            if Self::cycle(block)? == cycle {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// What a header says whose record would be at this block; None where there is none.
    fn record(&self, block: &[u8], at: u64) -> Result<Option<Record>, Error> {
        if be32(block, 0)? != MAGIC || slice(block, 304, 16)? != self.uuid {
            return Ok(None);
        }
        let position = Position::of(be64(block, 16)?);
        let (length, size) = (be32(block, 12)?, be32(block, 320)?);
        let headers = match be32(block, 8)? & VERSION_2 != 0 {
            true => size.div_ceil(CYCLE_SIZE).max(1),
            false => 1,
        };
        let record = Record {
            position,
            tail: Position::of(be64(block, 24)?),
            headers: headers.into(),
            length,
            operations: be32(block, 40)?,
        };
        let is_here = position.block == at && position.cycle == be32(block, 4)?;
        let fits = length <= RECORD_MAX && headers <= RECORD_MAX / CYCLE_SIZE;
        let has_cycles = length.div_ceil(CYCLE_SIZE) <= headers;
        Ok((is_here && fits && has_cycles && record.blocks() <= self.blocks).then_some(record))
    }

    /// The last record before a block, if it ends there; else the one before it: that one was not written to its end.
    fn last_before(&self, head: u64) -> Result<Record, Error> {
        let (last, at) = self.last_header(head % self.blocks)?;
        if let Some(record) = last
            && (at + record.blocks()) % self.blocks == head % self.blocks
        {
            return Ok(record);
        }
        self.last_header(at)?.0.ok_or(DAMAGED)
    }

    /// The last block before another that begins as a header does, and what it says.
    fn last_header(&self, before: u64) -> Result<(Option<Record>, u64), Error> {
        let count = RECORD_BLOCKS_MAX.min(self.blocks);
        let from = self.back(before, count);
        let bytes = self.read(from, count)?;
        let blocks = bytes.as_chunks::<{ BLOCK as usize }>().0;
        for (index, block) in blocks.iter().enumerate().rev() {
            if be32(block, 0)? == MAGIC {
                let at = (from + index as u64) % self.blocks;
                return Ok((self.record(block, at)?, at));
            }
        }
        Err(DAMAGED)
    }

    /// Whether a record was the last that was written before the filesystem was unmounted.
    fn says_unmounted(&self, record: &Record) -> Result<bool, Error> {
        if record.operations != 1 {
            return Ok(false);
        }
        let at = (record.position.block + record.headers) % self.blocks;
        Ok(u8(&self.read(at, 1)?, 9)? & UNMOUNTED != 0)
    }

    /// Where the oldest record is that still counts.
    fn tail(&self, newest: &Record) -> Result<Position, Error> {
        let (tail, last) = (newest.tail, newest.position);
        let is_before = match tail.cycle == last.cycle {
            true => tail.block <= last.block,
            false => tail.cycle.checked_add(1) == Some(last.cycle) && tail.block > last.block,
        };
        match is_before && tail.block < self.blocks {
            true => Ok(tail),
            false => Err(DAMAGED),
        }
    }

    /// Goes from the tail to the newest record, each where the one before says it is.
    fn walk(&self, tail: Position, newest: &Record) -> Result<Walk, Error> {
        let mut at = tail;
        let mut last = None;
        let mut intents = Intents::default();
        // Each record has a block at least, and all are before the newest.
        while at <= newest.position {
            let Some((record, data)) = self.whole(at)? else {
                let last = last.ok_or(DAMAGED)?;
                return Ok(Walk::Torn(last, at.block));
            };
            intents.record(&data, record.operations)?;
            at.block += record.blocks();
            if at.block >= self.blocks {
                at.block -= self.blocks;
                at.cycle = at.cycle.checked_add(1).ok_or(DAMAGED)?;
            }
            last = Some(record);
        }
        match last.is_some_and(|last| last.position == newest.position) {
            true => Ok(Walk::Whole(intents.unfinished()?)),
            false => Err(DAMAGED),
        }
    }

    /// The record at a position and what it holds, if it is there and whole. Its checksum is of the header, and of the rest as
    /// it was written.
    fn whole(&self, at: Position) -> Result<Option<(Record, Vec<u8>)>, Error> {
        let block = self.read(at.block, 1)?;
        let record = self.record(&block, at.block)?;
        let Some(record) = record.filter(|record| record.position == at) else {
            return Ok(None);
        };
        let bytes = self.read(at.block, record.blocks())?;
        let headers = (record.headers * BLOCK) as usize;
        let data = slice(&bytes, headers, record.length as usize)?;
        // Version 4 may have none.
        let said = le32(&bytes, 32)?;
        let is_whole = said == 0 || said == fs_xfs::log::record_checksum(&bytes[..headers], data);
        match is_whole {
            true => Ok(Some((record, unpacked(&bytes, headers, data)?))),
            false => Ok(None),
        }
    }

    /// Whether what begins at a block is among the last records that were written.
    fn may_be_torn(&self, at: u64, head: u64) -> Result<bool, Error> {
        let length = self.distance(at, head % self.blocks);
        if length > TORN_MAX as u64 * RECORD_BLOCKS_MAX {
            return Ok(false);
        }
        let bytes = self.read(at, length)?;
        let blocks = bytes.as_chunks::<{ BLOCK as usize }>().0;
        let mut records = 0;
        for block in blocks {
            records += usize::from(be32(block, 0)? == MAGIC);
        }
        Ok(records <= TORN_MAX)
    }
}

/// What a record holds as it was before its blocks got their cycle (`xlog_unpack_data`): the first word of each is kept in the
/// header, of those of 32 KiB in each block of that.
fn unpacked(record: &[u8], headers: usize, data: &[u8]) -> Result<Vec<u8>, Error> {
    /// Words that each block of the header has.
    const WORDS: usize = (CYCLE_SIZE as u64 / BLOCK) as usize;
    let mut data = data.to_vec();
    for (number, block) in data.chunks_mut(BLOCK as usize).enumerate() {
        let at = match number / WORDS {
            0 => 44 + number * 4,
            header => header * BLOCK as usize + 4 + number % WORDS * 4,
        };
        let word = slice(&record[..headers], at, 4)?;
        let length = block.len().min(4);
        block[..length].copy_from_slice(&word[..length]);
    }
    Ok(data)
}
