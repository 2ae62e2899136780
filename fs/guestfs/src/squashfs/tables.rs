//! Blocks of squashfs: of metadata, which are read as one stream from any of them on, and of data.
//! Tables are lists of blocks of metadata, found by a second list.

use crate::bytes::{le16, le64, slice};
use crate::{Error, ReadAt, unpack};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a block of metadata; only the last one of a stream has fewer.
pub(super) const METADATA: usize = 8 << 10;
/// Blocks of metadata that are kept: eight mebibytes.
const METADATA_KEPT: usize = 1024;
/// Blocks of data that are kept: fragments of many files are in one. Eight mebibytes at most.
const DATA_KEPT: usize = 8;
/// The mark of a block of metadata that is as it is.
const PLAIN: u16 = 0x8000;
/// The mark of a block of data that is as it is.
const PLAIN_DATA: u32 = 1 << 24;

/// How blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Gzip,
    Lzo,
    Xz,
    Lz4,
    Zstd,
}

impl Method {
    pub(super) fn of(number: u16) -> Result<Method, Error> {
        match number {
            1 => Ok(Method::Gzip),
            3 => Ok(Method::Lzo),
            4 => Ok(Method::Xz),
            5 => Ok(Method::Lz4),
            6 => Ok(Method::Zstd),
            2 => Err(Error::Unsupported("it is compressed with LZMA (not XZ)")),
            _ => Err(Error::Unsupported("a way of compression")),
        }
    }

    fn expand(self, packed: &[u8], length: usize) -> Result<Vec<u8>, Error> {
        match self {
            Method::Gzip => unpack::zlib(packed, length),
            Method::Lzo => unpack::lzo(packed, length),
            Method::Xz => unpack::xz(packed, length),
            Method::Lz4 => unpack::lz4(packed, length),
            Method::Zstd => unpack::zstd(packed, length),
        }
    }
}

/// What the size of a block of data says besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(pub(super) u32);

impl Word {
    pub(super) fn is_plain(self) -> bool {
        self.0 & PLAIN_DATA != 0
    }

    /// Bytes that it takes on the disk; none for a hole.
    pub(super) fn bytes(self) -> u32 {
        self.0 & !PLAIN_DATA
    }
}

/// A block of metadata, and where the next one is.
struct Metadata {
    bytes: Vec<u8>,
    next: u64,
}

/// What was read, by its place.
type Kept<T> = Mutex<HashMap<u64, T>>;

/// All blocks.
pub(super) struct Blocks {
    source: Arc<dyn ReadAt>,
    method: Method,
    metadata: Kept<Arc<Metadata>>,
    data: Kept<(Word, Arc<Vec<u8>>)>,
}

impl Blocks {
    pub(super) fn new(source: Arc<dyn ReadAt>, method: Method) -> Blocks {
        Blocks {
            source,
            method,
            metadata: Mutex::default(),
            data: Mutex::default(),
        }
    }

    fn metadata(&self, at: u64) -> Result<Arc<Metadata>, Error> {
        let mut kept = self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = kept.get(&at) {
            return Ok(Arc::clone(block));
        }
        let head = le16(&self.source.bytes(at, 2)?, 0)?;
        let size = usize::from(head & !PLAIN);
        if !(1..=METADATA).contains(&size) {
            return Err(Error::Corrupt("the size of a block of metadata"));
        }
        // The bytes of the head are there.
        let stored = self.source.bytes(at + 2, size)?;
        let bytes = match head & PLAIN {
            0 => self.method.expand(&stored, METADATA)?,
            _ => stored,
        };
        if bytes.is_empty() {
            return Err(Error::Corrupt("a block of metadata is empty"));
        }
        if kept.len() >= METADATA_KEPT {
            kept.clear();
        }
        let next = at + 2 + size as u64;
        let block = Arc::new(Metadata { bytes, next });
        kept.insert(at, Arc::clone(&block));
        Ok(block)
    }

    /// A block of a file, of `length` bytes.
    pub(super) fn data(&self, at: u64, word: Word, length: usize) -> Result<Arc<Vec<u8>>, Error> {
        let block = self.fragment(at, word, length)?;
        match block.len() == length {
            true => Ok(block),
            false => Err(Error::Corrupt("a block of data is too short")),
        }
    }

    /// A block with ends of files, of `most` bytes or fewer.
    pub(super) fn fragment(&self, at: u64, word: Word, most: usize) -> Result<Arc<Vec<u8>>, Error> {
        let mut kept = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, block)) = kept.get(&at).filter(|(its, _)| *its == word) {
            return Ok(Arc::clone(block));
        }
        let stored = word.bytes() as usize;
        if stored > most {
            return Err(Error::Corrupt("the size of a block of data"));
        }
        let stored = self.source.bytes(at, stored)?;
        let bytes = match word.is_plain() {
            true => stored,
            false => self.method.expand(&stored, most)?,
        };
        if kept.len() >= DATA_KEPT {
            kept.clear();
        }
        let block = Arc::new(bytes);
        kept.insert(at, (word, Arc::clone(&block)));
        Ok(block)
    }

    /// Where `length` bytes on the disk are, which must be there.
    pub(super) fn place(&self, at: u64, length: u64) -> Result<u64, Error> {
        match at.checked_add(length) {
            Some(end) if end <= self.source.size() => Ok(at),
            Some(_) | None => Err(Error::Corrupt("a block is behind the end")),
        }
    }

    /// The stream of metadata from a byte of a block on.
    pub(super) fn stream(&self, block: u64, offset: usize) -> Stream<'_> {
        Stream {
            blocks: self,
            block,
            offset,
        }
    }

    /// Entry `index` of a table, of `size` bytes, found by the list at `table`.
    pub(super) fn entry(&self, table: u64, index: u64, size: usize) -> Result<Vec<u8>, Error> {
        const FAR: Error = Error::Corrupt("a table is behind the end");
        let per_block = (METADATA / size) as u64;
        let pointer = table.checked_add(index / per_block * 8).ok_or(FAR)?;
        let block = le64(&self.source.bytes(pointer, 8)?, 0)?;
        let offset = (index % per_block) as usize * size;
        self.stream(block, offset).take(size)
    }
}

/// Metadata, read on from block to block.
#[derive(Clone, Copy)]
pub(super) struct Stream<'a> {
    blocks: &'a Blocks,
    block: u64,
    offset: usize,
}

impl Stream<'_> {
    /// Where it is.
    pub(super) fn place(&self) -> (u64, usize) {
        (self.block, self.offset)
    }

    /// The next `length` bytes, which the caller bounds.
    pub(super) fn take(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let block = self.blocks.metadata(self.block)?;
            let here = (length - bytes.len()).min(self.rest(&block)?);
            bytes.extend(slice(&block.bytes, self.offset, here)?);
            self.advance(&block, here);
        }
        Ok(bytes)
    }

    /// Passes over bytes.
    pub(super) fn skip(&mut self, mut length: u64) -> Result<(), Error> {
        while length > 0 {
            let block = self.blocks.metadata(self.block)?;
            let here = length.min(self.rest(&block)? as u64);
            self.advance(&block, here as usize);
            length -= here;
        }
        Ok(())
    }

    /// Bytes that are left of this block; none before the next one.
    fn rest(&self, block: &Metadata) -> Result<usize, Error> {
        let rest = block.bytes.len().checked_sub(self.offset);
        rest.ok_or(Error::Corrupt("a place is in no block of metadata"))
    }

    fn advance(&mut self, block: &Metadata, length: usize) {
        self.offset += length;
        if self.offset >= block.bytes.len() {
            (self.block, self.offset) = (block.next, 0);
        }
    }
}
