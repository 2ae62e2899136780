//! Any bytes as a whole image: no panic, no endless walk, and what is said twice is the same.
//!
//! Knows: what a client of the reader does with an image, as far as time allows.
//! Does not know: what is in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qmpfs_qcow2::{Caches, Chain, ExtentKind, GuestOffset, Image, Layer, OpenOptions, ReadAt};

use super::writer::{is_zero, pattern};

/// Snapshots that are opened.
const MAX_VIEWS: usize = 4;
/// Runs that are asked for from the front on.
const MAX_RUNS: u32 = 256;
/// Bytes that are read as a whole.
const READ_WHOLE: usize = 1 << 20;
/// The data file of images that want one.
pub const DATA_FILE_BYTES: usize = 64 << 10;

/// Opens and reads.
pub fn check(bytes: &[u8]) {
    let file: Arc<dyn ReadAt> = Arc::new(bytes.to_vec());
    let data: Arc<dyn ReadAt> = Arc::new(pattern(7, DATA_FILE_BYTES));
    let caches = Arc::new(Caches::new(256 << 10, 256 << 10));
    let open = |data_file| {
        let options = OpenOptions {
            data_file,
            caches: Some(Arc::clone(&caches)),
        };
        Image::open_with(Arc::clone(&file), options)
    };
    let Ok(image) = open(None).or_else(|_| open(Some(data))) else {
        return;
    };
    let snapshots = image.snapshots().unwrap_or_default();
    let views: Vec<_> = snapshots
        .iter()
        .take(MAX_VIEWS)
        .filter_map(|snapshot| image.at_snapshot(snapshot).ok())
        .collect();
    for image in views.into_iter().chain([image]) {
        exercise(image);
    }
    assert!(caches.bytes() <= 512 << 10, "caches are bounded");
}

fn exercise(image: Image) {
    let size = image.virtual_size();
    let mut at = 0;
    for _ in 0..MAX_RUNS {
        let Ok(run) = image.map(GuestOffset(at), u64::MAX) else {
            break;
        };
        assert!(run.len > 0 || at == size, "no progress");
        assert!(run.len <= size - at, "beyond the end");
        at += run.len;
    }
    let chain = Chain::new(vec![Arc::new(Layer::Qcow2(image))]);
    let mut whole = vec![0xee; READ_WHOLE];
    if let Ok(n) = chain.read_at(&mut whole, 0) {
        assert_eq!(n as u64, size.min(READ_WHOLE as u64));
        parts(&chain, &whole[..n]);
        holes(&chain, &whole[..n]);
    }
    let mut end = [0; 1000];
    let _ = chain.read_at(&mut end, size.saturating_sub(1000));
    assert!(matches!(chain.read_at(&mut end, size), Ok(0)));
    let deadline = Instant::now() + Duration::from_millis(50);
    if let Ok(Some(allocated)) = chain.allocated_bytes_until(deadline) {
        assert!(allocated <= size);
    }
}

/// Read in pieces, through the caches, it is the same.
fn parts(chain: &Chain, whole: &[u8]) {
    let mut at = 0;
    let mut step = 300;
    let mut buf = vec![0xdd; 128 << 10];
    while at < whole.len() {
        let n = chain.read_at(&mut buf[..step], at as u64).expect("a part");
        let len = n.min(whole.len() - at);
        assert!(len > 0 && buf[..len] == whole[at..at + len], "at {at:#x}");
        at += len;
        step = (step * 2).min(buf.len());
    }
}

fn holes(chain: &Chain, whole: &[u8]) {
    let mut at = 0;
    for _ in 0..MAX_RUNS {
        if at >= whole.len() {
            break;
        }
        let extent = chain
            .extent_at(at as u64, u64::MAX)
            .expect("of bytes that were read");
        assert!(extent.len > 0, "no progress");
        let end = usize::try_from(extent.len).map_or(whole.len(), |len| whole.len().min(at + len));
        let zeros = is_zero(&whole[at..end]);
        assert!(extent.kind == ExtentKind::Data || zeros, "data in a hole");
        at = end;
    }
}
