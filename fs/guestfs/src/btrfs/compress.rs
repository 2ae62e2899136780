//! What Btrfs compresses with: zlib, LZO in pages of 4 KiB, zstd. Pure.

use crate::Error;
use crate::bytes::{le32, slice};
use std::io::Read;

const DAMAGE: Error = Error::Corrupt("compressed bytes");
/// A header of LZO never straddles two of these, and each piece is one decompressed.
const PAGE: usize = 4096;
/// What zstd may need at once: more than is compressed together here.
const WINDOW_MAX: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    None,
    Zlib,
    Lzo,
    Zstd,
}

impl Method {
    pub(super) fn of(number: u8) -> Result<Method, Error> {
        match number {
            0 => Ok(Method::None),
            1 => Ok(Method::Zlib),
            2 => Ok(Method::Lzo),
            3 => Ok(Method::Zstd),
            _ => Err(Error::Unsupported("a way of compression")),
        }
    }
}

/// Decompresses into `length` bytes at most; what is missing of them is zeros.
pub(super) fn expand(method: Method, packed: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = match method {
        Method::None => packed.to_vec(),
        Method::Zlib => zlib(packed, length)?,
        Method::Lzo => lzo(packed, length)?,
        Method::Zstd => {
            let stream = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(
                packed,
                WINDOW_MAX as u64,
            );
            let mut bytes = Vec::new();
            let mut stream = stream.map_err(|_| DAMAGE)?.take(length as u64);
            stream.read_to_end(&mut bytes).map_err(|_| DAMAGE)?;
            bytes
        }
    };
    bytes.resize(length, 0);
    Ok(bytes)
}

fn zlib(packed: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
    match decompress_to_vec_zlib_with_limit(packed, length) {
        Ok(bytes) => Ok(bytes),
        // All that is wanted is there.
        Err(error) if error.output.len() >= length => Ok(error.output),
        Err(_) => Err(DAMAGE),
    }
}

fn lzo(packed: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let whole = le32(packed, 0)? as usize;
    let packed = packed.get(..whole).ok_or(DAMAGE)?;
    let (mut at, mut bytes) = (4, Vec::new());
    while at + 4 <= packed.len() && bytes.len() < length {
        let size = le32(packed, at)? as usize;
        let piece = slice(packed, at + 4, size)?;
        bytes.extend(lzo1x::decompress(piece, PAGE).map_err(|_| DAMAGE)?);
        at += 4 + size;
        let rest = PAGE - at % PAGE;
        if rest < 4 {
            at += rest;
        }
    }
    Ok(bytes)
}
