//! A chain of layers shows the bytes that were put into it, however it is asked.
//!
//! Knows: the expected bytes (`layers` made them), and every way to ask.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qmpfs_qcow2::{
    Caches, Chain, Error, ExtentKind, Image, Layer, Mapping, OpenOptions, RawLayer, ReadAt, Source,
};

use super::input::Input;
use super::layers::{self, Built};
use super::writer::is_zero;

/// Reads at places of the input's choosing.
const CHOSEN_READS: u32 = 8;
/// No walk over a disk of this size takes so long.
const PLENTY: Duration = Duration::from_secs(60);

/// Builds, reads, and compares.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (built, disks) = layers::make(&mut input);
    // Room for all, for hardly anything, or for nothing at all.
    let caches = Arc::new(match input.below(3) {
        0 => Caches::default(),
        1 => Caches::new(2048, 20_000).with_map_bytes(600),
        _ => Caches::new(0, 0).with_map_bytes(0),
    });
    let layers: Vec<Arc<Layer>> = built
        .iter()
        .map(|layer| Arc::new(open(layer, &caches).expect("a valid layer")))
        .collect();
    let top = layers.len() - 1;
    let chain = Chain::new(layers.clone());
    ask(&chain, &disks[top], &mut input);

    // Part of the chain, which shares its layers and caches; and the chain once more, from there.
    let part = input.below(layers.len());
    let lower = Chain::new(layers[..=part].to_vec());
    ask(&lower, &disks[part], &mut input);
    if part < top {
        let next = Chain::new(layers[..=part + 1].to_vec());
        read(&next, &disks[part + 1], 0, disks[part + 1].len());
    }
    let again = Chain::new(layers[..=part].to_vec());
    read(&again, &disks[part], 0, disks[part].len());
    walk(&chain, &disks[top]);
}

/// Asks at places of the input's choosing.
fn ask(chain: &Chain, expected: &[u8], input: &mut Input<'_>) {
    let size = expected.len() as u64;
    assert_eq!(chain.virtual_size(), size);
    for _ in 0..CHOSEN_READS {
        let at = u64::from(input.u32()) % (size + 2);
        let len = input.below(40_000);
        read(chain, expected, at, len);
        resolve(chain, expected, at, len as u64);
        extent(chain, expected, at, len as u64);
    }
}

/// Asks for all of it, from front to back.
fn walk(chain: &Chain, expected: &[u8]) {
    let size = expected.len() as u64;
    read(chain, expected, 0, expected.len() + 1);
    let mut at = 0;
    while at < size {
        at += resolve(chain, expected, at, u64::MAX);
    }
    let (mut at, mut data) = (0, 0);
    while at < size {
        let (len, kind) = extent(chain, expected, at, u64::MAX);
        data += if kind == ExtentKind::Data { len } else { 0 };
        at += len;
    }
    let allocated = chain.allocated_bytes_until(Instant::now() + PLENTY);
    assert_eq!(allocated.expect("a valid chain"), Some(data));
}

fn open(built: &Built, caches: &Arc<Caches>) -> Result<Layer, Error> {
    let file: Arc<dyn ReadAt> = built.file.clone();
    if built.raw {
        return RawLayer::open(file).map(Layer::Raw);
    }
    let data = built.data.clone();
    let options = OpenOptions {
        data_file: data.map(|data| data as Arc<dyn ReadAt>),
        caches: Some(Arc::clone(caches)),
    };
    let image = Image::open_with(file, options)?;
    Ok(Layer::Qcow2(match built.snapshot {
        true => image.at_snapshot(&image.snapshots()?[0])?,
        false => image,
    }))
}

/// What the model has there; nothing beyond the end.
fn part(expected: &[u8], at: u64, len: u64) -> &[u8] {
    let at = expected.len().min(at as usize);
    let end = expected.len().min(at.saturating_add(len as usize));
    &expected[at..end]
}

fn read(chain: &Chain, expected: &[u8], at: u64, len: usize) {
    let mut buf = vec![0xee; len];
    let n = chain.read_at(&mut buf, at).expect("a valid chain");
    let part = part(expected, at, len as u64);
    assert_eq!(n, part.len(), "length of a read at {at:#x}");
    assert!(buf[..n] == *part, "bytes at {at:#x}+{len:#x}");
}

fn resolve(chain: &Chain, expected: &[u8], at: u64, max_len: u64) -> u64 {
    let piece = chain.resolve(at, max_len).expect("a valid chain");
    let here = part(expected, at, max_len);
    assert!(piece.len > 0 || here.is_empty(), "no progress at {at:#x}");
    assert!(piece.len <= here.len() as u64, "too long at {at:#x}");
    let here = &here[..piece.len as usize];
    match piece.source {
        Source::Zero => assert!(is_zero(here), "zeros at {at:#x}"),
        Source::Layer { index, mapping } => {
            let whole = matches!(mapping, Mapping::Data { .. } | Mapping::Compressed { .. });
            assert!(whole, "a source holds something");
            let mut bytes = vec![0xcc; here.len()];
            let layer = &chain.layers()[index];
            layer
                .read_mapped(mapping, &mut bytes)
                .expect("a valid layer");
            assert!(bytes == here, "bytes of layer {index} at {at:#x}");
        }
    }
    piece.len
}

fn extent(chain: &Chain, expected: &[u8], at: u64, max_len: u64) -> (u64, ExtentKind) {
    let extent = chain.extent_at(at, max_len).expect("a valid chain");
    let here = part(expected, at, max_len);
    assert!(extent.len > 0 || here.is_empty(), "no progress at {at:#x}");
    assert!(extent.len <= here.len() as u64, "too long at {at:#x}");
    let zeros = is_zero(&here[..extent.len as usize]);
    assert!(
        extent.kind == ExtentKind::Data || zeros,
        "data in a hole at {at:#x}"
    );
    (extent.len, extent.kind)
}
