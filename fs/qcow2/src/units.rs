//! Newtypes for the numbers that must not be mixed up.
//!
//! Knows: guest and host offsets, and the arithmetic of a cluster size.
//! Does not know: where the numbers come from.

use std::fmt;

/// An offset on the disk as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestOffset(pub u64);

/// An offset in the file that holds an image (or in its external data file).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(pub u64);

impl HostOffset {
    /// The offset `bytes` further on, or nothing where that leaves 64 bits.
    pub fn checked_add(self, bytes: u64) -> Option<HostOffset> {
        self.0.checked_add(bytes).map(HostOffset)
    }
}

impl fmt::Display for GuestOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for HostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A cluster size as a power of two, known to be one that QEMU accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterBits(u8);

impl ClusterBits {
    /// The smallest cluster of the format: 512 bytes.
    pub const MIN: u32 = 9;
    /// The largest cluster QEMU accepts: 2 MiB.
    pub const MAX: u32 = 21;

    /// The cluster size of `2^bits` bytes, if it is within QEMU's limits.
    pub fn new(bits: u32) -> Option<ClusterBits> {
        if !(Self::MIN..=Self::MAX).contains(&bits) {
            return None;
        }
        u8::try_from(bits).ok().map(ClusterBits)
    }

    /// The exponent.
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }

    /// Bytes in a cluster.
    pub fn size(self) -> u64 {
        1 << self.0
    }

    /// Bytes in a cluster, as a length in memory (at most 2 MiB).
    pub fn bytes(self) -> usize {
        1 << self.0
    }

    /// How far `offset` is into its cluster.
    pub fn within(self, offset: u64) -> u64 {
        offset & self.size().wrapping_sub(1)
    }
}
