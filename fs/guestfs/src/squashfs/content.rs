//! The bytes of files: blocks one after the other, holes between them, and an end that shares a block with the
//! ends of others.

use super::inode::File;
use super::tables::{Blocks, Word};
use crate::bytes::{le32, le64};
use crate::filesystem::{Extent, Place};
use crate::{Error, stretches};

/// Blocks of one file: half a terabyte of blocks of 128 KiB, and 48 MiB of memory.
const BLOCKS_MAX: u64 = 4 << 20;
/// Sizes that are read at once.
const SIZES: u64 = 1024;
const FRAGMENT: usize = 16;

/// What a file is made of.
pub(super) struct Layout {
    size: u64,
    block: u64,
    /// Where each block is, and what its size says.
    blocks: Vec<(u64, Word)>,
    /// Where the block with its end is, what its size says, and where the end is in it.
    end: Option<(u64, Word, u64)>,
}

/// One stretch of a file, which is in one block.
struct Stretch {
    offset: u64,
    length: u64,
    /// None for a hole.
    place: Option<(u64, Word)>,
    /// Its first byte in the block.
    skip: u64,
    /// Bytes of the block; of one with the ends of several files it is not known.
    whole: Option<u64>,
}

impl Layout {
    /// Reads the sizes of a file's blocks; `fragments` is their table, and how many there are.
    pub(super) fn read(
        blocks: &Blocks,
        block: u64,
        (fragments, count): (u64, u32),
        file: &File,
        size: u64,
    ) -> Result<Layout, Error> {
        let full = match file.fragment {
            Some(_) => size / block,
            None => size.div_ceil(block),
        };
        if full > BLOCKS_MAX {
            return Err(Error::Unsupported("the file has too many blocks"));
        }
        let mut layout = Layout {
            size,
            block,
            blocks: Vec::new(),
            end: None,
        };
        let mut stream = blocks.stream(file.sizes.0, file.sizes.1);
        let mut at = file.start;
        while (layout.blocks.len() as u64) < full {
            let some = (full - layout.blocks.len() as u64).min(SIZES) as usize;
            for bytes in stream.take(some * 4)?.chunks_exact(4) {
                let word = Word(le32(bytes, 0)?);
                layout.blocks.push((at, word));
                at = at.saturating_add(word.bytes().into());
            }
        }
        if let Some((index, within)) = file.fragment.filter(|_| !size.is_multiple_of(block)) {
            if index >= count {
                return Err(Error::Corrupt("a file ends in no fragment"));
            }
            let entry = blocks.entry(fragments, index.into(), FRAGMENT)?;
            let word = Word(le32(&entry, 8)?);
            layout.end = Some((le64(&entry, 0)?, word, within.into()));
        }
        Ok(layout)
    }

    /// The stretch that is block `index` of the file.
    fn stretch(&self, index: u64) -> Option<Stretch> {
        let offset = index.checked_mul(self.block)?;
        let length = self.size.checked_sub(offset)?.min(self.block);
        let known = usize::try_from(index)
            .ok()
            .and_then(|it| self.blocks.get(it));
        let (place, skip, whole) = match (known, self.end) {
            (Some((at, word)), _) => ((*at, *word), 0, Some(length)),
            (None, Some((at, word, skip))) => ((at, word), skip, None),
            (None, None) => return None,
        };
        (length > 0).then_some(Stretch {
            offset,
            length,
            place: Some(place).filter(|(_, word)| word.bytes() > 0),
            skip,
            whole,
        })
    }

    fn stretches(&self, offset: u64) -> impl Iterator<Item = Stretch> {
        let first = offset / self.block;
        (first..).map_while(|index| self.stretch(index))
    }

    pub(super) fn extents(
        &self,
        blocks: &Blocks,
        offset: u64,
        limit: usize,
    ) -> Result<Vec<Extent>, Error> {
        let mut found: Vec<Extent> = Vec::new();
        for stretch in self.stretches(offset) {
            let Stretch { offset, length, .. } = stretch;
            let before = found.len();
            match stretch.place {
                None => {}
                Some((at, word)) if word.is_plain() => {
                    let stored = u64::from(word.bytes());
                    let end = stretch.skip.checked_add(length);
                    if stretch.whole.is_some_and(|whole| whole != stored)
                        || end.is_none_or(|end| end > stored)
                    {
                        return Err(Error::Corrupt("the size of a block of data"));
                    }
                    let start = blocks.place(at, stored)?;
                    stretches::add(&mut found, offset, length, start + stretch.skip);
                }
                Some(_) => match found.last_mut() {
                    Some(last)
                        if last.place == Place::Reader && last.offset + last.length == offset =>
                    {
                        last.length += length;
                    }
                    Some(_) | None => found.push(Extent {
                        offset,
                        length,
                        place: Place::Reader,
                    }),
                },
            }
            if found.len() > limit {
                found.truncate(before);
                break;
            }
        }
        Ok(found)
    }

    pub(super) fn bytes(
        &self,
        blocks: &Blocks,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, Error> {
        let rest = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = length.min(rest);
        let end = offset.saturating_add(length as u64);
        let mut bytes = vec![0; length];
        for stretch in self.stretches(offset) {
            // Nothing of it is asked for, or all that is asked for lies behind the file's end.
            if stretch.offset >= end || length == 0 {
                break;
            }
            let Some((at, word)) = stretch.place else {
                continue;
            };
            let whole = match stretch.whole {
                Some(whole) => blocks.data(at, word, whole as usize)?,
                None => blocks.fragment(at, word, self.block as usize)?,
            };
            let (from, to) = (
                stretch.offset.max(offset),
                (stretch.offset + stretch.length).min(end),
            );
            let within = stretch.skip.saturating_add(from - stretch.offset) as usize;
            let piece = within.checked_add((to - from) as usize);
            let piece = piece.and_then(|until| whole.get(within..until));
            let piece = piece.ok_or(Error::Corrupt("a fragment is too short"))?;
            bytes[(from - offset) as usize..(to - offset) as usize].copy_from_slice(piece);
        }
        Ok(bytes)
    }
}
