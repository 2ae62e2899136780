//! Short names for sockets: their paths may have 107 bytes only. The directory is made, and removed, by tests/bench/run.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A name that was never used before in this run.
pub(crate) fn fresh() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let directory =
        std::env::var_os("QMPFS_BENCH_SOCKETS").expect("tests/bench/run says where sockets are");
    PathBuf::from(directory).join(format!("s{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}
