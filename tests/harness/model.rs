//! What a disk must hold, block by block. Each block says of itself where it belongs and which write it came from,
//! so a wrong byte tells its story: zeros, an older write, or a block from another place.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The size of a block: that of a qcow2 cluster, so that every write may allocate one.
pub const BLOCK: usize = 64 * 1024;
/// The same, for offsets.
pub const STEP: u64 = BLOCK as u64;

/// Block offset to the number of the last write; a block without one holds zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model(pub BTreeMap<u64, u64>);

impl Model {
    /// The number of the last write at `offset`.
    pub fn at(&self, offset: u64) -> u64 {
        self.0.get(&offset).copied().unwrap_or(0)
    }

    /// What an image holds, whichever writes those are. Panics at a block that is of no write.
    #[track_caller]
    pub fn found(image: &Path, region: std::ops::Range<u64>) -> Self {
        let file = File::open(image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
        let mut block = vec![0; BLOCK];
        let mut found = Self::default();
        for offset in region.step_by(BLOCK) {
            file.read_exact_at(&mut block, offset)
                .unwrap_or_else(|e| panic!("{} at {offset}: {e}", image.display()));
            let write = number(&block, offset);
            let write = write.unwrap_or_else(|| {
                panic!(
                    "{} at {offset}: {}",
                    image.display(),
                    describe(&block, offset)
                )
            });
            if write > 0 {
                found.0.insert(offset, write);
            }
        }
        found
    }

    /// Panics at the first block of `image` in `region` that is not as this model says.
    #[track_caller]
    pub fn assert_holds(&self, image: &Path, region: std::ops::Range<u64>) {
        self.assert_between(self, image, region);
    }

    /// Panics if a block of `image` is older than in `self` or newer than in `later`:
    /// an instant between the two, beside a writer.
    #[track_caller]
    pub fn assert_between(&self, later: &Self, image: &Path, region: std::ops::Range<u64>) {
        let file = File::open(image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
        let mut block = vec![0; BLOCK];
        for offset in region.step_by(BLOCK) {
            file.read_exact_at(&mut block, offset)
                .unwrap_or_else(|e| panic!("{} at {offset}: {e}", image.display()));
            let (oldest, newest) = (self.at(offset), later.at(offset));
            let found = number(&block, offset);
            assert!(
                found.is_some_and(|n| (oldest..=newest).contains(&n)),
                "{} at {offset}: expected write {oldest}..={newest}, found {}",
                image.display(),
                describe(&block, offset),
            );
        }
    }
}

/// Fills a block as write `number` at `offset` leaves it; number 0 is zeros.
pub fn fill(block: &mut [u8], offset: u64, number: u64) {
    for (i, word) in block.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&stamp(offset, number, i as u64).to_le_bytes());
    }
}

/// Which write made this block, if it is whole and in its place.
pub fn number(block: &[u8], offset: u64) -> Option<u64> {
    let first = u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
    let number = if first == 0 {
        0
    } else {
        first.wrapping_sub(offset) >> 32
    };
    first_wrong(block, offset, number)
        .is_none()
        .then_some(number)
}

/// The first byte that is not as write `number` left it.
pub fn first_wrong(block: &[u8], offset: u64, number: u64) -> Option<usize> {
    let mut want = vec![0; block.len()];
    if number > 0 {
        fill(&mut want, offset, number);
    }
    if block == want {
        return None; // at the speed of memcmp, also in a debug build
    }
    block.iter().zip(&want).position(|(a, b)| a != b)
}

/// A block in words, for a failure.
pub fn describe(block: &[u8], offset: u64) -> String {
    match number(block, offset) {
        Some(0) => "zeros".to_owned(),
        Some(n) => format!("write {n}"),
        None => format!("bytes of no write, beginning {:02x?}", &block[..16]),
    }
}

// The number stands in the high half, the place in the low half; `i` makes torn and shifted blocks visible.
fn stamp(offset: u64, number: u64, i: u64) -> u64 {
    if number == 0 {
        0
    } else {
        ((number << 32) + offset).wrapping_add(i.wrapping_mul(0x0001_0001_0000_0000))
    }
}

/// A small generator of pseudo-random numbers: the same seed, the same test.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_names_its_write() {
        let mut block = vec![0; BLOCK];
        for (offset, write) in [(0, 1), (STEP * 513, 77), (STEP, 0)] {
            fill(&mut block, offset, write);
            assert_eq!(number(&block, offset), Some(write));
            if write > 0 {
                assert_eq!(
                    number(&block, offset + STEP),
                    None,
                    "a block in another place is wrong"
                );
            }
        }
    }

    #[test]
    fn a_torn_block_is_of_no_write() {
        let (mut block, mut newer) = (vec![0; BLOCK], vec![0; BLOCK]);
        fill(&mut block, STEP, 5);
        fill(&mut newer, STEP, 6);
        block[BLOCK / 2..].copy_from_slice(&newer[BLOCK / 2..]);
        assert_eq!(number(&block, STEP), None);
        assert_eq!(first_wrong(&block, STEP, 5), Some(BLOCK / 2 + 4));
    }
}
