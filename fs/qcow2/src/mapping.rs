//! What lies behind a stretch of the disk in one layer.
//!
//! Knows: the four answers, and when two neighbours are one run.
//! Does not know: tables, or the layer below.

use crate::compressed::CompressedCluster;
use crate::units::HostOffset;

/// A stretch of the disk with one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Length in bytes; 0 only at or beyond the end of the disk.
    pub len: u64,
    /// What lies there.
    pub what: Mapping,
}

/// What lies behind a stretch of the disk in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Bytes as they are in the file (or the external data file), from `host` on.
    Data {
        /// Where the first byte is.
        host: HostOffset,
    },
    /// Zeros, whatever the layers below hold.
    Zero,
    /// Part of one compressed cluster.
    Compressed {
        /// The whole compressed cluster.
        cluster: CompressedCluster,
        /// Where the stretch starts in the decompressed cluster.
        within: u32,
    },
    /// Nothing here: look one layer down.
    Unallocated,
}

impl Run {
    /// Takes in `next`, which starts where this run ends, if both are one run; else changes nothing.
    pub(crate) fn absorb(&mut self, next: &Run) -> bool {
        let one = match (self.what, next.what) {
            (Mapping::Zero, Mapping::Zero) | (Mapping::Unallocated, Mapping::Unallocated) => true,
            (Mapping::Data { host }, Mapping::Data { host: after }) => {
                host.checked_add(self.len) == Some(after)
            }
            _ => false,
        };
        if one {
            self.len = self.len.saturating_add(next.len);
        }
        one
    }
}

impl Mapping {
    /// What lies `bytes` further on in the same run.
    pub(crate) fn skip(self, bytes: u64) -> Mapping {
        match self {
            // Runs end before 64 bits do, and compressed ones within a cluster.
            Mapping::Data { host } => Mapping::Data {
                host: HostOffset(host.0.saturating_add(bytes)),
            },
            Mapping::Compressed { cluster, within } => {
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                Mapping::Compressed {
                    cluster,
                    within: within.saturating_add(bytes),
                }
            }
            Mapping::Zero | Mapping::Unallocated => self,
        }
    }
}
