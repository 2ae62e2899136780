//! L1 and L2 tables of the fuzzer's making, in an image that is else valid.
//!
//! Knows: which entries are worth trying: right ones, nearly right ones, and any at all.
//! Does not know: what they mean (`spec` does).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use qmpfs_qcow2::{Image, OpenOptions, ReadAt};

use super::file::File;
use super::input::Input;
use super::spec::Disk;
use super::streams::Kind;
use super::writer::{DATA_FILE, EXTENDED_L2, Header, pattern, rows, snapshot_entry};
use super::{agree, encode};

/// L2 tables, data clusters and compressed clusters that entries can name.
const POOL: u64 = 4;
/// Bytes in an external data file; the rest of the disk is behind its end.
const DATA_BYTES: usize = 300_000;
/// Bytes that one image may map at most, so that an input takes milliseconds.
const MAX_REACH: u64 = 24 << 20;

/// An image, and its data file if it has one.
pub struct Made {
    /// The image.
    pub file: Arc<File>,
    /// The external data file.
    pub data: Option<Arc<File>>,
    /// The L1 table, number of entries and size of its snapshot, if it has one.
    pub snapshot: Option<(u64, u32, u64)>,
}

struct Layout {
    header: Header,
    /// The first L2 table; the others follow.
    tables: u64,
    /// The first data cluster; the others follow.
    clusters: u64,
    /// Compressed clusters: offset and length.
    streams: Vec<(u64, u64)>,
}

/// Makes an image, reads it, and compares.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let made = make(&mut input);
    let options = OpenOptions {
        data_file: made.data.clone().map(|data| data as Arc<dyn ReadAt>),
        ..OpenOptions::default()
    };
    let image = Image::open_with(made.file.clone(), options).expect("a valid header");
    let disk = || Disk::new(&made.file, made.data.as_deref());
    let mut choices = Input::new(bytes);
    if let Some((l1, l1_entries, size)) = made.snapshot {
        let snapshots = image.snapshots().expect("a valid table");
        let old = image.at_snapshot(&snapshots[0]).expect("a valid snapshot");
        let disk = disk().at_snapshot(l1, l1_entries, size);
        agree::check(old, &disk, &mut choices);
    }
    agree::check(image, &disk(), &mut choices);
}

/// An image of the input's choosing.
pub fn make(input: &mut Input<'_>) -> Made {
    let shape = input.u8();
    let v3 = shape & 3 != 0;
    let mut incompatible = 0;
    let extended = v3 && shape & 0x0c == 0x04;
    if extended {
        incompatible |= EXTENDED_L2;
    }
    let cluster_bits = match extended {
        true => input.choose(&[14, 14, 15, 16]),
        false => input.choose(&[9, 9, 9, 10, 11, 12, 14, 17]),
    };
    if v3 && shape & 0x30 == 0x10 {
        incompatible |= DATA_FILE;
    }
    let kind = match v3 && shape & 0x40 != 0 {
        true => Kind::Zstd,
        false => Kind::Zlib,
    };
    let mut header = Header {
        version: if v3 { 3 } else { 2 },
        cluster_bits,
        virtual_size: 0,
        kind,
        incompatible,
        autoclear: 0,
        l1: 2 << cluster_bits,
        l1_entries: 0,
        snapshots: 0,
        snapshot_count: 0,
    };
    let reach = (4 * header.l1_reach()).min(MAX_REACH);
    let bound = reach.max(512 << 10).min(8 * header.l1_reach());
    header.virtual_size = u64::from(input.u32()) % (bound + 1);
    header.l1_entries = header.l1_needed() + u32::from(input.one_in(4));
    // A snapshot takes the second half of a longer L1 table.
    let with_snapshot = shape & 0x80 != 0;
    let tables = header.l1
        + (u64::from(header.l1_entries) * 16)
            .next_multiple_of(header.cluster())
            .max(2 * header.cluster());
    let clusters = tables + POOL * header.cluster();
    let mut layout = Layout {
        header,
        tables,
        clusters,
        streams: Vec::new(),
    };

    let mut file = File::default();
    let mut data = (incompatible & DATA_FILE != 0).then(File::default);
    let used = pattern(1, (POOL * layout.header.cluster()) as usize);
    match &mut data {
        Some(data) => data.put(0, pattern(2, DATA_BYTES)),
        None => file.put(clusters, used),
    }
    put_streams(&mut layout, &mut file, input);
    let mut snapshot = None;
    if with_snapshot {
        let l1 = header_l1_of_snapshot(&layout.header);
        let at = file.end().next_multiple_of(layout.header.cluster());
        let entries = layout.header.l1_entries;
        let size = u64::from(input.u32()) % (bound + 1) / 512 * 512;
        file.put(at, snapshot_entry(b"1", b"s", l1, entries, size));
        (layout.header.snapshots, layout.header.snapshot_count) = (at, 1);
        snapshot = Some((l1, entries, size));
    }
    layout.header.write(&mut file);
    // Only now, so that tables may lie over anything, even the header's cluster, but stay valid.
    let cut = input.one_in(8).then(|| u64::from(input.u32()));
    put_tables(&layout, &mut file, input);
    // Somewhere, or within the active L1 table.
    if let (Some(cut), false) = (cut, with_snapshot) {
        let header = &layout.header;
        let room = match cut % 2 {
            0 => file.end() - header.l1,
            _ => u64::from(header.l1_entries) * 8 + 1,
        };
        file.cut(header.l1 + cut / 2 % room);
    }
    Made {
        file: Arc::new(file),
        data: data.map(Arc::new),
        snapshot,
    }
}

/// On the next cluster boundary behind the active L1 table.
fn header_l1_of_snapshot(header: &Header) -> u64 {
    let end = header.l1 + u64::from(header.l1_entries) * 8;
    end.next_multiple_of(header.cluster())
}

