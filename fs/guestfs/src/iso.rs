//! ISO 9660, with the names and attributes of Rock Ridge, or the names of Joliet. A node is the place of a
//! directory's record, in units of two bytes.
//! Does not know: interleaved files, and compressed ones (zisofs), which it says.

mod ridge;

use crate::bytes::{le16, le32, slice, u8};
use crate::filesystem::{
    Attributes, DirEntry, Extent, FileKind, Filesystem, Journal, Listing, is_name,
};
use crate::{Error, ReadAt, stretches};
use ridge::Ridge;
use std::sync::Arc;

/// Bytes of a sector, in which directories and descriptors begin.
const SECTOR: u64 = 2048;
/// The first descriptor.
const DESCRIPTORS: u64 = 16;
/// Descriptors that are looked at.
const DESCRIPTORS_MAX: u64 = 32;
/// Where a descriptor has the record of the root directory.
const ROOT: u64 = 156;
/// What every record has.
const RECORD: usize = 33;
/// The most bytes that a directory can have.
const DIRECTORY_MAX: u64 = 64 << 20;
/// Sectors of a directory that one listing goes through, and those that it can be longer by when it would end within a
/// file.
const PIECE: u64 = 8;
const PIECE_MORE: u64 = 256;
/// Records of one file: so many have a terabyte.
const PIECES_MAX: usize = 1024;

const HIDDEN: u8 = 1;
const DIRECTORY: u8 = 2;
const ASSOCIATED: u8 = 4;
/// The file goes on in the next record.
const CONTINUED: u8 = 0x80;

/// Whose names are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Plain,
    Joliet,
    /// And how many bytes before its fields are others'.
    RockRidge(usize),
}

/// An open ISO 9660.
pub struct Iso {
    source: Arc<dyn ReadAt>,
    /// Bytes of a block.
    block: u64,
    root: u64,
    names: Names,
}

/// A record of a directory.
struct Record {
    bytes: Vec<u8>,
    start: u64,
    size: u64,
    flags: u8,
    is_interleaved: bool,
}

