//! Work that may wait for the host's disk (fsync, opening a chain) goes to a worker thread, so that
//! the engine's thread goes on hearing QEMU.

use crate::errno::{Errno, Failure};

/// Runs what may wait for the host's disk beside the engine, not in it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(Failure::new(Errno::EIO, format!("a worker died: {error}"))
                .next("keep the log and report it: this is a bug"))
        })
}