fn put_streams(layout: &mut Layout, file: &mut File, input: &mut Input<'_>) {
    let cluster = layout.header.cluster() as usize;
    let mut at = layout.clusters + POOL * layout.header.cluster();
    for i in 0..POOL {
        let stream = stream(layout.header.kind, cluster, input.below(4), i);
        at += u64::from(input.u8()) * 3;
        layout.streams.push((at, stream.len() as u64));
        let len = stream.len() as u64;
        file.put(at, stream);
        at += len;
    }
}

/// A stream, made once: encoding is most of the work of an input.
fn stream(kind: Kind, cluster: usize, how: usize, seed: u64) -> Vec<u8> {
    type Key = (Kind, usize, usize, u64);
    static MADE: Mutex<BTreeMap<Key, Vec<u8>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().expect("no panic while it is held");
    let stream = made.entry((kind, cluster, how, seed)).or_insert_with(|| {
        let plain = match how {
            0 => vec![seed as u8; cluster],
            // Too short: it fills no cluster.
            1 => pattern(seed, cluster / 3),
            _ => rows(seed, cluster),
        };
        encode::stream(kind, &plain)
    });
    stream.clone()
}

fn put_tables(layout: &Layout, file: &mut File, input: &mut Input<'_>) {
    let header = &layout.header;
    let l1_slots = u64::from(header.l1_entries).max(1);
    // Every table is in use at first, so that what is put into it is seen.
    for slot in 0..u64::from(header.l1_entries) {
        let table = layout.tables + slot % POOL * header.cluster();
        for l1 in [header.l1, header_l1_of_snapshot(header)] {
            file.put(l1 + slot * 8, (table | 1 << 63).to_be_bytes());
        }
    }
    while !input.is_empty() {
        let choice = input.u8();
        if choice & 0x0f == 0 {
            let slot = u64::from(input.u8()) % l1_slots * 8;
            let base = match choice & 0x10 {
                0 => header.l1,
                _ => header_l1_of_snapshot(header),
            };
            file.put(base + slot, l1_entry(layout, input).to_be_bytes());
            continue;
        }
        let table = layout.tables + u64::from(choice >> 4) % POOL * header.cluster();
        let words = if header.extended() { 2 } else { 1 };
        let index = u64::from(input.u16()) % header.l2_entries();
        let repeat = if choice & 0x0f == 1 {
            input.u8() % 16
        } else {
            0
        };
        let (entry, step, bitmap) = l2_entry(layout, index, input);
        for i in 0..=u64::from(repeat) {
            let slot = (index + i) % header.l2_entries();
            let entry = entry.wrapping_add(step.wrapping_mul(i));
            file.put(table + slot * 8 * words, entry.to_be_bytes());
            if words == 2 {
                file.put(table + slot * 16 + 8, bitmap.to_be_bytes());
            }
        }
    }
    file.grow(layout.clusters);
}

fn l1_entry(layout: &Layout, input: &mut Input<'_>) -> u64 {
    let header = &layout.header;
    let table = layout.tables + input.below(POOL as usize) as u64 * header.cluster();
    match input.below(8) {
        0 => 0,
        1 => table,
        2 => table + 512,
        // A bit that means something else, or nothing.
        3 => (table | 1 << 63) ^ 1 << (input.u8() % 64),
        4 => input.u64(),
        5 => u64::from(input.u8()) << header.cluster_bits,
        _ => table | 1 << 63,
    }
}

/// An entry, what the next of a row adds to it, and its bitmap.
fn l2_entry(layout: &Layout, index: u64, input: &mut Input<'_>) -> (u64, u64, u64) {
    const COPIED: u64 = 1 << 63;
    let header = &layout.header;
    let cluster = header.cluster();
    let data = match header.incompatible & DATA_FILE {
        0 => layout.clusters + input.below(POOL as usize) as u64 * cluster,
        _ => index * cluster + u64::from(input.u8() % 4) * header.l1_reach(),
    };
    let (entry, step) = match input.below(14) {
        0 => (0, 0),
        1 => (1, 0),
        2 => (data | COPIED | 1, cluster),
        3 => (data, cluster),
        4 => (data + 512, cluster),
        5 => (input.u64(), 512),
        6 => (data | u64::from(input.u16()), 0),
        7 | 8 => (compressed(layout, input), 0),
        9 => (compressed(layout, input) ^ 1 << (input.u8() % 64), 0),
        10 => ((data | COPIED) ^ 1 << (input.u8() % 64), cluster),
        _ => (data | COPIED, cluster),
    };
    let bitmap = match input.below(8) {
        0 => 0,
        1 => 0xffff_ffff,
        2 => 0xffff_ffff << 32,
        3 => input.u64(),
        4 => u64::from(input.u32()) << 32,
        5 => u64::from(input.u32()),
        // Zero and data subclusters that do not contradict each other.
        _ => {
            let (zero, used) = (input.u32(), input.u32());
            u64::from(zero) << 32 | u64::from(used & !zero)
        }
    };
    (entry, step, bitmap)
}

fn compressed(layout: &Layout, input: &mut Input<'_>) -> u64 {
    let bits = layout.header.cluster_bits;
    let (host, len) = layout.streams[input.below(layout.streams.len())];
    let shift = 62 - (bits - 8);
    let sectors = (host % 512 + len).div_ceil(512) - 1;
    let sectors = match input.below(6) {
        0 => sectors.wrapping_sub(1),
        1 => sectors + 1,
        2 => input.u64(),
        _ => sectors,
    };
    let host = match input.below(8) {
        0 => host + u64::from(input.u8()),
        _ => host,
    };
    1 << 62 | (sectors & ((1 << (bits - 8)) - 1)) << shift | host
}
