//! Any bytes as a header.
//!
//! Knows: what a header that was accepted promises.
//! Does not know: the other tables.

use std::sync::Arc;

use qmpfs_qcow2::{Header, Image, ReadAt};

use super::file::File;
use super::input::Input;
use super::streams::Kind;
use super::writer;

/// Where the fields of a header lie, and how long they are.
const FIELDS: [(u64, usize); 24] = [
    (0, 4),
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 1),
    (105, 7),
    (112, 4),
    (116, 4),
    (120, 8),
    (128, 8),
];
/// Numbers at the edges of what fields allow.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    3,
    8,
    9,
    21,
    22,
    104,
    112,
    1023,
    1024,
    65536,
    65537,
    i64::MAX as u64,
    u64::MAX,
];
/// Extensions that mean something, and one that does not.
const EXTENSIONS: [u32; 6] = [
    0xe279_2aca,
    0x6803_f857,
    0x2385_2875,
    0x0537_be77,
    0x4441_5441,
    0x1234_5678,
];

/// Reads the header alone, and opens the image.
pub fn check(bytes: &[u8]) {
    check_file(bytes.to_vec());
}

/// A valid header with some fields changed.
pub fn check_fields(bytes: &[u8]) {
    check_file(make(&mut Input::new(bytes)).bytes());
}

fn check_file(bytes: Vec<u8>) {
    let file: Arc<dyn ReadAt> = Arc::new(bytes.clone());
    let header = Header::read(&*file);
    let opened = Image::open(Arc::clone(&file));
    let header = match header {
        Ok(header) => header,
        Err(error) => {
            let _ = error.to_string();
            assert!(opened.is_err(), "opened without a header");
            return;
        }
    };
    let word = |at: usize| {
        let rest = bytes.get(at..).unwrap_or(&[]);
        let mut word = [0; 8];
        word.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        u64::from_be_bytes(word)
    };
    let half = |at| word(at) >> 32;
    assert_eq!(word(0), 0x5146_49fb << 32 | u64::from(header.version));
    assert!((2..=3).contains(&header.version));
    let bits = header.cluster_bits.get();
    assert!((9..=21).contains(&bits) && u64::from(bits) == half(20));
    assert_eq!(header.virtual_size, word(24) / 512 * 512);
    assert_eq!(half(32), 0, "encryption is never accepted");
    let entry = if header.features.extended_l2() { 16 } else { 8 };
    assert!(entry == 8 || bits >= 14, "subclusters of a sector at least");
    let reach = header.cluster_bits.size() / entry * header.cluster_bits.size();
    assert!(
        word(24).div_ceil(reach) <= half(36),
        "the L1 table is long enough"
    );
    assert!(half(36) * 8 <= 32 << 20, "the L1 table is bounded");
    assert!(u64::from(header.snapshot_count) <= 65536);
    assert_eq!(header.features.incompatible >> 5, 0, "unknown features");
    let start = if header.version == 3 { half(100) } else { 72 };
    let end = match word(8) {
        0 => header.cluster_bits.size(),
        backing => backing,
    };
    let mut at = start;
    while at < end && half(at as usize) != 0 {
        let (magic, len) = (half(at as usize), half(at as usize + 4));
        assert!(at + 8 + len <= end, "an extension beyond its room");
        assert_ne!(magic, 0x0537_be77, "an encryption without encryption");
        at += 8 + len.next_multiple_of(8);
    }
    if let Some(backing) = &header.backing {
        assert!((1..=1023).contains(&backing.name.len()));
        assert!(!backing.name.contains(&0));
    }
    if let Some(name) = &header.data_file {
        assert!(name.len() <= 4095 && !name.contains(&0));
    }
    if let Ok(image) = opened {
        assert_eq!(image.virtual_size(), header.virtual_size);
        assert!(!header.features.data_file());
    }
}

/// A header with some fields changed, and extensions and names behind it.
pub fn make(input: &mut Input<'_>) -> File {
    let shape = input.u8();
    let cluster_bits = 9 + u32::from(input.u8()) % 8;
    let mut header = writer::Header {
        version: if shape & 3 == 0 { 2 } else { 3 },
        cluster_bits,
        virtual_size: u64::from(input.u16()) * 512,
        kind: if shape & 4 == 0 {
            Kind::Zlib
        } else {
            Kind::Zstd
        },
        incompatible: 0,
        autoclear: 0,
        l1: 2 << cluster_bits,
        l1_entries: 0,
        snapshots: 0,
        snapshot_count: 0,
    };
    header.l1_entries = header.l1_needed();
    let mut file = File::default();
    header.write(&mut file);
    let mut at = if header.version == 3 { 112 } else { 72 };
    for _ in 0..shape >> 3 & 7 {
        let magic = input.choose(&EXTENSIONS);
        let body = match magic {
            // The bitmaps extension is checked in full.
            0x2385_2875 if shape & 0x40 == 0 => bitmaps(input),
            _ => {
                let len = usize::from(input.u8());
                input.take(len).to_vec()
            }
        };
        let len = (body.len() as u32).wrapping_add(match input.one_in(8) {
            true => u32::from(input.u8()),
            false => 0,
        });
        file.put(at, [magic.to_be_bytes(), len.to_be_bytes()].concat());
        file.put(at + 8, body);
        at += 8 + u64::from(len).next_multiple_of(8);
    }
    if shape & 0x80 != 0 {
        file.put(8, (at + 8).to_be_bytes());
        let len = usize::from(input.u8());
        file.put(16, (len as u32).to_be_bytes());
        file.put(at + 8, input.take(len));
    }
    while !input.is_empty() {
        let (at, len) = input.choose(&FIELDS);
        let value = match input.below(4) {
            0 => input.choose(&EDGES),
            1 => u64::from(input.u8()) << cluster_bits,
            2 => file.word(at) >> (64 - 8 * len) ^ 1 << (input.u8() % 64),
            _ => input.u64(),
        };
        file.put(at, &value.to_be_bytes()[8 - len..]);
    }
    file
}

fn bitmaps(input: &mut Input<'_>) -> Vec<u8> {
    let count = u32::from(input.u8());
    let size = u64::from(input.u16());
    let at = u64::from(input.u8()) * 512;
    let mut body = count.to_be_bytes().to_vec();
    body.extend([0; 4]);
    body.extend(size.to_be_bytes());
    body.extend(at.to_be_bytes());
    body
}
