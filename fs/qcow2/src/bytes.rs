//! Big-endian fields out of a byte slice.
//!
//! Knows: how to fetch a number at an offset, or say that it is not there.
//! Does not know: what the number means.

pub(crate) fn slice(bytes: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len)?)
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    slice(bytes, at, 2)?.try_into().ok().map(u16::from_be_bytes)
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    slice(bytes, at, 4)?.try_into().ok().map(u32::from_be_bytes)
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    slice(bytes, at, 8)?.try_into().ok().map(u64::from_be_bytes)
}

/// A table of big-endian 64-bit entries; a tail shorter than an entry is dropped.
pub(crate) fn be64_table(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes
        .chunks_exact(8)
        .map(|entry| be64(entry, 0).unwrap_or(0))
}
