//! Compressed clusters: one stream in, exactly one cluster out.
//!
//! Knows: raw deflate and Zstandard, and what QEMU accepts of each.
//! Does not know: files or tables.
//! Choice: libdeflate is about twice as fast as zlib. It takes a few damaged streams that zlib
//! refuses (length codes 286 and 287); raw deflate has no checksum that would find other damage.
//! Invariant: never writes more than the cluster it was given to fill.

use std::sync::{Mutex, PoisonError};

use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer, ResetDirective};

use crate::header::Compression;
use crate::units::HostOffset;

/// Idle decompressors of one image that are kept for the next reader.
const MAX_IDLE: usize = 4;
/// The most that one may hold while it is idle: a window as QEMU writes it, and no stranger's.
const MAX_IDLE_BYTES: usize = 4 << 20;

/// Where a compressed cluster lies in the file. Its stream may end before its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedCluster {
    /// The first byte.
    pub host: HostOffset,
    /// Length in the file, up to the end of the last sector: at most 4 MiB.
    pub len: u32,
}

/// Decompresses the clusters of one image, for several threads at once.
pub(crate) struct Decompressors {
    compression: Compression,
    idle: Mutex<Vec<Decompressor>>,
}

/// The stream is broken, or does not fill the cluster.
pub(crate) struct BadStream;

enum Decompressor {
    Zlib(libdeflater::Decompressor),
    Zstd(DCtx<'static>),
}

impl Decompressors {
    pub(crate) fn new(compression: Compression) -> Decompressors {
        Decompressors {
            compression,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Fills `cluster` from `stream`.
    pub(crate) fn decompress(&self, stream: &[u8], cluster: &mut [u8]) -> Result<(), BadStream> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut decompressor = match idle {
            Some(decompressor) => decompressor,
            None => Decompressor::new(self.compression)?,
        };
        let result = decompressor.decompress(stream, cluster);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE && decompressor.bytes() <= MAX_IDLE_BYTES {
            idle.push(decompressor);
        }
        result
    }
}

impl Decompressor {
    fn new(compression: Compression) -> Result<Decompressor, BadStream> {
        Ok(match compression {
            Compression::Zlib => Decompressor::Zlib(libdeflater::Decompressor::new()),
            Compression::Zstd => Decompressor::Zstd(DCtx::try_create().ok_or(BadStream)?),
        })
    }

    /// Memory it holds on to.
    fn bytes(&self) -> usize {
        match self {
            Decompressor::Zlib(_) => size_of::<Decompressor>(),
            Decompressor::Zstd(zstd) => zstd.sizeof(),
        }
    }

    fn decompress(&mut self, stream: &[u8], cluster: &mut [u8]) -> Result<(), BadStream> {
        match self {
            Decompressor::Zlib(fast) => match fast.deflate_decompress(stream, cluster) {
                Ok(n) if n == cluster.len() => Ok(()),
                // QEMU takes any stream whose first bytes fill the cluster, also one that goes on
                // after that. The fast decompressor wants whole streams.
                _ => inflate_prefix(stream, cluster),
            },
            Decompressor::Zstd(zstd) => zstd_frames(zstd, stream, cluster),
        }
    }
}

fn inflate_prefix(stream: &[u8], cluster: &mut [u8]) -> Result<(), BadStream> {
    let mut inflate = Decompress::new(false);
    let status = inflate.decompress(stream, cluster, FlushDecompress::Finish);
    let filled = inflate.total_out() == cluster.len() as u64;
    match status {
        Ok(Status::Ok | Status::BufError | Status::StreamEnd) if filled => Ok(()),
        _ => Err(BadStream),
    }
}

/// Frames follow one another until the cluster is full, with the end of a frame; what comes after is
/// padding. Read as a stream, as QEMU does: a whole frame at once would be taken with any window.
fn zstd_frames(
    zstd: &mut DCtx<'static>,
    stream: &[u8],
    cluster: &mut [u8],
) -> Result<(), BadStream> {
    zstd.reset(ResetDirective::SessionOnly)
        .map_err(|_| BadStream)?;
    let full = cluster.len();
    let mut input = InBuffer::around(stream);
    let mut output = OutBuffer::around(cluster);
    while output.pos() < full {
        let before = (input.pos, output.pos());
        let left = zstd
            .decompress_stream(&mut output, &mut input)
            .map_err(|_| BadStream)?;
        let stuck = before == (input.pos, output.pos());
        if stuck || (output.pos() == full && left != 0) {
            return Err(BadStream);
        }
    }
    Ok(())
}
