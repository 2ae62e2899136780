//! Any bytes as a compressed cluster: taken exactly where QEMU takes them, with the same bytes.
//!
//! Knows: one deliberate difference, docs/decisions/0005; anything else panics.

use std::sync::Arc;

use qmpfs_qcow2::{CompressedCluster, HostOffset, Image, Mapping};

use super::encode;
use super::file::File;
use super::input::Input;
use super::streams::{self, Kind};
use super::writer::{Header, pattern, rows};

/// A stream and how it is to be read.
pub struct Made {
    /// How it is compressed, or pretends to be.
    pub kind: Kind,
    /// The cluster size as an exponent of two.
    pub cluster_bits: u32,
    /// Where it starts in a sector.
    pub within_sector: u64,
    /// The stream; its length ends on a sector in the file.
    pub stream: Vec<u8>,
}

/// Decompresses and compares.
pub fn check(bytes: &[u8]) {
    let made = make(&mut Input::new(bytes));
    let cluster = 1usize << made.cluster_bits;
    let qemu = streams::decompress(made.kind, &made.stream, cluster);

    if made.kind == Kind::Zlib {
        let book = streams::by_the_book(&made.stream, cluster);
        assert!(book == qemu, "the two oracles differ");
    }

    let (file, host) = image(&made);
    let image = Image::open(Arc::new(file)).expect("a valid header");
    let place = CompressedCluster {
        host: HostOffset(host),
        len: made.stream.len() as u32,
    };
    let whole = Mapping::Compressed {
        cluster: place,
        within: 0,
    };
    let mut ours = vec![0xee; cluster];
    let taken = image.read_mapped(whole, &mut ours).is_ok();
    match (&qemu, taken) {
        (Some(qemu), true) => assert!(*qemu == ours, "other bytes than QEMU"),
        (None, false) => {}
        (Some(_), false) => panic!("refused what QEMU takes"),
        (None, true) => {
            let tolerated = streams::tolerated(made.kind, &made.stream, cluster);
            let tolerated = tolerated.expect("taken what QEMU refuses");
            assert!(tolerated == ours, "other bytes than a lenient decoder");
        }
    }
    let kept = image.decompressed(place).ok();
    assert_eq!(kept.is_some(), taken, "decompressed as it is read");
    assert!(kept.is_none_or(|kept| *kept == *ours), "what is kept");
    // A part goes through the cache; twice, since the second is another way.
    for _ in 0..2 {
        let mut part = vec![0xdd; cluster / 2];
        let again = image.read_mapped(whole, &mut part).is_ok();
        assert_eq!(again, taken, "a part is read as the whole is");
        assert!(!taken || part == ours[..part.len()], "bytes of a part");
    }
}

/// A stream of the input's choosing: raw bytes, or an encoder's work with some damage.
pub fn make(input: &mut Input<'_>) -> Made {
    let shape = input.u8();
    let kind = if shape & 1 == 0 {
        Kind::Zlib
    } else {
        Kind::Zstd
    };
    let cluster_bits = input.choose(&[9, 9, 10, 12, 12, 14, 16]);
    let within_sector = u64::from(input.u16()) % 512;
    let cluster = 1usize << cluster_bits;
    let mut stream = match shape >> 1 & 3 {
        0 | 1 => input.rest().to_vec(),
        how => {
            let level = u32::from(input.u8()) % 10;
            let len = match input.below(4) {
                0 => cluster + usize::from(input.u8()),
                1 => cluster - 1 - usize::from(input.u8()),
                _ => cluster,
            };
            let seed = input.u8().into();
            let mut plain = match how {
                2 => rows(seed, len),
                _ => pattern(seed, len),
            };
            // Long runs of zeros, and parts of what the input holds.
            let at = input.below(len + 1);
            plain[at..].fill(0);
            let mut stream = encode::with_level(kind, &plain, level);
            for _ in 0..input.below(6) {
                let at = input.below(stream.len().max(1));
                if let Some(byte) = stream.get_mut(at) {
                    *byte ^= input.u8();
                }
            }
            stream.extend(input.rest());
            stream
        }
    };
    // The entry counts sectors: the stream ends with one, after at most twice the cluster.
    let end = (within_sector + stream.len().max(1) as u64).next_multiple_of(512);
    let end = end.min(2 * cluster as u64);
    stream.resize((end - within_sector) as usize, 0);
    Made {
        kind,
        cluster_bits,
        within_sector,
        stream,
    }
}

/// An image of one cluster, which is this one; and where the stream lies in it.
pub fn image(made: &Made) -> (File, u64) {
    let header = Header {
        version: 3,
        cluster_bits: made.cluster_bits,
        virtual_size: 1 << made.cluster_bits,
        kind: made.kind,
        incompatible: 0,
        autoclear: 0,
        l1: 2 << made.cluster_bits,
        l1_entries: 1,
        snapshots: 0,
        snapshot_count: 0,
    };
    let table = 3 << made.cluster_bits;
    let host = (4 << made.cluster_bits) + made.within_sector;
    let sectors = (made.within_sector + made.stream.len() as u64) / 512 - 1;
    let entry = 1 << 62 | sectors << (62 - (made.cluster_bits - 8)) | host;
    let mut file = File::default();
    header.write(&mut file);
    file.put(header.l1, (table | 1u64 << 63).to_be_bytes());
    file.put(table, entry.to_be_bytes());
    file.put(host, &made.stream);
    (file, host)
}
