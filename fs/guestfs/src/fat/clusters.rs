//! Clusters of FAT and exFAT, and the table that chains them.
//! Invariants: no cluster outside the filesystem is given; every chain ends, at the latest after as many
//! clusters as there are.

use crate::bytes::{le16, le32};
use crate::filesystem::Extent;
use crate::{Error, ReadAt, stretches};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of the table that are kept: chains mostly go on nearby.
const WINDOW: u64 = 64 << 10;
/// The number of the first cluster.
const FIRST: u32 = 2;

/// How wide an entry of the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Twelve,
    Sixteen,
    /// 28 bits of 32.
    ThirtyTwo,
    /// All 32, in exFAT.
    Whole,
}

impl Width {
    /// Bytes of a table of `entries`.
    pub(crate) fn bytes(self, entries: u64) -> u64 {
        match self {
            Width::Twelve => entries.saturating_mul(3).div_ceil(2),
            Width::Sixteen => entries.saturating_mul(2),
            Width::ThirtyTwo | Width::Whole => entries.saturating_mul(4),
        }
    }

    /// The smallest entry that ends a chain.
    fn end(self) -> u32 {
        match self {
            Width::Twelve => 0xff8,
            Width::Sixteen => 0xfff8,
            Width::ThirtyTwo => 0xfff_fff8,
            Width::Whole => 0xffff_fff8,
        }
    }
}

/// Where a file begins, and how its clusters follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) first: u32,
    /// One after the other, whatever the table says.
    pub(crate) contiguous: bool,
}

pub(crate) struct Clusters {
    pub(crate) source: Arc<dyn ReadAt>,
    /// The table's first byte.
    pub(crate) table: u64,
    pub(crate) width: Width,
    /// The first byte of the first cluster.
    pub(crate) start: u64,
    /// Bytes of a cluster.
    pub(crate) size: u64,
    pub(crate) count: u32,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// A piece of the table, and where it begins.
    window: (u64, Vec<u8>),
    /// How far the chain was followed that was followed last: its beginning, steps, cluster.
    reached: Option<(u32, u64, u32)>,
}

impl Clusters {
    pub(crate) fn new(
        source: Arc<dyn ReadAt>,
        (table, width): (u64, Width),
        (start, size, count): (u64, u64, u32),
    ) -> Clusters {
        Clusters {
            source,
            table,
            width,
            start,
            size,
            count,
            memory: Mutex::default(),
        }
    }

    /// The first byte of a cluster.
    pub(crate) fn place(&self, cluster: u32) -> Result<u64, Error> {
        let index = cluster.checked_sub(FIRST).filter(|it| *it < self.count);
        let index = index.ok_or(Error::Corrupt("a cluster number is too large"))?;
        let place = u64::from(index)
            .checked_mul(self.size)
            .and_then(|it| it.checked_add(self.start));
        let end = place.and_then(|it| it.checked_add(self.size));
        match (place, end) {
            (Some(place), Some(end)) if end <= self.source.size() => Ok(place),
            _ => Err(Error::Corrupt("a cluster is behind the end")),
        }
    }

    /// The cluster that a byte of the disk is in.
    pub(crate) fn of_place(&self, place: u64) -> Option<u32> {
        let index = place.checked_sub(self.start)?.checked_div(self.size)?;
        let index = u32::try_from(index).ok().filter(|it| *it < self.count)?;
        index.checked_add(FIRST)
    }

    /// What follows a cluster; None at the end of its chain.
    pub(crate) fn next(&self, cluster: u32, chain: Chain) -> Result<Option<u32>, Error> {
        let next = match chain.contiguous {
            true => cluster.checked_add(1),
            false => self.entry(cluster)?,
        };
        match next {
            Some(next) => self.place(next).map(|_| Some(next)),
            None => Ok(None),
        }
    }

    fn entry(&self, cluster: u32) -> Result<Option<u32>, Error> {
        self.place(cluster)?;
        let number = u64::from(cluster);
        let entry = match self.width {
            Width::Twelve => {
                let pair = u32::from(le16(&self.table_bytes(number + number / 2, 2)?, 0)?);
                if number.is_multiple_of(2) {
                    pair & 0xfff
                } else {
                    pair >> 4
                }
            }
            Width::Sixteen => le16(&self.table_bytes(number * 2, 2)?, 0)?.into(),
            Width::ThirtyTwo => le32(&self.table_bytes(number * 4, 4)?, 0)? & 0xfff_ffff,
            Width::Whole => le32(&self.table_bytes(number * 4, 4)?, 0)?,
        };
        Ok(Some(entry).filter(|entry| *entry < self.width.end()))
    }

    fn table_bytes(&self, at: u64, length: usize) -> Result<[u8; 4], Error> {
        let at = self.table.saturating_add(at);
        let mut memory = self.memory();
        let within = |window: &(u64, Vec<u8>)| {
            let start = usize::try_from(at.checked_sub(window.0)?).ok()?;
            padded(window.1.get(start..start.checked_add(length)?)?)
        };
        if let Some(found) = within(&memory.window) {
            return Ok(found);
        }
        let start = at / WINDOW * WINDOW;
        let room = self.source.size().saturating_sub(start);
        // An entry of twelve bits may lie across the border.
        let wanted = WINDOW.saturating_add(length as u64).min(room);
        memory.window = (start, self.source.bytes(start, wanted as usize)?);
        within(&memory.window).ok_or(Error::Corrupt("the table of clusters is cut short"))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clusters of a chain that goes to its own end.
    pub(crate) fn length(&self, chain: Chain) -> Result<u64, Error> {
        let (mut cluster, mut length) = (chain.first, 1);
        self.place(cluster)?;
        while let Some(next) = self.next(cluster, chain)? {
            cluster = next;
            length += 1;
            if length > u64::from(self.count) {
                return Err(Error::Corrupt("a chain of clusters leads in a circle"));
            }
        }
        Ok(length)
    }

    /// Stretches of the `size` bytes of a chain from `offset` on, `limit` at most.
    pub(crate) fn extents(
        &self,
        chain: Chain,
        size: u64,
        offset: u64,
        limit: usize,
    ) -> Result<Vec<Extent>, Error> {
        let clusters = size.div_ceil(self.size);
        if clusters > u64::from(self.count) {
            return Err(Error::Corrupt("a file is larger than its filesystem"));
        }
        let mut found = Vec::new();
        if offset >= size {
            return Ok(found);
        }
        let wanted = offset / self.size;
        let (mut index, mut cluster) = match self.memory().reached {
            _ if chain.contiguous => {
                let skipped = u32::try_from(wanted).unwrap_or(u32::MAX);
                (wanted, chain.first.saturating_add(skipped))
            }
            Some((first, index, cluster)) if first == chain.first && index <= wanted => {
                (index, cluster)
            }
            Some(_) | None => (0, chain.first),
        };
        loop {
            let place = self.place(cluster)?;
            if index >= wanted {
                let before = found.len();
                stretches::add(&mut found, index * self.size, self.size, place);
                if found.len() > limit {
                    found.truncate(before);
                    break;
                }
            }
            if index + 1 >= clusters {
                break;
            }
            let next = self.next(cluster, chain)?;
            cluster = next.ok_or(Error::Corrupt("a chain of clusters ends before its file"))?;
            index += 1;
        }
        if !chain.contiguous {
            self.memory().reached = Some((chain.first, index, cluster));
        }
        Ok(found)
    }
}

/// Two or four bytes as four.
fn padded(bytes: &[u8]) -> Option<[u8; 4]> {
    let mut padded = [0; 4];
    padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(padded)
}
