//! BLAKE3's tree over pieces of a disk: what is kept of each piece, and how the root comes of it.

use super::content::PIECE;
use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

/// What stands before the digits in a manifest.
pub const WORD: &str = "blake3:";
/// What a kept tree begins with; the disk's size follows, and then the values.
const MAGIC: &[u8; 16] = b"qmpfs blake3 1\n\0";
/// Bytes of one value.
const VALUE: usize = 32;

/// The values of all pieces of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    values: Vec<ChainingValue>,
}

/// The value of one piece, which begins at `offset` and is not empty.
pub(super) fn value(bytes: &[u8], offset: u64) -> ChainingValue {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes).finalize_non_root()
}

/// How many pieces a disk has.
pub(super) fn count(size: u64) -> usize {
    usize::try_from(size.div_ceil(PIECE)).unwrap_or(usize::MAX)
}

impl Tree {
    /// Of a disk of more than one piece.
    pub(super) fn new(size: u64, values: Vec<ChainingValue>) -> Tree {
        Tree { size, values }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn values(&self) -> &[ChainingValue] {
        &self.values
    }

    /// The digest, in the manifest's words. None of a disk that has not two pieces: of that no tree
    /// is kept.
    pub fn digest(&self) -> Option<String> {
        let (left, right) = self.halves(0..self.size)?;
        let root = merge_subtrees_root(&self.subtree(left), &self.subtree(right), Mode::Hash);
        Some(format!("{WORD}{}", root.to_hex()))
    }

    /// The two subtrees of a stretch that begins with a piece; None of one piece.
    fn halves(
        &self,
        stretch: std::ops::Range<u64>,
    ) -> Option<(std::ops::Range<u64>, std::ops::Range<u64>)> {
        let length = stretch.end - stretch.start;
        if length <= PIECE {
            return None;
        }
        let middle = stretch.start + left_subtree_len(length);
        Some((stretch.start..middle, middle..stretch.end))
    }

    fn subtree(&self, stretch: std::ops::Range<u64>) -> ChainingValue {
        match self.halves(stretch.clone()) {
            Some((left, right)) => {
                merge_subtrees_non_root(&self.subtree(left), &self.subtree(right), Mode::Hash)
            }
            None => {
                let index = usize::try_from(stretch.start / PIECE).unwrap_or(usize::MAX);
                self.values[index]
            }
        }
    }

    /// As it is kept in a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAGIC.len() + 8 + self.values.len() * VALUE);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.size.to_le_bytes());
        for value in &self.values {
            bytes.extend_from_slice(value);
        }
        bytes
    }

    /// From a file; None if that is no tree, or not the one with this digest.
    pub fn from_bytes(bytes: &[u8], digest: &str) -> Option<Tree> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (size, values) = rest.split_first_chunk::<8>()?;
        let size = u64::from_le_bytes(*size);
        let (values, rest) = values.as_chunks::<VALUE>();
        if !rest.is_empty() || values.len() != count(size) {
            return None;
        }
        let tree = Tree::new(size, values.to_vec());
        (tree.digest().as_deref() == Some(digest)).then_some(tree)
    }
}

#[cfg(test)]
mod tests {
    use super::{Tree, WORD, value};
    use crate::digest::PIECE;

    fn disk(size: usize) -> Vec<u8> {
        (0..size)
            .map(|at| ((at / 7) ^ (at >> 13)).to_le_bytes()[0])
            .collect()
    }

    fn tree(bytes: &[u8]) -> Tree {
        let piece = usize::try_from(PIECE).expect("a MiB");
        let values = bytes.chunks(piece).enumerate();
        let values = values.map(|(index, bytes)| value(bytes, index as u64 * PIECE));
        Tree::new(bytes.len() as u64, values.collect())
    }

    #[test]
    fn the_digest_is_that_of_all_bytes_at_once() {
        let piece = usize::try_from(PIECE).expect("a MiB");
        for size in [piece + 1, 2 * piece, 3 * piece, 5 * piece + 512, 8 * piece] {
            let bytes = disk(size);
            let expected = format!("{WORD}{}", blake3::hash(&bytes).to_hex());
            assert_eq!(tree(&bytes).digest(), Some(expected), "{size}");
        }
        assert_eq!(tree(&disk(piece)).digest(), None);
    }

    #[test]
    fn a_kept_tree_is_believed_when_it_has_the_digest() {
        let whole = tree(&disk(3 << 20));
        let digest = whole.digest().expect("three pieces");
        let bytes = whole.to_bytes();
        assert_eq!(Tree::from_bytes(&bytes, &digest), Some(whole));
        for at in [0, 17, 30, bytes.len() - 1] {
            let mut torn = bytes.clone();
            torn[at] ^= 1;
            assert_eq!(Tree::from_bytes(&torn, &digest), None, "{at}");
        }
        for length in [0, 16, 24, bytes.len() - 1] {
            assert_eq!(Tree::from_bytes(&bytes[..length], &digest), None);
        }
        assert_eq!(Tree::from_bytes(&bytes, "blake3:00"), None);
    }
}
