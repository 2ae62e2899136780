//! Images that lie: no panic, no hang, no unbounded memory, and never other bytes than the tools.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::numbers::Numbers;
use common::{Lab, peek64, poke, read_all};
use qmpfs_qcow2::{Caches, Chain, Error, GuestOffset, Image, Layer, OpenOptions, ReadAt};

/// How many times the usual rounds to go: `QCOW2_TEST_EFFORT=100` for a night.
fn effort() -> u64 {
    std::env::var("QCOW2_TEST_EFFORT")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1)
}

/// Small images of every kind, with all that can be lied about in them.
fn seeds(lab: &Lab) -> Vec<Vec<u8>> {
    let kinds = [
        "cluster_size=512",
        "cluster_size=4k,compat=0.10",
        "cluster_size=4k,compression_type=zstd",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=64k",
    ];
    kinds
        .iter()
        .map(|options| {
            lab.img(&format!("create -f qcow2 -o {options} s.qcow2 256k"));
            lab.io(
                "s.qcow2",
                "write -c -P 1 0 64k; write -P 2 64k 20k; write -z 96k 10k",
            );
            lab.img("snapshot -c first s.qcow2");
            lab.io("s.qcow2", "write -P 3 128k 3k; write -c -P 4 192k 64k");
            lab.img("snapshot -c second s.qcow2");
            std::fs::read(lab.path("s.qcow2")).expect("read")
        })
        .collect()
}

/// Where lies matter: the header, and the tables the header and the L1 table name.
fn places(image: &[u8]) -> Vec<u64> {
    let word = |at: u64| -> u64 {
        let bytes = image.get(at as usize..at as usize + 8);
        bytes.map_or(0, |b| u64::from_be_bytes(b.try_into().expect("8 bytes")))
    };
    let l1 = word(40);
    let l2 = word(l1) & 0x00ff_ffff_ffff_fe00;
    let data = word(l2) & 0x00ff_ffff;
    let mut places: Vec<u64> = (0..200).collect();
    places.extend(l1..l1 + 64);
    places.extend((l2..l2 + 512).chain(data..data + 64));
    places.extend(word(64)..word(64) + 160);
    places.retain(|&place| place < image.len() as u64);
    places
}

fn mutate(image: &mut [u8], places: &[u64], numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        let at = places[numbers.below(places.len() as u64) as usize] as usize;
        match numbers.below(4) {
            0 => image[at] = numbers.next() as u8,
            1 => image[at] ^= 1 << numbers.below(8),
            2 => image[at] = [0, 1, 0x7f, 0x80, 0xff][numbers.below(5) as usize],
            _ => {
                let at = at & !7;
                let value = numbers.next() >> numbers.below(64);
                if let Some(word) = image.get_mut(at..at + 8) {
                    word.copy_from_slice(&value.to_be_bytes());
                }
            }
        }
    }
}

/// Reads what can be read of an image that may be a lie.
fn exercise(image: Image) {
    let mut buf = vec![0; 64 << 10];
    let snapshots = image.snapshots().unwrap_or_default();
    let views: Vec<_> = snapshots
        .iter()
        .take(3)
        .filter_map(|s| image.at_snapshot(s).ok())
        .collect();
    for image in views.into_iter().chain([image]) {
        let chain = Chain::new(vec![Arc::new(Layer::Qcow2(image))]);
        let size = chain.virtual_size();
        for at in [
            0,
            64 << 10,
            128 << 10,
            192 << 10,
            size / 2,
            size.saturating_sub(100),
            size,
        ] {
            let _ = chain.read_at(&mut buf, at);
            let _ = chain.read_at(&mut buf[..1000], at);
            let _ = chain.extent_at(at, 1 << 30);
        }
        if size <= 1 << 30 {
            let _ = chain.allocated_bytes();
        }
    }
}

