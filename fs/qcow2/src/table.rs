//! L1 and L2 entries: raw bits in, meaning out. The only file with masks.
//!
//! Knows: the entry formats, standard and extended, and which entries QEMU refuses.
//! Does not know: where tables are kept or how they are read.

use crate::compressed::CompressedCluster;
use crate::error::{CorruptCause, Error};
use crate::header::Features;
use crate::mapping::{Mapping, Run};
use crate::units::{ClusterBits, GuestOffset, HostOffset};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Subclusters in a cluster of an image with extended L2 entries.
const SUBCLUSTERS: u32 = 32;
/// Bitmaps of a cluster whose subclusters are all data, or all zeros.
const ALL_ALLOCATED: u64 = 0xffff_ffff;
const ALL_ZERO: u64 = ALL_ALLOCATED << 32;
/// Compressed data is measured in sectors of this size.
const COMPRESSED_SECTOR: u64 = 512;

/// How the tables of an image are laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryFormat {
    cluster_bits: ClusterBits,
    extended: bool,
    external_data: bool,
    zero_flag: bool,
}

/// What the bits of one L2 entry say about its cluster.
enum Cluster {
    Unallocated,
    Zero,
    Data(HostOffset),
    Compressed(CompressedCluster),
}

impl EntryFormat {
    /// Subclusters may not be smaller than a sector: 32 of them make 16 KiB.
    pub(crate) const MIN_SUBCLUSTER_CLUSTER_BITS: u32 = 14;

    pub(crate) fn new(version: u32, cluster_bits: ClusterBits, features: &Features) -> EntryFormat {
        EntryFormat {
            cluster_bits,
            extended: features.extended_l2(),
            external_data: features.data_file(),
            zero_flag: version >= 3,
        }
    }

    pub(crate) fn cluster_bits(&self) -> ClusterBits {
        self.cluster_bits
    }

    /// The smallest stretch with a mapping of its own, a cluster or a subcluster, as an exponent.
    pub(crate) fn unit_bits(&self) -> u32 {
        if self.extended {
            return self.subcluster_bits();
        }
        self.cluster_bits.get()
    }

    fn subcluster_bits(&self) -> u32 {
        self.cluster_bits
            .get()
            .saturating_sub(SUBCLUSTERS.trailing_zeros())
    }

    /// 64-bit words in an L2 entry, as an exponent of two.
    pub(crate) fn entry_words_bits(&self) -> u32 {
        u32::from(self.extended)
    }

    /// Entries of an L2 table, as an exponent of two.
    pub(crate) fn l2_bits(&self) -> u32 {
        self.cluster_bits
            .get()
            .saturating_sub(3)
            .saturating_sub(self.entry_words_bits())
    }

    /// Guest bytes mapped by one L1 entry, as an exponent of two (at most 39).
    pub(crate) fn l1_shift(&self) -> u32 {
        self.cluster_bits.get().saturating_add(self.l2_bits())
    }

    /// L1 entries needed for a disk of this size.
    pub(crate) fn l1_entries(&self, virtual_size: u64) -> u64 {
        virtual_size.div_ceil(1 << self.l1_shift())
    }

    /// The L2 table an L1 entry names, if it names one.
    pub(crate) fn l2_table(
        &self,
        l1_entry: u64,
        guest: GuestOffset,
    ) -> Result<Option<HostOffset>, Error> {
        let table = HostOffset(l1_entry & OFFSET);
        if table.0 == 0 {
            return Ok(None);
        }
        if self.cluster_bits.within(table.0) != 0 {
            return Err(CorruptCause::L1Entry { guest, table }.into());
        }
        Ok(Some(table))
    }

    /// What an L2 entry, the first of `words`, says from `guest` on: a run that goes on as long as
    /// the entries behind it say the same of their clusters.
    pub(crate) fn run(&self, words: &[u64], guest: GuestOffset) -> Result<Run, Error> {
        let mut run = self.run_in_cluster(words, guest)?;
        let within = self.cluster_bits.within(guest.0);
        if run.len == self.cluster_bits.size().saturating_sub(within) {
            let more = self.continued(words, run.what) as u64;
            run.len = run.len.saturating_add(more << self.cluster_bits.get());
        }
        Ok(run)
    }

    /// How many entries behind the first, which says `what` up to the end of its cluster, go on
    /// with that. Most tables are a few long stretches, and are walked a word at a time here.
    fn continued(&self, words: &[u64], what: Mapping) -> usize {
        let first = words.first().copied().unwrap_or(0);
        let step = match what {
            Mapping::Compressed { .. } => return 0,
            Mapping::Data { .. } => self.cluster_bits.size(),
            Mapping::Zero | Mapping::Unallocated if first & OFFSET != 0 => self.cluster_bits.size(),
            Mapping::Zero | Mapping::Unallocated => 0,
        };
        let mut expected = first;
        let mut goes_on = |word: u64| {
            expected = expected.wrapping_add(step);
            // An offset that leaves its bits is another entry.
            word == expected && (word ^ first) & !OFFSET == 0
        };
        if !self.extended {
            let words = words.iter().skip(1).copied();
            return words.take_while(|word| goes_on(*word)).count();
        }
        let bitmap = words.get(1).copied().unwrap_or(0);
        // All subclusters are alike, or the next cluster begins with something else.
        if ![0, ALL_ALLOCATED, ALL_ZERO].contains(&bitmap) {
            return 0;
        }
        let pairs = words.chunks_exact(2).skip(1);
        pairs
            .take_while(|pair| pair.get(1) == Some(&bitmap))
            .take_while(|pair| pair.first().is_some_and(|word| goes_on(*word)))
            .count()
    }

