//! Compressed clusters: one stream in, exactly one cluster out.
//!
//! Knows: raw deflate and Zstandard, and what QEMU accepts of each.
//! Does not know: files or tables.
//! Choice: libdeflate is about twice as fast as zlib. It takes a few damaged streams that zlib
//! refuses (length codes 286 and 287); raw deflate has no checksum that would find other damage.
//! Invariant: never writes more than the cluster it was given to fill.

use std::sync::{Mutex, PoisonError};

use flate2::{Decompress, FlushDecompress, Status};

use crate::header::Compression;
use crate::units::HostOffset;

/// Idle decompressors kept for the next reader: about as many as read at once.
const MAX_IDLE: usize = 16;

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
    Zstd(zstd::bulk::Decompressor<'static>),
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
        if idle.len() < MAX_IDLE {
            idle.push(decompressor);
        }
        result
    }
}

impl Decompressor {
    fn new(compression: Compression) -> Result<Decompressor, BadStream> {
        Ok(match compression {
            Compression::Zlib => Decompressor::Zlib(libdeflater::Decompressor::new()),
            Compression::Zstd => {
                Decompressor::Zstd(zstd::bulk::Decompressor::new().map_err(|_| BadStream)?)
            }
        })
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

/// Frames follow one another until the cluster is full; what comes after is padding.
fn zstd_frames(
    zstd: &mut zstd::bulk::Decompressor<'static>,
    mut stream: &[u8],
    mut cluster: &mut [u8],
) -> Result<(), BadStream> {
    while !cluster.is_empty() {
        let len = zstd::zstd_safe::find_frame_compressed_size(stream).map_err(|_| BadStream)?;
        let (frame, rest) = stream.split_at_checked(len).ok_or(BadStream)?;
        let n = zstd
            .decompress_to_buffer(frame, cluster)
            .map_err(|_| BadStream)?;
        cluster = cluster.get_mut(n..).ok_or(BadStream)?;
        stream = rest;
    }
    Ok(())
}
