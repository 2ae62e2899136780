//! Chains of layers, built together with the bytes that they show.
//!
//! Knows: how each kind of cluster is written, and what it makes of the disk below it.
//! Does not know: the reader under test. Every image is valid.

use std::sync::Arc;

use super::encode;
use super::file::File;
use super::input::Input;
use super::streams::Kind;
use super::writer::{DATA_FILE, EXTENDED_L2, Header, pattern, rows, snapshot_entry};

/// Layers of a chain at most.
const MAX_LAYERS: usize = 6;
/// Sectors of a disk at most: 800 KiB, so that an input takes milliseconds.
const MAX_SECTORS: u64 = 1600;
/// Clusters of a larger size take too long to compress.
const MAX_COMPRESSED_BITS: u32 = 16;
const COPIED: u64 = 1 << 63;

/// One layer as files.
pub struct Built {
    /// The image, or the raw file.
    pub file: Arc<File>,
    /// Whether it is a raw file.
    pub raw: bool,
    /// The external data file.
    pub data: Option<Arc<File>>,
    /// Whether the layer is the image's only internal snapshot, not its active disk.
    pub snapshot: bool,
}

/// What a cluster holds. Numbers are seeds of content.
#[derive(Clone, Copy)]
enum Cluster {
    Unallocated,
    Zero,
    /// A zero cluster that keeps its place, or extended: all subclusters zeros.
    ZeroInPlace,
    Data(u64),
    /// Some subclusters data, some zeros, and some neither.
    Mixed {
        seed: u64,
        data: u32,
        zero: u32,
    },
    Compressed(u64),
}

/// A chain, base first, and the disk that each layer shows with all below it.
pub fn make(input: &mut Input<'_>) -> (Vec<Built>, Vec<Vec<u8>>) {
    let count = 1 + input.below(MAX_LAYERS);
    let (mut layers, mut disks) = (Vec::new(), Vec::new());
    let mut disk = Vec::new();
    for i in 0..count {
        if i == 0 && input.one_in(3) {
            let len = usize::from(input.u16()) * 5;
            disk = pattern(99, len);
            let mut file = File::default();
            file.put(0, &disk);
            disk.resize(len.next_multiple_of(512), 0);
            layers.push(Built {
                file: Arc::new(file),
                raw: true,
                data: None,
                snapshot: false,
            });
        } else {
            layers.push(overlay(input, i as u64 + 1, &mut disk));
        }
        disks.push(disk.clone());
    }
    (layers, disks)
}

/// A qcow2 layer over `disk`, which becomes what the layer shows.
fn overlay(input: &mut Input<'_>, number: u64, disk: &mut Vec<u8>) -> Built {
    let header = header(input);
    disk.resize(header.virtual_size as usize, 0);
    let cluster = header.cluster() as usize;
    let mut clusters = vec![Cluster::Unallocated; disk.len().div_ceil(cluster)];
    for step in 0..input.below(24) as u64 {
        let seed = number << 32 | step << 16;
        let what = choose(input, &header, seed);
        let first = input.below(clusters.len().max(1));
        let row = 1 + input.below(5);
        clusters
            .iter_mut()
            .skip(first)
            .take(row)
            .for_each(|c| *c = what);
    }
    for (part, what) in disk.chunks_mut(cluster).zip(&clusters) {
        show(part, *what, cluster);
    }
    write(input, header, &clusters)
}

fn header(input: &mut Input<'_>) -> Header {
    let shape = input.u8();
    let v3 = shape & 7 != 0;
    let cluster_bits = input.choose(&[9, 9, 9, 10, 11, 12, 14, 14, 16, 16, 18, 21]);
    let mut incompatible = 0;
    if v3 && shape & 8 != 0 && cluster_bits >= 14 {
        incompatible |= EXTENDED_L2;
    }
    if v3 && shape & 0x70 == 0x10 {
        incompatible |= DATA_FILE;
    }
    let zstd = v3 && shape & 0x80 != 0;
    Header {
        version: if v3 { 3 } else { 2 },
        cluster_bits,
        virtual_size: u64::from(input.u16()) % (MAX_SECTORS + 1) * 512,
        kind: if zstd { Kind::Zstd } else { Kind::Zlib },
        incompatible,
        autoclear: 0,
        l1: 2 << cluster_bits,
        l1_entries: 0,
        snapshots: 0,
        snapshot_count: 0,
    }
}

fn choose(input: &mut Input<'_>, header: &Header, seed: u64) -> Cluster {
    let compressible =
        header.cluster_bits <= MAX_COMPRESSED_BITS && header.incompatible & DATA_FILE == 0;
    match input.below(8) {
        0 => Cluster::Unallocated,
        1 if header.version >= 3 => Cluster::Zero,
        2 if header.version >= 3 => Cluster::ZeroInPlace,
        3 | 4 if compressible => Cluster::Compressed(seed),
        5 | 6 if header.extended() => {
            let (data, zero) = (input.u32(), input.u32());
            Cluster::Mixed {
                seed,
                data: data & !zero,
                zero,
            }
        }
        _ => Cluster::Data(seed),
    }
}

/// The bytes of a cluster, up to `len`.
fn content(what: Cluster, len: usize) -> Vec<u8> {
    match what {
        Cluster::Data(seed) | Cluster::Mixed { seed, .. } => pattern(seed, len),
        Cluster::Compressed(seed) => rows(seed, len),
        _ => vec![0; len],
    }
}

