//! Writes qcow2 headers and snapshot tables, from the specification.
//!
//! Knows: where each field lies, and what QEMU wants to see of a refcount table.
//! Does not know: the reader under test. Refcounts are not kept: readers do not need them.

use std::sync::OnceLock;

use super::file::File;
use super::streams::Kind;

/// Incompatible feature bit: an external data file.
pub const DATA_FILE: u64 = 1 << 2;
/// Incompatible feature bit: a compression type that is not zlib.
pub const COMPRESSION: u64 = 1 << 3;
/// Incompatible feature bit: extended L2 entries.
pub const EXTENDED_L2: u64 = 1 << 4;

/// What the header says.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The cluster size as an exponent of two.
    pub cluster_bits: u32,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// How clusters are compressed.
    pub kind: Kind,
    /// `EXTENDED_L2` and `DATA_FILE`; the compression bit comes by itself.
    pub incompatible: u64,
    /// Feature bits.
    pub autoclear: u64,
    /// Where the L1 table is.
    pub l1: u64,
    /// Entries of the L1 table.
    pub l1_entries: u32,
    /// Where the snapshot table is.
    pub snapshots: u64,
    /// Number of internal snapshots.
    pub snapshot_count: u32,
}

impl Header {
    /// Bytes in a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether L2 entries are extended.
    pub fn extended(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    /// Entries of an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster() / if self.extended() { 16 } else { 8 }
    }

    /// Bytes of the disk that one L1 entry maps.
    pub fn l1_reach(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// L1 entries that the disk needs.
    pub fn l1_needed(&self) -> u32 {
        self.virtual_size.div_ceil(self.l1_reach()) as u32
    }

    /// Writes the header, and a refcount table (all zeros) into cluster 1.
    pub fn write(&self, file: &mut File) {
        let cluster = self.cluster();
        let mut bytes = Vec::new();
        bytes.extend(b"QFI\xfb");
        bytes.extend(self.version.to_be_bytes());
        bytes.extend([0; 12]); // no backing file name
        bytes.extend(self.cluster_bits.to_be_bytes());
        bytes.extend(self.virtual_size.to_be_bytes());
        bytes.extend([0; 4]); // no encryption
        bytes.extend(self.l1_entries.to_be_bytes());
        bytes.extend(self.l1.to_be_bytes());
        bytes.extend(cluster.to_be_bytes()); // refcount table
        bytes.extend(1u32.to_be_bytes());
        bytes.extend(self.snapshot_count.to_be_bytes());
        bytes.extend(self.snapshots.to_be_bytes());
        if self.version >= 3 {
            let zstd = self.kind == Kind::Zstd;
            let bit = if zstd { COMPRESSION } else { 0 };
            bytes.extend((self.incompatible | bit).to_be_bytes());
            bytes.extend(0u64.to_be_bytes());
            bytes.extend(self.autoclear.to_be_bytes());
            bytes.extend(4u32.to_be_bytes()); // refcounts of 16 bits
            bytes.extend(112u32.to_be_bytes());
            bytes.extend([u8::from(zstd), 0, 0, 0, 0, 0, 0, 0]);
        }
        bytes.extend([0; 8]); // end of the extensions
        file.put(0, bytes);
        file.put(cluster, vec![0; 8]);
        file.grow(2 * cluster);
    }
}

/// An entry of the snapshot table.
pub fn snapshot_entry(id: &[u8], name: &[u8], l1: u64, l1_entries: u32, size: u64) -> Vec<u8> {
    let mut entry = Vec::new();
    entry.extend(l1.to_be_bytes());
    entry.extend(l1_entries.to_be_bytes());
    entry.extend((id.len() as u16).to_be_bytes());
    entry.extend((name.len() as u16).to_be_bytes());
    entry.extend([0; 16]); // date and clock
    entry.extend([0; 4]); // no VM state
    entry.extend(24u32.to_be_bytes());
    entry.extend(0u64.to_be_bytes());
    entry.extend(size.to_be_bytes());
    entry.extend(u64::MAX.to_be_bytes());
    entry.extend(id);
    entry.extend(name);
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}

/// Bytes in the row that patterns are cut from: a prime, so that they meet nowhere again.
const ROW: usize = 65_521;

/// Bytes that are different everywhere, and never zero.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let row = BYTES.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8 | 1
        };
        (0..ROW).map(|_| next()).collect()
    });
    let mut start = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % ROW;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let part = &row[start..ROW.min(start + len - bytes.len())];
        bytes.extend_from_slice(part);
        start = 0;
    }
    bytes
}

/// Bytes that compress: short rows of one byte each, never zero.
pub fn rows(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let starts = pattern(seed, len.div_ceil(29));
    for (row, start) in bytes.chunks_mut(29).zip(starts) {
        row.fill(start);
    }
    bytes
}

/// Whether all of it is zeros. Compared at once: a fuzzer counts every comparison.
pub fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|part| *part == ZEROS[..part.len()])
}
