//! Where the header says tables are: their places, sizes, and QEMU's limits on them.
//!
//! Knows: L1, refcount and snapshot tables as stretches of the file.
//! Does not know: what is in them.

use crate::bytes::{be32, be64};
use crate::error::{CorruptCause, Error};
use crate::units::{ClusterBits, HostOffset};

/// QEMU's limit: with 64 KiB clusters an L1 table this large maps 2 EiB.
const MAX_L1_BYTES: u64 = 32 << 20;
/// QEMU's limit on the refcount table, which is checked here and never read.
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// QEMU's limit on the number of internal snapshots.
const MAX_SNAPSHOTS: u64 = 65536;
/// The smallest snapshot table entry, in bytes.
const SNAPSHOT_ENTRY_BYTES: u64 = 40;

/// A table's place and its number of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableRef {
    pub(crate) offset: HostOffset,
    pub(crate) entries: u32,
}

/// The two header fields that name the snapshot table; they change while QEMU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotFields {
    pub(crate) count: u32,
    pub(crate) offset: HostOffset,
}

impl SnapshotFields {
    /// Where the two fields lie in the file, and how long they are together.
    pub(crate) const AT: u64 = 60;
    pub(crate) const LEN: usize = 12;

    pub(crate) fn parse(bytes: &[u8]) -> Result<SnapshotFields, Error> {
        match (be32(bytes, 0), be64(bytes, 4)) {
            (Some(count), Some(offset)) => Ok(SnapshotFields {
                count,
                offset: HostOffset(offset),
            }),
            _ => Err(CorruptCause::NotQcow2.into()),
        }
    }

    pub(crate) fn check(self, cluster_bits: ClusterBits) -> Result<(), Error> {
        let bytes = u64::from(self.count).saturating_mul(SNAPSHOT_ENTRY_BYTES);
        let max = MAX_SNAPSHOTS.saturating_mul(SNAPSHOT_ENTRY_BYTES);
        check_table("snapshot table", self.offset, bytes, max, cluster_bits)
    }
}

/// Checks the place and size of an L1 table, the active one or a snapshot's.
pub(crate) fn check_l1(
    table: &'static str,
    l1: TableRef,
    cluster_bits: ClusterBits,
) -> Result<(), Error> {
    let bytes = u64::from(l1.entries).saturating_mul(8);
    check_table(table, l1.offset, bytes, MAX_L1_BYTES, cluster_bits)
}

/// Checks the place and size of the refcount table, which is never read.
pub(super) fn check_refcount_table(
    offset: HostOffset,
    clusters: u32,
    cluster_bits: ClusterBits,
) -> Result<(), Error> {
    if clusters == 0 {
        return Err(CorruptCause::NoRefcountTable.into());
    }
    let bytes = u64::from(clusters).saturating_mul(cluster_bits.size());
    check_table(
        "refcount table",
        offset,
        bytes,
        MAX_REFCOUNT_TABLE_BYTES,
        cluster_bits,
    )
}

fn check_table(
    table: &'static str,
    offset: HostOffset,
    bytes: u64,
    max_bytes: u64,
    cluster_bits: ClusterBits,
) -> Result<(), Error> {
    if bytes > max_bytes {
        return Err(CorruptCause::TableTooLarge {
            table,
            offset,
            bytes,
        }
        .into());
    }
    let end = offset
        .checked_add(bytes)
        .filter(|end| end.0 <= i64::MAX as u64);
    if end.is_none() || cluster_bits.within(offset.0) != 0 {
        return Err(CorruptCause::Table { table, offset }.into());
    }
    Ok(())
}