#[test]
fn thousands_of_mutated_images_neither_panic_nor_hang() {
    let lab = Lab::new();
    let mut numbers = Numbers(1);
    for seed in seeds(&lab) {
        let places = places(&seed);
        for round in 0..800 * effort() {
            let mut image = seed.clone();
            mutate(&mut image, &places, &mut numbers);
            let started = Instant::now();
            let caches = Arc::new(Caches::default());
            let options = OpenOptions {
                data_file: None,
                caches: Some(Arc::clone(&caches)),
            };
            if let Ok(image) = Image::open_with(Arc::new(image), options) {
                exercise(image);
            }
            let took = started.elapsed();
            assert!(took < Duration::from_secs(5), "round {round} took {took:?}");
            assert!(caches.bytes() <= 24 << 20);
        }
    }
}

#[test]
fn mutated_images_read_as_the_tools_read_them_or_not_at_all() {
    let lab = Lab::new();
    let mut numbers = Numbers(2);
    let (mut read, mut refused) = (0, 0);
    for seed in seeds(&lab) {
        let places = places(&seed);
        for round in 0..40 * effort() {
            let mut bytes = seed.clone();
            mutate(&mut bytes, &places, &mut numbers);
            // A disk of exabytes is for the other test.
            if u64::from_be_bytes(bytes[24..32].try_into().expect("8 bytes")) > 8 << 20 {
                continue;
            }
            // So is a backing file, which the tool would look for.
            if bytes[8..20].iter().any(|&b| b != 0) {
                continue;
            }
            std::fs::write(lab.path("m.qcow2"), &bytes).expect("write");
            let expected = lab.try_convert("m.qcow2", "-f qcow2");
            let mut table_broken = false;
            let got = Image::open(Arc::new(bytes)).and_then(|image| {
                table_broken = image.snapshots().is_err();
                read_all(&Chain::new(vec![Arc::new(Layer::Qcow2(image))]))
            });
            match (expected, got) {
                (Some(expected), Ok(got)) => {
                    assert!(expected == got, "round {round}");
                    read += 1;
                }
                (None, Err(_)) => refused += 1,
                // The tools refuse a whole image for its snapshot table; here that is read apart.
                (None, Ok(_)) if table_broken => {}
                // The fast decompressor takes two codes that zlib calls invalid: see `compressed`.
                (None, Ok(_)) if lab.has_stream_that_zlib_refuses("m.qcow2") => {}
                (_, got) => {
                    let complaint = lab.img_complaint("convert -f qcow2 -O raw m.qcow2 m.raw");
                    let bytes = std::fs::read(lab.path("m.qcow2")).expect("read");
                    let changed: Vec<_> = (0..bytes.len())
                        .filter(|&i| bytes[i] != seed[i])
                        .map(|i| (i, seed[i], bytes[i]))
                        .collect();
                    let got = got.map(|_| ());
                    panic!("round {round}: we {got:?}, tools {complaint:?}: {changed:x?}");
                }
            }
        }
    }
    assert!(read > 40 && refused > 20, "{read} read, {refused} refused");
}

/// A file of which only some bytes exist, however large it says it is.
struct Huge {
    bytes: Vec<u8>,
    size: u64,
}

impl ReadAt for Huge {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let rest = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buf.len().min(rest);
        buf.fill(0);
        self.bytes.read_at(&mut buf[..len], offset)?;
        Ok(len)
    }

    fn size(&self) -> std::io::Result<u64> {
        Ok(self.size)
    }
}

