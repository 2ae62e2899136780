//! The table of internal snapshots.
//!
//! Knows: its entries, of every length of extra data, and that it changes while QEMU runs.
//! Does not know: what an L1 table says.
//! Invariant: a table is returned only if the header named the same one before and after.

use std::borrow::Cow;

use crate::bytes::{be16, be32, be64, slice};
use crate::error::{CorruptCause, Error, io_at};
use crate::header::{SnapshotFields, TableRef, whole_sectors};
use crate::read_at::{ReadAt, read_available};
use crate::units::{ClusterBits, HostOffset};

/// QEMU's limit on the whole table.
const MAX_TABLE_BYTES: usize = 64 << 20;
/// QEMU's limit on the extra data of an entry; a longer one makes it refuse the image.
const MAX_EXTRA_DATA: u32 = 1024;
/// Fixed part of an entry, before extra data, id and name.
const FIXED: usize = 40;
/// The table is read in steps of this size: most tables fit into the first.
const STEP: usize = 64 << 10;
/// A running QEMU rewrites the table in milliseconds; this many changes in a row are a fault.
const MAX_ATTEMPTS: u32 = 8;

/// One internal snapshot, as the table names it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InternalSnapshot {
    /// QEMU's id: a number as text, unique in the image.
    pub id: Vec<u8>,
    /// The name a person gave it.
    pub name: Vec<u8>,
    /// When it was taken: seconds since 1970.
    pub date_secs: u32,
    /// When it was taken: nanoseconds of that second.
    pub date_nanos: u32,
    /// The guest's clock, in nanoseconds.
    pub vm_clock_nanos: u64,
    /// Bytes of VM state kept with it; 0 for a disk-only snapshot.
    pub vm_state_size: u64,
    /// Size of the disk at that instant.
    pub virtual_size: u64,
    /// Instruction count of a replay, where recorded.
    pub icount: Option<u64>,
    l1: TableRef,
}

impl InternalSnapshot {
    /// The id as text.
    pub fn id_str(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.id)
    }

    /// The name as text.
    pub fn name_str(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.name)
    }

    /// Where its L1 table lies.
    pub fn l1_offset(&self) -> HostOffset {
        self.l1.offset
    }

    /// Entries of its L1 table.
    pub fn l1_entries(&self) -> u32 {
        self.l1.entries
    }

    pub(crate) fn l1(&self) -> TableRef {
        self.l1
    }
}

/// Reads the table as it is now. `current_size` is the size of snapshots that record none.
pub(crate) fn read(
    file: &dyn ReadAt,
    cluster_bits: ClusterBits,
    current_size: u64,
) -> Result<Vec<InternalSnapshot>, Error> {
    let mut before = read_fields(file)?;
    for _ in 0..MAX_ATTEMPTS {
        let table = before
            .check(cluster_bits)
            .and_then(|()| parse(file, before, current_size));
        let after = read_fields(file)?;
        if before == after {
            return table;
        }
        before = after;
    }
    Err(CorruptCause::SnapshotTableChanging.into())
}

fn read_fields(file: &dyn ReadAt) -> Result<SnapshotFields, Error> {
    let mut bytes = [0; SnapshotFields::LEN];
    read_available(file, &mut bytes, SnapshotFields::AT)
        .map_err(io_at("header", SnapshotFields::AT))?;
    SnapshotFields::parse(&bytes)
}

fn parse(
    file: &dyn ReadAt,
    fields: SnapshotFields,
    current_size: u64,
) -> Result<Vec<InternalSnapshot>, Error> {
    let mut table = Table {
        file,
        offset: fields.offset.0,
        bytes: Vec::new(),
    };
    let mut snapshots = Vec::new();
    let mut at: usize = 0;
    for index in 0..fields.count {
        let broken = || CorruptCause::SnapshotEntry {
            index,
            offset: HostOffset(fields.offset.0.saturating_add(at as u64)),
        };
        let fixed = table.get(at, FIXED)?.ok_or_else(broken)?;
        let extra_len = be32(fixed, 36).unwrap_or(u32::MAX);
        let id_len = usize::from(be16(fixed, 12).unwrap_or(0));
        let name_len = usize::from(be16(fixed, 14).unwrap_or(0));
        if extra_len > MAX_EXTRA_DATA {
            return Err(broken().into());
        }
        let extra_len = extra_len as usize;
        let id_at = FIXED.saturating_add(extra_len);
        let name_at = id_at.saturating_add(id_len);
        let len = name_at.saturating_add(name_len);
        let entry = table.get(at, len)?.ok_or_else(broken)?;
        let extra = slice(entry, FIXED, extra_len).ok_or_else(broken)?;
        snapshots.push(InternalSnapshot {
            id: slice(entry, id_at, id_len).ok_or_else(broken)?.to_vec(),
            name: slice(entry, name_at, name_len).ok_or_else(broken)?.to_vec(),
            date_secs: be32(entry, 16).unwrap_or(0),
            date_nanos: be32(entry, 20).unwrap_or(0),
            vm_clock_nanos: be64(entry, 24).unwrap_or(0),
            vm_state_size: be64(extra, 0).unwrap_or(be32(entry, 32).unwrap_or(0).into()),
            virtual_size: whole_sectors(be64(extra, 8).unwrap_or(current_size)),
            icount: be64(extra, 16).filter(|&icount| icount != u64::MAX),
            l1: TableRef {
                offset: HostOffset(be64(entry, 0).unwrap_or(0)),
                entries: be32(entry, 8).unwrap_or(0),
            },
        });
        at = at.saturating_add(len).next_multiple_of(8);
    }
    Ok(snapshots)
}

/// The bytes of the table, read as far as they are needed.
struct Table<'a> {
    file: &'a dyn ReadAt,
    offset: u64,
    bytes: Vec<u8>,
}

impl Table<'_> {
    /// Bytes of the table, or nothing beyond the limit. What is beyond the file's end is zeros, as
    /// it is for QEMU: a broken name there does not hide the snapshots before it.
    fn get(&mut self, at: usize, len: usize) -> Result<Option<&[u8]>, Error> {
        let end = at.saturating_add(len);
        if end > MAX_TABLE_BYTES {
            return Ok(None);
        }
        while self.bytes.len() < end {
            let have = self.bytes.len();
            let from = self.offset.saturating_add(have as u64);
            self.bytes.resize(have.saturating_add(STEP), 0);
            let n = read_available(self.file, &mut self.bytes[have..], from)
                .map_err(io_at("snapshot table", from))?;
            if n > 0 {
                self.bytes.truncate(have.saturating_add(n));
            }
        }
        Ok(self.bytes.get(at..end))
    }
}