/// What a cluster makes of the part of the disk that it covers.
fn show(part: &mut [u8], what: Cluster, cluster: usize) {
    let bytes = content(what, part.len());
    match what {
        Cluster::Unallocated => {}
        Cluster::Mixed { data, zero, .. } => {
            for (i, (part, bytes)) in part
                .chunks_mut(cluster / 32)
                .zip(bytes.chunks(cluster / 32))
                .enumerate()
            {
                match (data >> i & 1, zero >> i & 1) {
                    (1, _) => part.copy_from_slice(bytes),
                    (_, 1) => part.fill(0),
                    _ => {}
                }
            }
        }
        _ => part.copy_from_slice(&bytes),
    }
}

/// Where the next clusters of a file go.
struct Space {
    next: u64,
    cluster: u64,
}

impl Space {
    fn clusters(&mut self, count: u64) -> u64 {
        let at = self.next.next_multiple_of(self.cluster);
        self.next = at + count * self.cluster;
        at
    }

    fn bytes(&mut self, len: u64) -> u64 {
        let at = self.next;
        self.next += len;
        at
    }
}

fn write(input: &mut Input<'_>, mut header: Header, clusters: &[Cluster]) -> Built {
    let cluster = header.cluster();
    let mut file = File::default();
    let external = header.incompatible & DATA_FILE != 0;
    let mut data = external.then(File::default);
    header.l1_entries = header.l1_needed();
    let mut space = Space {
        next: header.l1,
        cluster,
    };
    let l1_clusters = (u64::from(header.l1_entries) * 8).div_ceil(cluster);
    space.clusters(l1_clusters);

    let mut tables = vec![0u64; header.l1_entries as usize];
    for (index, &what) in clusters.iter().enumerate() {
        let guest = index as u64 * cluster;
        let table = &mut tables[(guest / header.l1_reach()) as usize];
        if *table == 0 {
            if matches!(what, Cluster::Unallocated) {
                continue;
            }
            *table = space.clusters(1);
        }
        let slot = index as u64 % header.l2_entries();
        // Neighbours in the file now and then, and gaps between them.
        space.next += u64::from(input.one_in(4)) * cluster;
        let (entry, bitmap) = entry(&header, what, guest, &mut space, &mut file, &mut data);
        match header.extended() {
            true => file.put(
                *table + slot * 16,
                [entry.to_be_bytes(), bitmap.to_be_bytes()].concat(),
            ),
            false => file.put(*table + slot * 8, entry.to_be_bytes()),
        }
    }
    let mut l1 = Vec::new();
    for table in tables {
        let copied = if table == 0 { 0 } else { COPIED };
        l1.extend((table | copied).to_be_bytes());
    }
    file.put(header.l1, l1);

    let snapshot = !external && input.one_in(5);
    if snapshot {
        let at = space.clusters(1);
        let entry = snapshot_entry(
            b"1",
            b"then",
            header.l1,
            header.l1_entries,
            header.virtual_size,
        );
        file.put(at, entry);
        (header.snapshots, header.snapshot_count) = (at, 1);
        // The active disk is another one, and empty.
        header.virtual_size = u64::from(input.u16()) * 512;
        header.l1_entries = header.l1_needed();
        header.l1 = space.clusters((u64::from(header.l1_entries) * 8).div_ceil(cluster));
    }
    header.write(&mut file);
    file.grow(space.next);
    Built {
        file: Arc::new(file),
        raw: false,
        data: data.map(Arc::new),
        snapshot,
    }
}

/// Writes the cluster, and returns its L2 entry and bitmap.
fn entry(
    header: &Header,
    what: Cluster,
    guest: u64,
    space: &mut Space,
    file: &mut File,
    data: &mut Option<File>,
) -> (u64, u64) {
    let cluster = header.cluster();
    let len = cluster.min(header.virtual_size - guest) as usize;
    let mut put = |bytes: Vec<u8>| match data {
        Some(data) => {
            data.put(guest, bytes);
            guest
        }
        None => {
            let host = space.clusters(1);
            file.put(host, bytes);
            host
        }
    };
    match what {
        Cluster::Unallocated => (0, 0),
        Cluster::Zero if header.extended() => (0, 0xffff_ffff << 32),
        Cluster::Zero => (1, 0),
        Cluster::ZeroInPlace => {
            let host = put(pattern(guest, len));
            match header.extended() {
                true => (host | COPIED, 0xffff_ffff << 32),
                // At offset 0 of a data file, this is a zero cluster without a place.
                false => (host | COPIED | 1, 0),
            }
        }
        Cluster::Data(_) => (put(content(what, len)) | COPIED, 0xffff_ffff),
        Cluster::Mixed { data, zero, .. } => {
            let host = put(content(what, len));
            (host | COPIED, u64::from(zero) << 32 | u64::from(data))
        }
        Cluster::Compressed(_) => {
            let stream = encode::stream(header.kind, &content(what, cluster as usize));
            let host = space.bytes(stream.len() as u64);
            let sectors = (host % 512 + stream.len() as u64).div_ceil(512) - 1;
            file.put(host, stream);
            let shift = 62 - (header.cluster_bits - 8);
            (1 << 62 | sectors << shift | host, 0)
        }
    }
}
