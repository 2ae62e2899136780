//! What we make of a case, and which differences from QEMU are meant.
//!
//! Knows: the reader, and docs/decisions.
//! Does not know: QEMU.

use std::sync::Arc;

use checks::streams::{self, Kind};
use qmpfs_qcow2::{
    Chain, Compression, Error, GuestOffset, Image, Layer, Mapping, OpenOptions, RawLayer, ReadAt,
};

use crate::case::{self, Case};

/// Bytes read at once.
const STEP: usize = 1 << 20;
/// Snapshots of other sizes than this are not read.
const MAX_SNAPSHOT: u64 = 64 << 20;

fn open(layer: &case::Layer) -> Result<Layer, Error> {
    let file: Arc<dyn ReadAt> = Arc::new(layer.file.clone());
    if layer.raw {
        return RawLayer::open(file).map(Layer::Raw);
    }
    let data = layer.data.clone();
    let options = OpenOptions {
        data_file: data.map(|data| Arc::new(data) as Arc<dyn ReadAt>),
        ..OpenOptions::default()
    };
    Image::open_with(file, options).map(Layer::Qcow2)
}

fn chain(case: &Case) -> Result<Chain, Error> {
    let layers: Result<Vec<_>, _> = case.layers.iter().map(|l| open(l).map(Arc::new)).collect();
    layers.map(Chain::new)
}

/// All bytes of the top, or why not.
pub(crate) fn read(case: &Case) -> Result<Vec<u8>, String> {
    chain(case)
        .and_then(|chain| read_all(&chain))
        .map_err(|error| error.to_string())
}

fn read_all(chain: &Chain) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0xee; chain.virtual_size() as usize];
    let mut at = 0;
    for part in bytes.chunks_mut(STEP) {
        let n = chain.read_at(part, at)?;
        assert_eq!(n, part.len(), "a short read");
        at += n as u64;
    }
    Ok(bytes)
}

/// An internal snapshot.
pub(crate) struct Snapshot {
    pub(crate) id: String,
    /// Whether the disk had the size that it has now: `qemu-img` reads that much.
    pub(crate) same_size: bool,
    pub(crate) bytes: Result<Vec<u8>, String>,
}

/// The internal snapshots of the top that can be asked for by their ids.
pub(crate) fn snapshots(case: &Case) -> Vec<Snapshot> {
    let Ok(chain) = chain(case) else {
        return Vec::new();
    };
    let Some(Layer::Qcow2(image)) = chain.layers().last().map(|layer| &**layer) else {
        return Vec::new();
    };
    let all = image.snapshots().unwrap_or_default();
    let plain = |id: &[u8]| (1..16).contains(&id.len()) && id.iter().all(u8::is_ascii_digit);
    all.iter()
        .filter(|snapshot| plain(&snapshot.id) && snapshot.virtual_size <= MAX_SNAPSHOT)
        .filter(|snapshot| all.iter().filter(|other| other.id == snapshot.id).count() == 1)
        .map(|snapshot| {
            let bytes = image
                .at_snapshot(snapshot)
                .and_then(|old| {
                    let mut layers = chain.layers().to_vec();
                    layers.pop();
                    layers.push(Arc::new(Layer::Qcow2(old)));
                    read_all(&Chain::new(layers))
                });
            Snapshot {
                id: snapshot.id_str().into_owned(),
                same_size: snapshot.virtual_size == image.virtual_size(),
                bytes: bytes.map_err(|error| error.to_string()),
            }
        })
        .collect()
}

/// Why we read on purpose what QEMU refuses with these words; nothing if there is no such reason.
pub(crate) fn deliberate(case: &Case, why: &str) -> Option<&'static str> {
    for image in images(case) {
        // docs/decisions/0006
        if image.snapshots().is_err() {
            return Some("the snapshot table is read apart");
        }
        let bitmaps = why.contains("bitmap") || why.contains("Bitmap");
        if image.header().has_bitmaps && bitmaps {
            return Some("bitmaps are not looked at");
        }
    }
    // docs/decisions/0005
    any_stream(case, |kind, stream, size| {
        streams::decompress(kind, stream, size).is_none()
            && streams::tolerated(kind, stream, size).is_some()
    })
    .then_some("a stream that libdeflate takes")
}

/// Whether there is a Zstandard stream that the library we are linked with refuses, used as QEMU
/// uses it: newer ones find more damage, and QEMU is linked with another (docs/decisions/0005).
pub(crate) fn zstd_differs(case: &Case) -> bool {
    any_stream(case, |kind, stream, size| {
        kind == Kind::Zstd && streams::decompress(kind, stream, size).is_none()
    })
}

fn images(case: &Case) -> impl Iterator<Item = Image> {
    case.layers.iter().filter_map(|layer| match open(layer) {
        Ok(Layer::Qcow2(image)) => Some(image),
        _ => None,
    })
}

/// Whether a compressed cluster of any layer is like this, as far as the layer can be walked.
fn any_stream(case: &Case, is: impl Fn(Kind, &[u8], usize) -> bool) -> bool {
    for layer in &case.layers {
        let Ok(Layer::Qcow2(image)) = open(layer) else {
            continue;
        };
        let kind = match image.header().compression {
            Compression::Zlib => Kind::Zlib,
            Compression::Zstd => Kind::Zstd,
        };
        let mut at = 0;
        while let Ok(run) = image.map(GuestOffset(at), u64::MAX) {
            if run.len == 0 {
                break;
            }
            at += run.len;
            let Mapping::Compressed { cluster, .. } = run.what else {
                continue;
            };
            let mut stream = vec![0; cluster.len as usize];
            let start = layer.file.len().min(cluster.host.0 as usize);
            let end = layer.file.len().min(start + stream.len());
            stream[..end - start].copy_from_slice(&layer.file[start..end]);
            if is(kind, &stream, image.header().cluster_bits.bytes()) {
                return true;
            }
        }
    }
    false
}