    /// The same, ending with the cluster at the latest.
    fn run_in_cluster(&self, words: &[u64], guest: GuestOffset) -> Result<Run, Error> {
        let entry = words.first().copied().unwrap_or(0);
        let within = self.cluster_bits.within(guest.0);
        let rest = self.cluster_bits.size().saturating_sub(within);
        let cluster = self.cluster(entry, guest)?;
        if self.extended {
            let bitmap = words.get(1).copied().unwrap_or(0);
            return self.subcluster_run(cluster, bitmap, guest);
        }
        Ok(Run {
            len: rest,
            what: at(cluster, within),
        })
    }

    fn cluster(&self, entry: u64, guest: GuestOffset) -> Result<Cluster, Error> {
        if entry & COMPRESSED != 0 {
            if self.external_data {
                return Err(CorruptCause::CompressedInDataFile { guest }.into());
            }
            return Ok(Cluster::Compressed(self.compressed(entry)));
        }
        let host = HostOffset(entry & OFFSET);
        // Offset 0 is a place only in an external data file, and only with the copied flag.
        let has_host = host.0 != 0 || (self.external_data && entry & COPIED != 0);
        let zero = entry & ZERO != 0 && !self.extended;
        if zero && !self.zero_flag {
            return Err(CorruptCause::ZeroInV2 { guest }.into());
        }
        if zero && host.0 == 0 {
            return Ok(Cluster::Zero);
        }
        if !has_host {
            return Ok(Cluster::Unallocated);
        }
        if self.cluster_bits.within(host.0) != 0 {
            return Err(CorruptCause::ClusterOffset { guest, host }.into());
        }
        if self.external_data && host.0 != guest.0 & !self.cluster_bits.size().wrapping_sub(1) {
            return Err(CorruptCause::DataFileOffset { guest, host }.into());
        }
        Ok(if zero {
            Cluster::Zero
        } else {
            Cluster::Data(host)
        })
    }

    fn compressed(&self, entry: u64) -> CompressedCluster {
        let offset_bits = 62u32.saturating_sub(self.cluster_bits.get().saturating_sub(8));
        let offset = entry & (1u64 << offset_bits).wrapping_sub(1);
        let sectors = ((entry & !(COPIED | COMPRESSED)) >> offset_bits).saturating_add(1);
        let bytes = sectors
            .saturating_mul(COMPRESSED_SECTOR)
            .saturating_sub(offset & COMPRESSED_SECTOR.wrapping_sub(1));
        // At most 2^13 sectors of 512 bytes: it fits.
        CompressedCluster {
            host: HostOffset(offset),
            len: u32::try_from(bytes).unwrap_or(0),
        }
    }

    fn subcluster_run(
        &self,
        cluster: Cluster,
        bitmap: u64,
        guest: GuestOffset,
    ) -> Result<Run, Error> {
        let within = self.cluster_bits.within(guest.0);
        if let Cluster::Compressed(_) = cluster {
            let len = self.cluster_bits.size().saturating_sub(within);
            return Ok(Run {
                len,
                what: at(cluster, within),
            });
        }
        let allocated = bitmap as u32;
        let zero = (bitmap >> 32) as u32;
        let contradicts = match cluster {
            Cluster::Unallocated => allocated != 0,
            _ => allocated & zero != 0,
        };
        if contradicts {
            return Err(CorruptCause::SubclusterBitmap { guest }.into());
        }
        let sub_bits = self.subcluster_bits();
        let first = (within >> sub_bits) as u32;
        let (what, same) = if zero >> first & 1 != 0 {
            (Mapping::Zero, zero)
        } else if allocated >> first & 1 != 0 {
            (at(cluster, within), allocated)
        } else {
            (Mapping::Unallocated, !(zero | allocated))
        };
        let count = (same >> first).trailing_ones();
        let end = u64::from(first.saturating_add(count)) << sub_bits;
        Ok(Run {
            len: end.saturating_sub(within),
            what,
        })
    }
}

fn at(cluster: Cluster, within: u64) -> Mapping {
    match cluster {
        Cluster::Unallocated => Mapping::Unallocated,
        Cluster::Zero => Mapping::Zero,
        // A masked offset is below 2^56: the sum cannot leave 64 bits.
        Cluster::Data(host) => Mapping::Data {
            host: HostOffset(host.0.saturating_add(within)),
        },
        Cluster::Compressed(cluster) => Mapping::Compressed {
            cluster,
            within: u32::try_from(within).unwrap_or(0),
        },
    }
}