impl Iso {
    /// Reads the descriptors.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Iso, Error> {
        let (mut plain, mut joliet, mut block) = (None, None, SECTOR);
        for index in DESCRIPTORS..DESCRIPTORS + DESCRIPTORS_MAX {
            let at = index * SECTOR;
            let descriptor = source.bytes(at, SECTOR as usize)?;
            if slice(&descriptor, 1, 5)? != b"CD001" {
                break;
            }
            match u8(&descriptor, 0)? {
                1 if plain.is_none() => {
                    plain = Some(at + ROOT);
                    block = le16(&descriptor, 128)?.into();
                }
                2 if matches!(slice(&descriptor, 88, 3)?, b"%/@" | b"%/C" | b"%/E") => {
                    joliet = Some(at + ROOT);
                }
                255 => break,
                _ => {}
            }
        }
        let plain = plain.ok_or(Error::Corrupt("it has no descriptor"))?;
        if !block.is_power_of_two() || !(512..=SECTOR).contains(&block) {
            return Err(Error::Corrupt("the size of blocks"));
        }
        let mut iso = Iso {
            source,
            block,
            root: plain / 2,
            names: Names::Plain,
        };
        // The first record of the root directory says whether there are the fields of Rock Ridge.
        let root = iso.record(iso.root)?;
        let first = iso.source.bytes(root.start, SECTOR as usize)?;
        let length = usize::from(u8(&first, 0)?);
        if let Some(skipped) = ridge::marked(slice(&first, 0, length)?)? {
            iso.names = Names::RockRidge(skipped);
        } else if let Some(joliet) = joliet {
            (iso.root, iso.names) = (joliet / 2, Names::Joliet);
        }
        Ok(iso)
    }

    fn record(&self, node: u64) -> Result<Record, Error> {
        const NONE: Error = Error::Corrupt("a number is of no file");
        let at = node.checked_mul(2).ok_or(NONE)?;
        let length = usize::from(u8(&self.source.bytes(at, 1)?, 0)?);
        if length < RECORD + 1 {
            return Err(NONE);
        }
        self.parse(self.source.bytes(at, length)?)
    }

    fn parse(&self, bytes: Vec<u8>) -> Result<Record, Error> {
        let extent = u64::from(le32(&bytes, 2)?) + u64::from(u8(&bytes, 1)?);
        Ok(Record {
            is_interleaved: u8(&bytes, 26)? != 0 || u8(&bytes, 27)? != 0,
            start: extent * self.block,
            size: le32(&bytes, 10)?.into(),
            flags: u8(&bytes, 25)?,
            bytes,
        })
    }

    fn ridge(&self, record: &Record) -> Result<Ridge, Error> {
        match self.names {
            Names::RockRidge(skipped) => {
                ridge::read(&*self.source, self.block, &record.bytes, skipped)
            }
            Names::Plain | Names::Joliet => Ok(Ridge::default()),
        }
    }

    /// The name of a record; None for one that names nothing.
    fn name(&self, record: &Record, ridge: &Ridge) -> Result<Option<Vec<u8>>, Error> {
        let length = usize::from(u8(&record.bytes, 32)?);
        let name = slice(&record.bytes, RECORD, length)?;
        if matches!(name, [0 | 1]) || ridge.is_relocated {
            return Ok(None);
        }
        let text = match self.names {
            Names::RockRidge(_) if !ridge.name.is_empty() => return Ok(Some(ridge.name.clone())),
            Names::Joliet => {
                let units = name.chunks_exact(2).flat_map(|it| [it[1], it[0]]);
                crate::bytes::utf16(&units.collect::<Vec<u8>>())
            }
            Names::Plain | Names::RockRidge(_) => name.to_ascii_lowercase(),
        };
        // Versions say nothing, nor does a point without a suffix.
        let end = text.iter().position(|byte| *byte == b';');
        let mut text = text[..end.unwrap_or(text.len())].to_vec();
        if self.names != Names::Joliet && text.last() == Some(&b'.') {
            text.pop();
        }
        Ok(Some(text))
    }

    /// A directory's own record: where the names in it are.
    fn directory(&self, node: u64) -> Result<Record, Error> {
        let record = self.record(node)?;
        let ridge = self.ridge(&record)?;
        if let Some(block) = ridge.moved_to {
            // Too deep for the format: it stands elsewhere, and its first record says how long it is.
            let place = u64::from(block) * self.block;
            return self.record(place / 2);
        }
        match record.flags & DIRECTORY {
            0 => Err(Error::WrongKind),
            _ => Ok(record),
        }
    }

    /// The pieces of a file: this record, and those that follow.
    fn pieces(&self, node: u64) -> Result<Vec<Record>, Error> {
        let mut at = node;
        let mut pieces = Vec::new();
        loop {
            let record = self.record(at)?;
            at += record.bytes.len() as u64 / 2;
            let is_last = record.flags & CONTINUED == 0;
            pieces.push(record);
            if is_last {
                return Ok(pieces);
            }
            if pieces.len() >= PIECES_MAX {
                return Err(Error::Corrupt("a file has too many pieces"));
            }
            // Records do not straddle sectors.
            if u8(&self.source.bytes(at * 2, 1)?, 0)? == 0 {
                at = (at * 2).next_multiple_of(SECTOR) / 2;
            }
        }
    }

    fn kind(&self, record: &Record, ridge: &Ridge) -> FileKind {
        let of_mode = ridge.mode.and_then(FileKind::of_mode);
        match ridge.moved_to {
            Some(_) => FileKind::Directory,
            None => {
                of_mode.unwrap_or_else(|| FileKind::of_directory(record.flags & DIRECTORY != 0))
            }
        }
    }
}

impl Filesystem for Iso {
    fn root(&self) -> u64 {
        self.root
    }

