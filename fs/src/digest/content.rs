//! Reading a disk piece by piece: what is known to be zeros is not read, and what is known to be as it
//! was is not even looked at.

use super::tree::{Tree, WORD, count, value};
use crate::errno::Failure;
use crate::sys;
use blake3::hazmat::ChainingValue;
use rayon::prelude::*;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes of a piece: a power of two, small enough that an incremental backup reads little around what it
/// wrote, large enough that the tree of a TiB is no more than 32 MiB.
pub const PIECE: u64 = 1 << 20;

/// The bytes of a disk that does not change.
pub trait Content: Sync {
    /// How many.
    fn size(&self) -> u64;
    /// Fills the buffer, which lies within the disk.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Failure>;
    /// The next offset from here on that is not known to be zero; None when there is none.
    fn next_data(&self, offset: u64) -> Result<Option<u64>, Failure>;
}

impl Content for File {
    fn size(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
        self.read_exact_at(buffer, offset)
            .map_err(|error| Failure::io(format!("read at {offset}"), &error))
    }

    fn next_data(&self, offset: u64) -> Result<Option<u64>, Failure> {
        match sys::stretch_at(self, offset) {
            Ok(stretch) if stretch.data => Ok(Some(offset)),
            Ok(stretch) => Ok(Some(stretch.end).filter(|end| *end < Content::size(self))),
            Err(error) => Err(Failure::io(format!("look at {offset}"), &error)),
        }
    }
}

/// What is told while it goes on: bytes that are done. An error ends it.
pub type Progress<'a> = &'a mut dyn FnMut(u64) -> Result<(), Failure>;

/// What need not be read: the tree of another content, and which stretches are the same in both.
pub struct Pieces<'a> {
    /// Of the other one, with the same size.
    pub tree: &'a Tree,
    /// Whether a stretch may differ.
    pub differs: &'a (dyn Fn(Range<u64>) -> Result<bool, Failure> + Sync),
}

/// How a piece comes by its value.
enum Way {
    Known(ChainingValue),
    Zeros,
    Read,
}

/// The digest of a content in a manifest's words, and the tree to keep for the next. `at_once` is how many
/// pieces are read and hashed side by side.
pub fn measure(
    content: &dyn Content,
    known: Option<&Pieces<'_>>,
    at_once: usize,
    progress: Progress<'_>,
) -> Result<(String, Option<Tree>), Failure> {
    let size = content.size();
    if size <= PIECE {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        content.read(&mut bytes, 0)?;
        progress(size)?;
        return Ok((format!("{WORD}{}", blake3::hash(&bytes).to_hex()), None));
    }
    let known = known.filter(|known| known.tree.size() == size);
    let mut values = Vec::with_capacity(count(size));
    let mut data_from = 0;
    let mut own = Vec::new();
    while values.len() < count(size) {
        let mut ways = Vec::with_capacity(at_once);
        for index in (values.len()..count(size)).take(at_once.max(1)) {
            let stretch = stretch(index, size);
            let way = match known {
                Some(known) if !(known.differs)(stretch.clone())? => {
                    Way::Known(known.tree.values()[index])
                }
                Some(_) | None => {
                    if data_from < stretch.start {
                        data_from = stretch.start;
                    }
                    if data_from < stretch.end {
                        data_from = content.next_data(data_from)?.unwrap_or(u64::MAX);
                    }
                    match data_from < stretch.end {
                        true => Way::Read,
                        false => Way::Zeros,
                    }
                }
            };
            ways.push((stretch, way));
        }
        let come_by = |buffer: &mut Vec<u8>, (stretch, way): &(Range<u64>, Way)| {
            buffer.resize(usize::try_from(stretch.end - stretch.start).unwrap_or(0), 0);
            match way {
                Way::Known(value) => return Ok(*value),
                Way::Zeros => buffer.fill(0),
                Way::Read => content.read(buffer, stretch.start)?,
            }
            Ok(value(buffer, stretch.start))
        };
        match &ways[..] {
            // on the caller's own thread, which may be one that has time
            [one] => values.push(come_by(&mut own, one)?),
            all => {
                let batch = all.par_iter().map_init(Vec::new, come_by);
                values.extend(batch.collect::<Result<Vec<_>, Failure>>()?);
            }
        }
        progress(stretch(values.len() - 1, size).end)?;
    }
    let tree = Tree::new(size, values);
    let digest = tree
        .digest()
        .expect("it has more than one piece, or it would have ended above");
    Ok((digest, Some(tree)))
}