#[test]
fn tables_beyond_the_limits_are_refused_even_in_a_huge_file() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1M");
    let original = std::fs::read(lab.path("a.qcow2")).expect("read");
    let open = |changes: &[(usize, &[u8])]| {
        let mut bytes = original.clone();
        for (at, new) in changes {
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
        Image::open(Arc::new(Huge {
            bytes,
            size: 1 << 60,
        }))
    };
    let corrupt = |result: Result<Image, Error>| matches!(result, Err(Error::Corrupt(_)));
    let be = u32::to_be_bytes;
    assert!(open(&[]).is_ok());
    assert!(open(&[(36, &be(4 << 20))]).is_ok(), "an L1 table of 32 MiB");
    assert!(corrupt(open(&[(36, &be((4 << 20) + 1))])), "a larger one");
    assert!(
        corrupt(open(&[(36, &be(0))])),
        "an L1 table too small for the disk"
    );
    assert!(
        corrupt(open(&[(40, &(1u64 << 63).to_be_bytes())])),
        "an L1 table nowhere"
    );
    assert!(
        corrupt(open(&[(40, &0x30001u64.to_be_bytes())])),
        "an L1 table off its cluster"
    );
    assert!(corrupt(open(&[(60, &be(65537))])), "too many snapshots");
    assert!(
        corrupt(open(&[(64, &1u64.to_be_bytes())])),
        "a snapshot table off its cluster"
    );
    assert!(
        corrupt(open(&[(20, &be(8))])) && corrupt(open(&[(20, &be(22))])),
        "cluster sizes"
    );
    assert!(
        corrupt(open(&[(100, &be(103))])) && corrupt(open(&[(100, &be(65537))])),
        "lengths"
    );
    assert!(
        corrupt(open(&[(16, &be(1024)), (8, &600u64.to_be_bytes())])),
        "backing name"
    );
    assert!(
        corrupt(open(&[(116, &be(u32::MAX))])),
        "an extension without end"
    );
    assert!(corrupt(open(&[(56, &be(0))])), "no refcounts");
    // 65536 snapshots of nothing are many, but not forever.
    let many = open(&[(60, &be(65536)), (64, &0x50000u64.to_be_bytes())]).expect("open");
    assert_eq!(many.snapshots().expect("empty entries").len(), 65536);
}

#[test]
fn a_table_that_names_itself_ends() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1G");
    lab.io("a.qcow2", "write -P 1 0 64k");
    let path = lab.path("a.qcow2");
    let l1 = peek64(&path, 40);
    let l2 = peek64(&path, l1) & 0x00ff_ffff_ffff_fe00;
    for target in [0x10000u64, l1, l2] {
        poke(&path, l1, &(target | 1 << 63).to_be_bytes());
        poke(&path, l2, &(l2 | 1 << 63).to_be_bytes());
        let image = lab.image("a.qcow2");
        let _ = image.map(GuestOffset(0), u64::MAX);
        exercise(image);
    }
}

#[test]
fn a_compressed_cluster_fills_exactly_one_cluster_or_is_refused() {
    for kind in ["zlib", "zstd"] {
        let lab = Lab::new();
        lab.img(&format!(
            "create -f qcow2 -o compression_type={kind} a.qcow2 64k"
        ));
        lab.io("a.qcow2", "write -c -P 1 0 64k");
        let path = lab.path("a.qcow2");
        let l2 = peek64(&path, peek64(&path, 40)) & 0x00ff_ffff_ffff_fe00;
        let host = peek64(&path, l2) & ((1 << 54) - 1);
        let mut streams: Vec<(bool, Vec<u8>)> = Vec::new();
        for len in [0usize, 1, 65535, 65536, 65537, 1 << 20] {
            let plain = vec![7; len];
            let stream = match kind {
                "zlib" => {
                    let mut z = libdeflater::Compressor::new(libdeflater::CompressionLvl::best());
                    let mut out = vec![0; 4096];
                    let n = z.deflate_compress(&plain, &mut out).expect("compress");
                    out.truncate(n);
                    out
                }
                _ => zstd::bulk::compress(&plain, 3).expect("compress"),
            };
            // Deflate may go on behind the cluster, as QEMU has it; a frame may not.
            streams.push((len == 65536 || (kind == "zlib" && len > 65536), stream));
        }
        for (readable, mut stream) in streams {
            stream.resize(4096, 0);
            poke(&path, host, &stream);
            // 8 sectors: the largest the entry can say here is more, but this is enough.
            poke(&path, l2, &(1u64 << 62 | 8 << 54 | host).to_be_bytes());
            let expected = lab.try_convert("a.qcow2", "-f qcow2");
            let got = read_all(&lab.chain("a.qcow2"));
            assert_eq!(expected.is_some(), readable, "{kind}");
            assert_eq!(expected, got.ok(), "{kind}");
        }
    }
}

/// A Zstandard frame of these blocks (kind, bytes they become), of repeated bytes or of raw ones.
fn zstd_frame(window_bits: u32, blocks: &[(&str, usize)]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, ((window_bits - 10) << 3) as u8];
    for (i, &(kind, len)) in blocks.iter().enumerate() {
        let last = u32::from(i + 1 == blocks.len());
        let (kind, body) = match kind {
            "raw" => (0, vec![5; len]),
            _ => (1, vec![7]),
        };
        let header = (len as u32) << 3 | kind << 1 | last;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.extend(body);
    }
    frame
}

