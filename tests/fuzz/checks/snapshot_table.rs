//! Any bytes as a snapshot table, in an image that is else valid.
//!
//! Knows: the table by the book, and QEMU's limits on it.
//! Does not know: the reader under test, but for calling it.

use std::sync::Arc;

use qmpfs_qcow2::{Chain, Image, Layer};

use super::file::File;
use super::input::Input;
use super::streams::Kind;
use super::writer::{Header, pattern, snapshot_entry};

/// Entries of a large table: QEMU's limit of 65536 would take seconds.
const MANY: u32 = 2048;
/// Views opened of one table: each opening reads it again.
const MAX_VIEWS: usize = 8;
/// QEMU's limit on the extra data of an entry.
const MAX_EXTRA: u64 = 1024;
/// QEMU's limit on the whole table.
const MAX_TABLE: u64 = 64 << 20;

/// An entry by the book.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    l1: u64,
    l1_entries: u32,
    id: Vec<u8>,
    name: Vec<u8>,
    date: (u32, u32),
    clock: u64,
    state: u64,
    size: u64,
    icount: Option<u64>,
}

/// Makes an image, reads its table, and compares.
pub fn check(bytes: &[u8]) {
    let file = Arc::new(make(&mut Input::new(bytes)));
    let count = (file.word(60) >> 32) as u32;
    let (table, current) = (file.word(64), file.word(24));
    let expected = by_the_book(&file, table, count, current);
    let image = Image::open(file.clone()).expect("a valid header");
    let snapshots = match (image.snapshots(), expected) {
        (Ok(snapshots), Some(expected)) => {
            let ours: Vec<Entry> = snapshots
                .iter()
                .map(|s| Entry {
                    l1: s.l1_offset().0,
                    l1_entries: s.l1_entries(),
                    id: s.id.clone(),
                    name: s.name.clone(),
                    date: (s.date_secs, s.date_nanos),
                    clock: s.vm_clock_nanos,
                    state: s.vm_state_size,
                    size: s.virtual_size,
                    icount: s.icount,
                })
                .collect();
            assert_eq!(ours, expected);
            snapshots
        }
        (Err(_), None) => return,
        (ours, book) => panic!("we {ours:?}, by the book {book:?}"),
    };
    for snapshot in snapshots.iter().take(MAX_VIEWS) {
        let _ = (snapshot.id_str(), snapshot.name_str());
        let Ok(view) = image.at_snapshot(snapshot) else {
            continue;
        };
        let chain = Chain::new(vec![Arc::new(Layer::Qcow2(view))]);
        let size = chain.virtual_size();
        assert_eq!(size, snapshot.virtual_size);
        let mut buf = vec![0; 8192];
        for at in [0, 512, 32 << 10, size / 2, size.saturating_sub(100), size] {
            if let Ok(n) = chain.read_at(&mut buf, at) {
                assert_eq!(n as u64, (size - at.min(size)).min(8192));
            }
            let _ = chain.extent_at(at, 1 << 20);
        }
    }
}

/// The table, or nothing where QEMU refuses it.
fn by_the_book(file: &File, table: u64, count: u32, current: u64) -> Option<Vec<Entry>> {
    let word = |at| file.word(at);
    let half = |at| (file.word(at) >> 32) as u32;
    let mut at = table;
    let mut entries = Vec::new();
    for _ in 0..count {
        let id_len = word(at + 12) >> 48;
        let name_len = word(at + 14) >> 48;
        let extra = u64::from(half(at + 36));
        let strings = at + 40 + extra;
        let end = strings + id_len + name_len;
        // What is beyond the file's end is zeros.
        if extra > MAX_EXTRA || end - table > MAX_TABLE {
            return None;
        }
        let string = |at, len: u64| {
            let mut bytes = vec![0; len as usize];
            file.read(at, &mut bytes);
            bytes
        };
        let size = if extra >= 16 { word(at + 48) } else { current };
        entries.push(Entry {
            l1: word(at),
            l1_entries: half(at + 8),
            id: string(strings, id_len),
            name: string(strings + id_len, name_len),
            date: (half(at + 16), half(at + 20)),
            clock: word(at + 24),
            state: match extra >= 8 {
                true => word(at + 40),
                false => half(at + 32).into(),
            },
            size: size / 512 * 512,
            icount: (extra >= 24 && word(at + 56) != u64::MAX).then(|| word(at + 56)),
        });
        at = table + (end - table).next_multiple_of(8);
    }
    Some(entries)
}

/// An image whose snapshot table is the rest of the input.
pub fn make(input: &mut Input<'_>) -> File {
    let shape = input.u8();
    let cluster = 512;
    let mut header = Header {
        version: if shape & 1 == 0 { 3 } else { 2 },
        cluster_bits: 9,
        virtual_size: 48 << 10,
        kind: Kind::Zlib,
        incompatible: 0,
        autoclear: 0,
        l1: 2 * cluster,
        l1_entries: 2,
        snapshots: 5 * cluster,
        snapshot_count: u32::from(input.u8()),
    };
    if shape & 0xf0 == 0xf0 {
        header.snapshot_count = u32::from(input.u16()) % MANY;
    }
    let mut file = File::default();
    header.write(&mut file);
    // Both the active L1 table and, a cluster further on, one for snapshots.
    for l1 in [2 * cluster, 2 * cluster + 8, 3 * cluster, 3 * cluster + 8] {
        file.put(l1, ((4 * cluster) | (1 << 63)).to_be_bytes());
    }
    for i in 0..40 {
        file.put(4 * cluster + i * 8, ((512 * i) | (1 << 63)).to_be_bytes());
    }
    let mut table = Vec::new();
    for _ in 0..shape >> 1 & 7 {
        let id = input.take(1);
        let name = pattern(table.len() as u64, usize::from(input.u8()));
        let l1 = u64::from(input.u8() % 8) * 512 + u64::from(input.u8() / 200);
        let (entries, size) = (input.u8().into(), u64::from(input.u32() >> 12));
        let mut entry = snapshot_entry(id, &name, l1, entries, size);
        let extra = input.choose(&[24, 24, 24, 0, 8, 15, 16, 23, 32, MAX_EXTRA, MAX_EXTRA + 1]);
        set_extra(&mut entry, extra as usize, id.len() + name.len());
        if input.one_in(4) {
            let at = input.below(44);
            entry[at] = input.u8();
        }
        table.extend(entry);
    }
    table.extend(input.rest());
    file.put(header.snapshots, table);
    file
}

/// Gives an entry extra data of another length than 24, and pads it again.
fn set_extra(entry: &mut Vec<u8>, len: usize, strings: usize) {
    entry.truncate(64 + strings);
    let mut extra = entry[40..64].to_vec();
    extra.resize(len, 0xee);
    entry.splice(40..64, extra);
    entry[36..40].copy_from_slice(&(len as u32).to_be_bytes());
    entry.resize(entry.len().next_multiple_of(8), 0);
}
