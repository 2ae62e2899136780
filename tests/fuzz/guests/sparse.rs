//! A disk as a short input: only the blocks that are no zeros, each behind its number.
//!
//! Knows: how to lay them out, and how to take them off a disk.
//! Does not know: what is in them.

/// Bytes of a block.
pub const BLOCK: usize = 1024;
/// The longest disk that an input can mean.
pub const DISK_MAX: usize = 64 << 20;

/// The disk that an input means.
pub fn unpack(bytes: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; blocks(bytes) * BLOCK];
    for (at, block) in pieces(bytes) {
        disk[at..at + block.len()].copy_from_slice(block);
    }
    disk
}

/// Each place of the disk that is a multiple of `step`, at most a block, and in a block that the input has.
pub fn places(bytes: &[u8], step: usize) -> impl Iterator<Item = usize> {
    pieces(bytes).flat_map(move |(at, _)| (at..at + BLOCK).step_by(step))
}

fn number(bytes: &[u8]) -> usize {
    match bytes {
        [high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    }
}

/// How many blocks the disk has.
fn blocks(bytes: &[u8]) -> usize {
    number(bytes).clamp(1, DISK_MAX / BLOCK)
}

/// Where each block that the input has is on the disk, and the block.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let blocks = blocks(bytes);
    let pieces = bytes.get(2..).unwrap_or_default().chunks(2 + BLOCK);
    pieces.map(move |piece| {
        let at = number(piece) % blocks * BLOCK;
        (at, piece.get(2..).unwrap_or_default())
    })
}

/// The input that means a disk; None for one that is too long.
pub fn pack(disk: &[u8]) -> Option<Vec<u8>> {
    let blocks = u16::try_from(disk.len().div_ceil(BLOCK)).ok()?;
    let mut bytes = blocks.to_be_bytes().to_vec();
    for (number, block) in (0u16..).zip(disk.chunks(BLOCK)) {
        if block.iter().any(|byte| *byte != 0) {
            bytes.extend(number.to_be_bytes());
            bytes.extend(block);
            bytes.resize(bytes.len() + BLOCK - block.len(), 0);
        }
    }
    Some(bytes)
}
