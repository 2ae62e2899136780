//! Every field of an image, and what is put in its place.
//!
//! Knows: where the fields of a valid image are, by the format's own names.
//! Does not know: what anybody says to the lie.

use std::collections::BTreeSet;

use crate::specimens::Specimen;

const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

/// One image with one field changed.
pub(crate) struct Lie {
    /// Specimen, field, and the new value: unique and stable.
    pub(crate) name: String,
    pub(crate) change: Change,
    /// Whether internal snapshots are compared as well.
    pub(crate) touches_snapshots: bool,
}

/// What is done to the image.
pub(crate) enum Change {
    Write { at: u64, bytes: Vec<u8> },
    Cut { len: u64 },
}

/// Places at which an image is cut off.
const CUTS: u64 = 48;

/// A number in an image.
struct Field {
    name: String,
    at: u64,
    width: usize,
    bits: bool,
    touches_snapshots: bool,
}

/// The fixed fields of the header.
const HEADER: [(&str, u64, usize); 20] = [
    ("magic", 0, 4),
    ("version", 4, 4),
    ("backing_file_offset", 8, 8),
    ("backing_file_size", 16, 4),
    ("cluster_bits", 20, 4),
    ("size", 24, 8),
    ("crypt_method", 32, 4),
    ("l1_size", 36, 4),
    ("l1_table_offset", 40, 8),
    ("refcount_table_offset", 48, 8),
    ("refcount_table_clusters", 56, 4),
    ("nb_snapshots", 60, 4),
    ("snapshots_offset", 64, 8),
    ("incompatible_features", 72, 8),
    ("compatible_features", 80, 8),
    ("autoclear_features", 88, 8),
    ("refcount_order", 96, 4),
    ("header_length", 100, 4),
    ("compression_type", 104, 1),
    ("padding", 105, 1),
];

/// The fields of a snapshot table entry, those of its extra data at the end.
const SNAPSHOT: [(&str, u64, usize); 12] = [
    ("l1_table_offset", 0, 8),
    ("l1_size", 8, 4),
    ("id_str_size", 12, 2),
    ("name_size", 14, 2),
    ("date_sec", 16, 4),
    ("date_nsec", 20, 4),
    ("vm_clock_nsec", 24, 8),
    ("vm_state_size", 32, 4),
    ("extra_data_size", 36, 4),
    ("extra.vm_state_size", 40, 8),
    ("extra.disk_size", 48, 8),
    ("extra.icount", 56, 8),
];

/// The fields of a bitmap directory entry.
const BITMAP: [(&str, u64, usize); 7] = [
    ("bitmap_table_offset", 0, 8),
    ("bitmap_table_size", 8, 4),
    ("flags", 12, 4),
    ("type", 16, 1),
    ("granularity_bits", 17, 1),
    ("name_size", 18, 2),
    ("extra_data_size", 20, 4),
];

/// What is found in a valid image.
struct Map<'a> {
    image: &'a [u8],
    cluster: u64,
    fields: Vec<Field>,
}

/// Every lie about every field of the specimen.
pub(crate) fn about(specimen: &Specimen) -> Vec<Lie> {
    let mut map = Map {
        image: &specimen.bytes,
        cluster: 1 << number(&specimen.bytes, 20, 4),
        fields: Vec::new(),
    };
    let v3 = number(&specimen.bytes, 4, 4) == 3;
    for (name, at, width) in HEADER {
        if at < 72 || v3 {
            map.field(format!("header.{name}"), at, width);
        }
        if name.ends_with("_features") && v3 {
            map.last().bits = true;
        }
    }
    if v3 {
        map.extensions();
    }
    let extended = v3 && number(&specimen.bytes, 72, 8) & 16 != 0;
    map.active_tables(extended);
    map.snapshots(extended);
    map.refcounts();
    map.lies(specimen.name)
}

