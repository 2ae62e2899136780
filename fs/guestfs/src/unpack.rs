//! What filesystems compress with: zlib, LZO, LZ4, XZ, zstd. Pure.
//! Invariants: nothing is longer than it may be, nothing takes more memory than a named limit.

use crate::Error;
use std::io::Read;

const DAMAGE: Error = Error::Corrupt("compressed bytes");
/// What zstd may need at once: more than is compressed together by any filesystem.
const ZSTD_WINDOW_MAX: u64 = 1 << 20;
/// The same of XZ, in KiB: its dictionary, and what decoding takes besides.
const XZ_MEMORY_MAX: u32 = 16 << 10;

/// The first `length` bytes, or fewer where there are no more.
pub(crate) fn zlib(packed: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
    match decompress_to_vec_zlib_with_limit(packed, length) {
        Ok(bytes) => Ok(bytes),
        // All that is wanted is there.
        Err(error) if error.output.len() >= length => Ok(error.output),
        Err(_) => Err(DAMAGE),
    }
}

/// One piece of LZO1X, which is not longer than `length`.
pub(crate) fn lzo(packed: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    lzo1x::decompress(packed, length).map_err(|_| DAMAGE)
}

/// One block of LZ4, which is not longer than `length`.
pub(crate) fn lz4(packed: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    lz4_flex::block::decompress(packed, length).map_err(|_| DAMAGE)
}

/// The first `length` bytes, or fewer where there are no more.
pub(crate) fn xz(packed: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let stream = lzma_rust2::XzReader::new_mem_limit(packed, false, XZ_MEMORY_MAX);
    first(stream, length)
}

/// The first `length` bytes, or fewer where there are no more.
pub(crate) fn zstd(packed: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    use ruzstd::decoding::StreamingDecoder;
    let stream = StreamingDecoder::new_with_max_window_size(packed, ZSTD_WINDOW_MAX);
    first(stream.map_err(|_| DAMAGE)?, length)
}

fn first(stream: impl Read, length: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut stream = stream.take(length as u64);
    stream.read_to_end(&mut bytes).map_err(|_| DAMAGE)?;
    Ok(bytes)
}
