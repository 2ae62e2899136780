//! The format by the book: docs/interop/qcow2.rst of QEMU, read literally, a cluster at a time.
//!
//! Knows: the fields of a valid header, L1 and L2 entries, subclusters; and which entries QEMU
//! refuses. Does not know: caches, runs, or the reader under test.

use std::cell::RefCell;

use super::file::File;
use super::streams::{self, Kind};
use super::writer::{DATA_FILE, EXTENDED_L2};

/// A disk, as an image and perhaps its data file describe it.
pub struct Disk<'a> {
    file: &'a File,
    data: Option<&'a File>,
    version: u32,
    cluster_bits: u32,
    incompatible: u64,
    kind: Kind,
    /// Size in bytes.
    pub size: u64,
    l1: u64,
    l1_entries: u64,
    /// The compressed cluster that was read last.
    last: RefCell<Option<Decompressed>>,
}

/// Where a compressed cluster is, how long it is, and what is in it if anything.
type Decompressed = (u64, u64, Option<Vec<u8>>);

/// What lies at one byte of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing: look into the backing file.
    Unallocated,
    /// Zeros.
    Zero,
    /// The byte at this offset, in the data file if there is one.
    Data(u64),
    /// So far into the compressed cluster at this offset, of this length.
    Compressed(u64, u64, u64),
}

/// The image contradicts itself here.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

impl<'a> Disk<'a> {
    /// The active disk of an image whose header is valid.
    pub fn new(file: &'a File, data: Option<&'a File>) -> Disk<'a> {
        let half = |at| file.word(at) >> 32;
        let version = half(4) as u32;
        let v3 = version >= 3;
        let zstd = v3 && half(100) > 104 && file.word(104) >> 56 == 1;
        Disk {
            file,
            data,
            version,
            cluster_bits: half(20) as u32,
            incompatible: if v3 { file.word(72) } else { 0 },
            kind: if zstd { Kind::Zstd } else { Kind::Zlib },
            size: file.word(24) / 512 * 512,
            l1: file.word(40),
            l1_entries: half(36),
            last: RefCell::default(),
        }
    }

    /// The same image with the L1 table and the size of an internal snapshot.
    pub fn at_snapshot(mut self, l1: u64, l1_entries: u32, size: u64) -> Disk<'a> {
        self.l1 = l1;
        self.l1_entries = l1_entries.into();
        self.size = size;
        self
    }

    /// Bytes in a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// What lies at one byte of the disk.
    pub fn place(&self, guest: u64) -> Result<Place, Refused> {
        let cluster = self.cluster();
        let extended = self.incompatible & EXTENDED_L2 != 0;
        let external = self.incompatible & DATA_FILE != 0;
        let entry_bytes = if extended { 16 } else { 8 };
        let l2_entries = cluster / entry_bytes;
        let l2_index = guest / cluster % l2_entries;
        let l1_index = guest / cluster / l2_entries;
        let within = guest % cluster;

        let l1_entry = match l1_index < self.l1_entries {
            true => self.file.word(self.l1 + 8 * l1_index),
            false => 0,
        };
        let table = bits(l1_entry, 9, 55);
        if table == 0 {
            return Ok(Place::Unallocated);
        }
        if !table.is_multiple_of(cluster) {
            return Err(Refused);
        }
        let entry = self.file.word(table + l2_index * entry_bytes);
        if bits(entry, 62, 62) != 0 {
            if external {
                return Err(Refused);
            }
            let x = 62 - (self.cluster_bits - 8);
            let host = bits(entry, 0, x - 1);
            let more_sectors = bits(entry, x, 61) >> x;
            let len = 512 - host % 512 + 512 * more_sectors;
            return Ok(Place::Compressed(host, len, within));
        }
        let host = bits(entry, 9, 55);
        let all_zeros = !extended && bits(entry, 0, 0) != 0;
        let allocated = host != 0 || (external && bits(entry, 63, 63) != 0);
        if all_zeros && self.version < 3 {
            return Err(Refused);
        }
        let bad_host = !host.is_multiple_of(cluster) || (external && host != guest - within);
        if all_zeros && host == 0 {
            return Ok(Place::Zero);
        }
        if allocated && bad_host {
            return Err(Refused);
        }
        if all_zeros {
            return Ok(Place::Zero);
        }
        if !extended {
            return Ok(match allocated {
                true => Place::Data(host + within),
                false => Place::Unallocated,
            });
        }
        let bitmap = self.file.word(table + l2_index * entry_bytes + 8);
        let (zero, present) = (bitmap >> 32, bitmap & 0xffff_ffff);
        if present & zero != 0 && allocated || present != 0 && !allocated {
            return Err(Refused);
        }
        let sub = within / (cluster / 32);
        Ok(match (zero >> sub & 1, present >> sub & 1) {
            (1, _) => Place::Zero,
            (_, 1) => Place::Data(host + within),
            _ => Place::Unallocated,
        })
    }

    /// The bytes of the disk from `at` on, over zeros: nothing if any of it is refused.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Refused> {
        let mut rest = buf;
        let mut at = at;
        while !rest.is_empty() {
            // Places change at sectors at the earliest.
            let len = rest.len().min((512 - at % 512) as usize);
            let (part, after) = rest.split_at_mut(len);
            self.sector(at, part)?;
            (rest, at) = (after, at + len as u64);
        }
        Ok(())
    }

    fn sector(&self, at: u64, part: &mut [u8]) -> Result<(), Refused> {
        match self.place(at)? {
            Place::Unallocated | Place::Zero => part.fill(0),
            Place::Data(host) => self.data.unwrap_or(self.file).read(host, part),
            Place::Compressed(host, len, within) => {
                let mut last = self.last.borrow_mut();
                if !matches!(*last, Some((h, l, _)) if (h, l) == (host, len)) {
                    *last = Some((host, len, self.cluster_of(host, len)));
                }
                let cluster = last.as_ref().and_then(|(_, _, cluster)| cluster.as_ref());
                let cluster = cluster.ok_or(Refused)?;
                part.copy_from_slice(&cluster[within as usize..][..part.len()]);
            }
        }
        Ok(())
    }

    /// A compressed cluster, decompressed: as QEMU does, or at least in a way that is tolerated.
    fn cluster_of(&self, host: u64, len: u64) -> Option<Vec<u8>> {
        let mut stream = vec![0; len as usize];
        self.file.read(host, &mut stream);
        let cluster = self.cluster() as usize;
        streams::decompress(self.kind, &stream, cluster)
            .or_else(|| streams::tolerated(self.kind, &stream, cluster))
    }
}

/// The bits from `low` to `high` of a word, in their place.
fn bits(word: u64, low: u32, high: u32) -> u64 {
    word & (u64::MAX >> (63 - high)) & (u64::MAX << low)
}
