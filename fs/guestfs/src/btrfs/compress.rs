//! What Btrfs compresses with: zlib, LZO in pages of 4 KiB, zstd. Pure.

use crate::bytes::{le32, slice};
use crate::{Error, unpack};

const DAMAGE: Error = Error::Corrupt("compressed bytes");
/// A header of LZO never straddles two of these, and each piece is one decompressed.
const PAGE: usize = 4096;

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
        Method::Zlib => unpack::zlib(packed, length)?,
        Method::Lzo => lzo(packed, length)?,
        Method::Zstd => unpack::zstd(packed, length)?,
    };
    bytes.resize(length, 0);
    Ok(bytes)
}

fn lzo(packed: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let whole = le32(packed, 0)? as usize;
    let packed = packed.get(..whole).ok_or(DAMAGE)?;
    let (mut at, mut bytes) = (4, Vec::new());
    while at + 4 <= packed.len() && bytes.len() < length {
        let size = le32(packed, at)? as usize;
        bytes.extend(unpack::lzo(slice(packed, at + 4, size)?, PAGE)?);
        at += 4 + size;
        let rest = PAGE - at % PAGE;
        if rest < 4 {
            at += rest;
        }
    }
    Ok(bytes)
}
