//! Bytes and extents of a chain against what the real tools say.
//!
//! Knows: the public face of the reader. Does not know: how an image was made.

use qmpfs_qcow2::{Chain, ExtentKind, Layer, Mapping, Source};

/// Reads a chain in several ways and compares each with the expected bytes.
pub(crate) fn assert_reads(chain: &Chain, expected: &[u8]) {
    assert_eq!(chain.virtual_size(), expected.len() as u64, "virtual size");
    for step in [1 << 20, 65536 + 512, 4096] {
        let mut buf = vec![0xee; step];
        let mut at = 0;
        while at < expected.len() {
            buf.fill(0xee);
            let n = chain.read_at(&mut buf, at as u64).expect("read");
            assert_eq!(n, step.min(expected.len() - at), "length at {at:#x}");
            assert_same(&buf[..n], &expected[at..at + n], at);
            at += n;
        }
    }
    let mut buf = [0xee; 10];
    assert_eq!(
        chain
            .read_at(&mut buf, expected.len() as u64)
            .expect("at the end"),
        0
    );
    assert_eq!(
        chain.read_at(&mut buf, u64::MAX).expect("beyond the end"),
        0
    );
    if expected.len() > 3 {
        assert_eq!(
            chain
                .read_at(&mut buf, expected.len() as u64 - 3)
                .expect("tail"),
            3
        );
        assert_eq!(buf[..3], expected[expected.len() - 3..]);
    }
    assert_extents(chain, expected);
}

/// Extents must cover the disk, be zeros where they are holes, and sum up.
fn assert_extents(chain: &Chain, expected: &[u8]) {
    let (mut at, mut data) = (0u64, 0);
    while at < chain.virtual_size() {
        let extent = chain.extent_at(at, u64::MAX).expect("extent");
        assert!(extent.len > 0, "no progress at {at:#x}");
        let part = &expected[at as usize..(at + extent.len) as usize];
        match extent.kind {
            ExtentKind::Hole => assert!(is_zero(part), "hole at {at:#x}"),
            ExtentKind::Data => data += extent.len,
        }
        at += extent.len;
    }
    assert_eq!(at, chain.virtual_size());
    assert_eq!(chain.allocated_bytes().expect("allocated"), data);
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(4096)
        .all(|part| part == &[0; 4096][..part.len()])
}

/// Our sources of bytes against what `qemu-img map --output=json` says of the same image:
///
/// 1. What is `data` there is data here, of the layer at the same `depth`, compressed where it is
///    `compressed`, and at the same `offset` of that layer's file where one is told. That holds
///    for `data` with `zero` too: a cluster under which the file has a hole.
/// 2. What is not `data` there is `zero`, and a hole here; and so every hole here is `zero` there.
///
/// One exception: holes of a raw file are the filesystem's, which this reader does not ask. They
/// are data of that layer here.
pub(crate) fn assert_map(top: &str, chain: &Chain, json: &str) {
    let json: serde_json::Value = serde_json::from_str(json).expect("json");
    let mut covered = 0;
    for entry in json.as_array().expect("array") {
        let number = |key: &str| entry[key].as_u64();
        let flag = |key: &str| entry[key].as_bool().unwrap_or(false);
        let start = number("start").expect("start");
        let end = start + number("length").expect("length");
        let depth = number("depth").expect("depth") as usize;
        assert_eq!(start, covered, "{top}: {entry} leaves a gap");
        covered = end;
        let said = flag("data") || flag("zero") || start == end;
        assert!(said, "{top}: neither: {entry}");
        let mut at = start;
        while at < end {
            let piece = chain.resolve(at, end - at).expect("resolve");
            assert!(piece.len > 0, "{top}: no progress at {at:#x}");
            let fits = match piece.source {
                Source::Zero => !flag("data"),
                Source::Layer { index, mapping } => {
                    let same_layer = index + depth + 1 == chain.layers().len();
                    let raw = matches!(&*chain.layers()[index], Layer::Raw(_));
                    let compressed = matches!(mapping, Mapping::Compressed { .. });
                    // Older tools do not say.
                    let same_kind = entry["compressed"]
                        .as_bool()
                        .is_none_or(|said| said == compressed);
                    let same_place = match (mapping, number("offset")) {
                        (Mapping::Data { host }, Some(offset)) => host.0 == offset + (at - start),
                        _ => true,
                    };
                    same_layer && same_place && same_kind && (flag("data") || raw)
                }
            };
            assert!(fits, "{top} at {at:#x}: {piece:?} is not {entry}");
            at += piece.len;
        }
    }
    assert_eq!(covered, chain.virtual_size(), "{top}: the map's end");
}

fn assert_same(got: &[u8], expected: &[u8], at: usize) {
    if got != expected {
        let i = got
            .iter()
            .zip(expected)
            .position(|(a, b)| a != b)
            .unwrap_or(0);
        panic!(
            "byte {:#x} is {:#x}, not {:#x}",
            at + i,
            got[i],
            expected[i]
        );
    }
}
