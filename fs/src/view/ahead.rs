//! Compressed clusters, decompressed on all cores before their reader comes to them.
//! It knows what a reader will want next; the reader's cache knows who is at work on what.

use qmpfs_qcow2::{Chain, CompressedCluster, Layer, Mapping, Source};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

/// How far ahead of a reader: a few of its reads, and little of the cache that is shared by all.
const AHEAD: u64 = 2 << 20;
/// How far a read may be from where the last one ended: the kernel's own read-ahead mixes a few.
const NEAR: u64 = 2 << 20;
/// Bytes of clusters waiting for a core. More do not become ready sooner, and would push each other
/// out of the cache before they are read.
const WAITING_MAX: usize = 8 << 20;

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// A thread for each core; None where there are none to be had, and readers do it themselves.
static POOL: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    ThreadPoolBuilder::new()
        .thread_name(|index| format!("inflate-{index}"))
        // A bug of ours in one cluster is its reader's EIO, and not the end of the mount.
        .panic_handler(|_| tracing::error!("bug: decompressing ahead panicked"))
        .build()
        .map_err(|error| tracing::warn!(%error, "nothing is decompressed ahead"))
        .ok()
});

/// Where one reader is.
#[derive(Debug, Default)]
pub struct Cursor {
    end: AtomicU64,
    ahead: AtomicU64,
}

impl Cursor {
    /// Says that `read` is being read, of which its reader itself decompresses what lies before
    /// `others`; has the rest decompressed, and what comes next if the reader goes on like that.
    pub fn read(&self, chain: &Chain, read: Range<u64>, others: u64) {
        let last = self.end.swap(read.end, Ordering::Relaxed);
        if read.start.abs_diff(last) > NEAR {
            self.ahead.store(read.end, Ordering::Relaxed);
            return decompress(chain, others..read.end);
        }
        let next = read.end.saturating_add(AHEAD);
        let asked = self.ahead.fetch_max(next, Ordering::Relaxed);
        // Again for what was left out because too much was waiting.
        decompress(chain, others..read.end);
        decompress(chain, asked.max(read.end)..next);
    }
}

/// Has all compressed clusters of a stretch decompressed.
fn decompress(chain: &Chain, stretch: Range<u64>) {
    let mut at = stretch.start;
    while at < stretch.end {
        let piece = match chain.resolve(at, stretch.end - at) {
            Ok(piece) if piece.len > 0 => piece,
            // Its reader is told.
            Ok(_) | Err(_) => return,
        };
        if let Source::Layer {
            index,
            mapping: Mapping::Compressed { cluster, .. },
        } = piece.source
        {
            start(&chain.layers()[index], cluster);
        }
        at = at.saturating_add(piece.len);
    }
}

fn start(layer: &Arc<Layer>, cluster: CompressedCluster) {
    let Layer::Qcow2(image) = &**layer else {
        return;
    };
    if image.is_decompressed(cluster) || WAITING.load(Ordering::Relaxed) >= WAITING_MAX {
        return;
    }
    let Some(pool) = &*POOL else {
        return;
    };
    let waiting = Waiting::new(image.header().cluster_bits.bytes());
    let layer = Arc::clone(layer);
    pool.spawn_fifo(move || {
        let _until_done = waiting;
        // Where its reader came first, a thread that waited for it would be missing elsewhere.
        if let Layer::Qcow2(image) = &*layer
            && !image.is_decompressed(cluster)
        {
            // An error is met again by the reader.
            let _ = image.decompressed(cluster);
        }
    });
}

/// A cluster's bytes, counted in `WAITING`.
struct Waiting(usize);

impl Waiting {
    fn new(bytes: usize) -> Waiting {
        WAITING.fetch_add(bytes, Ordering::Relaxed);
        Waiting(bytes)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(self.0, Ordering::Relaxed);
    }
}