impl Map<'_> {
    fn field(&mut self, name: String, at: u64, width: usize) {
        self.fields.push(Field {
            name,
            at,
            width,
            bits: false,
            touches_snapshots: false,
        });
    }

    fn last(&mut self) -> &mut Field {
        self.fields.last_mut().expect("a field was just pushed")
    }

    fn word(&self, at: u64) -> u64 {
        number(self.image, at, 8)
    }

    fn extensions(&mut self) {
        let mut at = number(self.image, 100, 4);
        loop {
            let (magic, len) = (number(self.image, at, 4), number(self.image, at + 4, 4));
            let name = format!("extension {magic:#x}");
            self.field(format!("{name}.magic"), at, 4);
            self.field(format!("{name}.length"), at + 4, 4);
            if magic == 0 {
                return;
            }
            if magic == 0x2385_2875 {
                for (field, offset, width) in [
                    ("nb_bitmaps", 8, 4),
                    ("reserved", 12, 4),
                    ("directory_size", 16, 8),
                    ("directory_offset", 24, 8),
                ] {
                    self.field(format!("{name}.{field}"), at + offset, width);
                }
                let directory = self.word(at + 24);
                for (field, offset, width) in BITMAP {
                    self.field(format!("bitmap.{field}"), directory + offset, width);
                }
                let table = self.word(directory);
                self.field("bitmap table entry".into(), table, 8);
            }
            at += 8 + len.next_multiple_of(8);
        }
    }

    /// The L1 table's first entries, and one L2 entry of each kind.
    fn active_tables(&mut self, extended: bool) {
        let l1 = self.word(40);
        self.tables("", l1, number(self.image, 36, 4), extended);
    }

    fn tables(&mut self, prefix: &str, l1: u64, entries: u64, extended: bool) {
        for index in 0..entries.min(2) {
            self.field(format!("{prefix}L1 entry {index}"), l1 + index * 8, 8);
            self.last().bits = index == 0;
        }
        let words = if extended { 2 } else { 1 };
        let per_table = self.cluster / 8 / words;
        let disk = number(self.image, 24, 8).div_ceil(self.cluster);
        let mut seen = BTreeSet::new();
        for index in 0..disk {
            let table = self.word(l1 + index / per_table * 8) & L1_OFFSET;
            if table == 0 {
                continue;
            }
            let at = table + index % per_table * 8 * words;
            let entry = self.word(at);
            let bitmap = if extended { self.word(at + 8) } else { 0 };
            let kind = kind_of(entry, bitmap, extended);
            if !seen.insert(kind) {
                continue;
            }
            self.field(format!("{prefix}L2 entry of {kind}"), at, 8);
            self.last().bits = true;
            if extended {
                self.field(format!("{prefix}L2 bitmap of {kind}"), at + 8, 8);
                self.last().bits = true;
            }
            if entry & COMPRESSED != 0 {
                let bits = 62 - (self.cluster.trailing_zeros() - 8);
                let host = entry & ((1 << bits) - 1);
                for byte in 0..6 {
                    self.field(format!("{prefix}stream byte {byte}"), host + byte, 1);
                    self.last().bits = true;
                }
            }
        }
    }

    fn snapshots(&mut self, extended: bool) {
        let mut at = self.word(64);
        let before = self.fields.len();
        for index in 0..number(self.image, 60, 4) {
            for (field, offset, width) in SNAPSHOT {
                self.field(format!("snapshot {index}.{field}"), at + offset, width);
            }
            if index == 0 {
                let (l1, entries) = (self.word(at), number(self.image, at + 8, 4));
                self.tables("snapshot 0 ", l1, entries, extended);
            }
            let strings = number(self.image, at + 12, 2) + number(self.image, at + 14, 2);
            at += (40 + number(self.image, at + 36, 4) + strings).next_multiple_of(8);
        }
        for field in &mut self.fields[before..] {
            field.touches_snapshots = true;
        }
        for field in &mut self.fields {
            field.touches_snapshots |= field.name.contains("snapshots");
        }
    }

    fn refcounts(&mut self) {
        let table = self.word(48);
        self.field("refcount table entry".into(), table, 8);
        let block = self.word(table);
        self.field("refcount".into(), block, 2);
    }

    fn lies(&self, specimen: &str) -> Vec<Lie> {
        let mut lies = Vec::new();
        for field in &self.fields {
            let now = number(self.image, field.at, field.width);
            let max = u64::MAX >> (64 - field.width * 8);
            for (word, value) in self.values(field, now, max) {
                lies.push(Lie {
                    name: format!("{specimen}: {} = {word}", field.name),
                    change: Change::Write {
                        at: field.at,
                        bytes: value.to_be_bytes()[8 - field.width..].to_vec(),
                    },
                    touches_snapshots: field.touches_snapshots,
                });
            }
        }
        let whole = self.image.len() as u64;
        for part in 0..CUTS {
            // Whole clusters, and some bytes more or less than that.
            let place = (whole * part / CUTS).next_multiple_of(self.cluster);
            let len = (place + [0, 1, 511][part as usize % 3]).min(whole - 1);
            lies.push(Lie {
                name: format!("{specimen}: the file = cut in part {part}"),
                change: Change::Cut { len },
                touches_snapshots: true,
            });
        }
        lies
    }

    /// Values that are not the one that is there, each with a word for it.
    fn values(&self, field: &Field, now: u64, max: u64) -> Vec<(String, u64)> {
        let end = (self.image.len() as u64).next_multiple_of(self.cluster);
        let mut values: Vec<(String, u64)> = vec![
            ("0".into(), 0),
            ("1".into(), 1),
            ("max".into(), max),
            ("max / 2".into(), max >> 1),
            ("sign bit".into(), max / 2 + 1),
            ("itself - 1".into(), now.wrapping_sub(1) & max),
            ("itself + 1".into(), now.wrapping_add(1) & max),
        ];
        match field.width {
            8 => values.extend([
                ("itself + 512".into(), now.wrapping_add(512)),
                ("itself + a cluster".into(), now.wrapping_add(self.cluster)),
                ("its own place".into(), field.at & !(self.cluster - 1)),
                ("the L1 table".into(), self.word(40)),
                ("the refcount table".into(), self.word(48)),
                ("the end of the file".into(), end),
                ("far beyond the file".into(), end << 20),
                ("2^56".into(), 1 << 56),
                ("2^62".into(), 1 << 62),
            ]),
            4 => values.extend([
                ("2".into(), 2),
                ("4".into(), 4),
                ("8".into(), 8),
                ("16".into(), 16),
                ("22".into(), 22),
                ("1025".into(), 1025),
                ("65537".into(), 65537),
                ("2^24".into(), 1 << 24),
            ]),
            _ => {}
        }
        if field.bits {
            let bits = field.width as u32 * 8;
            values.extend((0..bits).map(|bit| (format!("bit {bit} flipped"), now ^ 1 << bit)));
        }
        let mut seen = BTreeSet::from([now]);
        values.retain(|(_, value)| seen.insert(*value));
        values
    }
}

fn kind_of(entry: u64, bitmap: u64, extended: bool) -> &'static str {
    let host = entry & L1_OFFSET != 0;
    if entry & COMPRESSED != 0 {
        return "a compressed cluster";
    }
    if extended {
        return match (host, bitmap as u32, (bitmap >> 32) as u32) {
            (true, u32::MAX, _) => "a data cluster",
            (true, 0, _) => "zero subclusters with a place",
            (true, ..) => "some subclusters",
            (false, _, 0) => "no cluster",
            (false, ..) => "zero subclusters",
        };
    }
    match (host, entry & 1 != 0) {
        (true, false) => "a data cluster",
        (true, true) => "a zero cluster with a place",
        (false, true) => "a zero cluster",
        (false, false) => "no cluster",
    }
}

/// A big-endian number.
fn number(image: &[u8], at: u64, width: usize) -> u64 {
    let bytes = image.get(at as usize..at as usize + width).unwrap_or(&[]);
    bytes.iter().fold(0, |n, &byte| n << 8 | u64::from(byte))
}