    fn journal(&self) -> Journal {
        Journal::Clean
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Error> {
        let record = match node == self.root {
            // What is said of the root is in its own first record.
            true => self.record(self.record(node)?.start / 2)?,
            false => self.record(node)?,
        };
        let mut ridge = self.ridge(&record)?;
        let kind = self.kind(&record, &ridge);
        let size = match kind {
            FileKind::Directory => {
                let own = self.directory(node)?;
                if ridge.moved_to.is_some() {
                    ridge = self.ridge(&own)?;
                }
                own.size
            }
            FileKind::File => self.pieces(node)?.iter().map(|piece| piece.size).sum(),
            _ => 0,
        };
        let recorded = ridge::short_time(slice(&record.bytes, 18, 7)?)?;
        let modified = ridge.modified.unwrap_or(recorded);
        let permissions = match kind {
            FileKind::Directory => 0o555,
            _ => 0o444,
        };
        Ok(Attributes {
            kind,
            permissions: ridge
                .mode
                .map_or(permissions, |mode| (mode & 0o7777) as u16),
            links: ridge.links.unwrap_or(1),
            owner: ridge.owner,
            size,
            blocks: size.div_ceil(512),
            device: ridge.device,
            accessed: ridge.accessed.unwrap_or(modified),
            modified,
            changed: ridge.changed.unwrap_or(modified),
        })
    }

    fn list(&self, directory: u64, cookie: u64) -> Result<Listing, Error> {
        let own = self.directory(directory)?;
        let size = own.size.min(DIRECTORY_MAX);
        let mut entries = Vec::new();
        // The cookie is a sector, and one more when the one before ends within a file.
        let mut sector = cookie;
        let mut is_continued = false;
        while sector.saturating_mul(SECTOR) < size
            && (sector - cookie < PIECE || is_continued && sector - cookie < PIECE + PIECE_MORE)
        {
            let start = own.start.saturating_add(sector * SECTOR);
            let length = (size - sector * SECTOR).min(SECTOR) as usize;
            let bytes = self.source.bytes(start, length)?;
            let mut at = 0;
            while at < bytes.len() && bytes[at] != 0 {
                let length = usize::from(bytes[at]);
                let record = slice(&bytes, at, length)?.to_vec();
                let node = (start + at as u64) / 2;
                at += length;
                if length < RECORD + 1 || length % 2 != 0 {
                    return Err(Error::Corrupt("a record of a directory"));
                }
                let Ok(record) = self.parse(record) else {
                    continue;
                };
                let was_continued =
                    std::mem::replace(&mut is_continued, record.flags & CONTINUED != 0);
                let ridge = match self.ridge(&record) {
                    // It hides no other name, and says so itself when it is asked for.
                    Err(Error::Corrupt(_)) => Ridge::default(),
                    ridge => ridge?,
                };
                // What is associated with the file of the same name is no file of its own: Linux leaves it out.
                let is_hidden = self.names == Names::Plain && record.flags & HIDDEN != 0
                    || record.flags & ASSOCIATED != 0;
                if let Some(name) = self.name(&record, &ridge)?
                    && is_name(&name)
                    && !was_continued
                    && !is_hidden
                {
                    entries.push(DirEntry {
                        name,
                        node,
                        kind: Some(self.kind(&record, &ridge)),
                    });
                }
            }
            sector += 1;
        }
        let next = (sector.saturating_mul(SECTOR) < size).then_some(sector);
        Ok(Listing { entries, next })
    }

    fn target(&self, node: u64) -> Result<Vec<u8>, Error> {
        let ridge = self.ridge(&self.record(node)?)?;
        match ridge.target.is_empty() {
            true => Err(Error::WrongKind),
            false => Ok(ridge.target),
        }
    }

    fn extents(&self, node: u64, offset: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        Ok(self.content(node, offset, limit)?.0)
    }

    fn read(&self, node: u64, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let (extents, size) = self.content(node, offset, usize::MAX)?;
        stretches::read(&*self.source, &extents, size, offset, length)
    }
}

impl Iso {
    /// Where the bytes of a file are, from one on, and how many it has in all.
    fn content(&self, node: u64, offset: u64, limit: usize) -> Result<(Vec<Extent>, u64), Error> {
        let pieces = self.pieces(node)?;
        let [record, ..] = &pieces[..] else {
            return Err(Error::WrongKind);
        };
        let ridge = self.ridge(record)?;
        if self.kind(record, &ridge) != FileKind::File {
            return Err(Error::WrongKind);
        }
        if ridge.is_compressed {
            return Err(Error::Unsupported("the file is compressed (zisofs)"));
        }
        if pieces.iter().any(|piece| piece.is_interleaved) {
            return Err(Error::Unsupported("the file is interleaved"));
        }
        let (mut found, mut at) = (Vec::new(), 0);
        for piece in &pieces {
            if at + piece.size > offset && piece.size > 0 && found.len() < limit {
                if piece.start.saturating_add(piece.size) > self.source.size() {
                    return Err(Error::Corrupt("a file is behind the end"));
                }
                stretches::add(&mut found, at, piece.size, piece.start);
            }
            at += piece.size;
        }
        Ok((found, at))
    }
}