#[test]
fn zstandard_frames_are_taken_as_the_tools_take_them() {
    let lab = Lab::new();
    lab.img("create -f qcow2 -o compression_type=zstd a.qcow2 64k");
    lab.io("a.qcow2", "write -c -P 1 0 64k");
    let path = lab.path("a.qcow2");
    let l2 = peek64(&path, peek64(&path, 40)) & 0x00ff_ffff_ffff_fe00;
    let host = peek64(&path, l2) & ((1 << 54) - 1);
    let whole = [("same", 65536)];
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], &[9; 4]].concat();
    let halves = zstd_frame(17, &[("same", 32768)]).repeat(2);
    let mut open_end = zstd_frame(17, &whole);
    open_end[6] &= !1;
    let sized = |mut frame: Vec<u8>, size: u32| {
        // A frame content size of four bytes, behind the window descriptor.
        frame[4] |= 0x80;
        frame.splice(6..6, size.to_le_bytes());
        frame
    };
    let checked = |sum: u32| {
        let mut frame = zstd_frame(17, &whole);
        frame[4] |= 4;
        frame.extend(sum.to_le_bytes());
        frame
    };
    let mut streams = vec![
        ("two frames".to_owned(), halves.clone()),
        ("three frames".into(), [&halves[..], &halves].concat()),
        ("half a cluster".into(), zstd_frame(17, &[("same", 32768)])),
        (
            "an empty last block".into(),
            zstd_frame(17, &[("same", 65536), ("raw", 0)]),
        ),
        ("no last block".into(), open_end),
        (
            "one byte more".into(),
            zstd_frame(17, &[("same", 65536), ("raw", 1)]),
        ),
        ("one frame more".into(), zstd_frame(17, &whole).repeat(2)),
        (
            "an empty frame first".into(),
            [zstd_frame(17, &[("raw", 0)]), zstd_frame(17, &whole)].concat(),
        ),
        (
            "an empty frame last".into(),
            [zstd_frame(17, &whole), zstd_frame(17, &[("raw", 0)])].concat(),
        ),
        (
            "a skippable frame first".into(),
            [&skippable[..], &zstd_frame(17, &whole)].concat(),
        ),
        (
            "a skippable frame between".into(),
            [&halves[..10], &skippable, &halves[10..]].concat(),
        ),
        (
            "a skippable frame last".into(),
            [&zstd_frame(17, &whole)[..], &skippable].concat(),
        ),
        (
            "many small blocks".into(),
            zstd_frame(17, &[("same", 64); 1024]),
        ),
        (
            "raw blocks".into(),
            zstd_frame(10, &[("raw", 1000), ("same", 536), ("same", 64000)]),
        ),
        ("a wrong checksum".into(), checked(0x1234_5678)),
        (
            "the right size".into(),
            sized(zstd_frame(17, &whole), 65536),
        ),
        (
            "a smaller size".into(),
            sized(zstd_frame(17, &whole), 65535),
        ),
        ("a larger size".into(), sized(zstd_frame(17, &whole), 65537)),
        ("no frame".into(), vec![0; 16]),
    ];
    for bits in [10, 15, 16, 17, 26, 27, 28, 30, 31, 41] {
        let name = format!("a window of 2^{bits}");
        streams.push((format!("{name}, of unknown size"), zstd_frame(bits, &whole)));
        streams.push((
            format!("{name}, of known size"),
            sized(zstd_frame(bits, &whole), 65536),
        ));
    }
    let mut faults = Vec::new();
    for (name, mut stream) in streams {
        stream.resize(8192, 0);
        poke(&path, host, &stream);
        poke(&path, l2, &(1u64 << 62 | 16 << 54 | host).to_be_bytes());
        let expected = lab.try_convert("a.qcow2", "-f qcow2");
        let got = read_all(&lab.chain("a.qcow2"));
        if expected != got.as_ref().ok().cloned() {
            faults.push(format!(
                "{name}: tools {}, we {}",
                expected.is_some(),
                got.is_ok()
            ));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