fn stretch(index: usize, size: u64) -> Range<u64> {
    let start = index as u64 * PIECE;
    start..start.saturating_add(PIECE).min(size)
}

#[cfg(test)]
mod tests {
    use super::{Content, PIECE, Pieces, measure};
    use crate::errno::{Errno, Failure};
    use std::ops::Range;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Memory {
        bytes: Vec<u8>,
        read: AtomicU64,
    }

    impl Memory {
        fn new(bytes: Vec<u8>) -> Memory {
            let read = AtomicU64::new(0);
            Memory { bytes, read }
        }
    }

    impl Content for Memory {
        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
            self.read.fetch_add(1, Ordering::Relaxed);
            let offset = usize::try_from(offset).expect("small");
            buffer.copy_from_slice(&self.bytes[offset..offset + buffer.len()]);
            Ok(())
        }

        fn next_data(&self, offset: u64) -> Result<Option<u64>, Failure> {
            let from = usize::try_from(offset).expect("small");
            let found = self.bytes[from..].iter().position(|byte| *byte != 0);
            Ok(found.map(|at| offset + at as u64))
        }
    }

    fn digest_of(content: &Memory, known: Option<&Pieces<'_>>) -> String {
        let told = measure(content, known, 3, &mut |_| Ok(())).expect("it can be read");
        assert_eq!(
            told.0,
            format!("blake3:{}", blake3::hash(&content.bytes).to_hex())
        );
        told.0
    }

    #[test]
    fn zeros_are_not_read_and_what_did_not_change_is_not_either() {
        let piece = usize::try_from(PIECE).expect("a MiB");
        let mut first = Memory::new(vec![0; 9 * piece + 100]);
        first.bytes[2 * piece + 5] = 1;
        first.bytes[9 * piece + 99] = 2;
        digest_of(&first, None);
        assert_eq!(first.read.load(Ordering::Relaxed), 2);
        let tree = measure(&first, None, 1, &mut |_| Ok(()))
            .expect("it can be read")
            .1
            .expect("of many pieces there is a tree");

        let mut second = Memory::new(first.bytes.clone());
        second.bytes[4 * piece] = 3;
        let written = 4 * PIECE..4 * PIECE + 512;
        let differs = |at: Range<u64>| Ok(at.start < written.end && written.start < at.end);
        let known = Pieces {
            tree: &tree,
            differs: &differs,
        };
        digest_of(&second, Some(&known));
        assert_eq!(second.read.load(Ordering::Relaxed), 1);
        // of a disk of another size nothing is taken over
        let third = Memory::new(vec![7; 3 * piece]);
        digest_of(&third, Some(&known));
    }

    #[test]
    fn small_disks_and_ends_in_between() {
        for size in [0, 1, 1 << 20] {
            digest_of(&Memory::new(vec![9; size]), None);
        }
        let content = Memory::new(vec![9; 5 << 20]);
        let mut told = Vec::new();
        let ended = measure(&content, None, 2, &mut |done| {
            told.push(done);
            match told.len() {
                1 => Ok(()),
                _ => Err(Failure::new(Errno::EINTR, "enough")),
            }
        });
        assert_eq!(ended.map(|_| ()).expect_err("ended").errno, Errno::EINTR);
        assert_eq!(told, [2 << 20, 4 << 20]);
    }
}
