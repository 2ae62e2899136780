//! Records of the master file table: the attributes of one file, also those that are in other records.

use super::Ntfs;
use super::runs::{self, Run};
use crate::bytes::{le16, le32, le64, slice, u8};
use crate::{Error, ReadAt};

pub(super) const STANDARD: u32 = 0x10;
pub(super) const LIST: u32 = 0x20;
pub(super) const FILE_NAME: u32 = 0x30;
pub(super) const DATA: u32 = 0x80;
pub(super) const INDEX_ROOT: u32 = 0x90;
pub(super) const INDEX: u32 = 0xa0;
pub(super) const BITMAP: u32 = 0xb0;
pub(super) const REPARSE: u32 = 0xc0;
const END: u32 = 0xffff_ffff;

const IN_USE: u16 = 1;
const DIRECTORY: u16 = 2;
/// The last bytes of so many are kept elsewhere.
const SECTOR: usize = 512;
/// The longest list of attributes, as Windows has it.
const LIST_MAX: u64 = 256 << 10;
/// Records of one file that are looked at: as many as that list can name.
const RECORDS_MAX: usize = 8 << 10;
/// Bytes of them all: of records of a kibibyte, as nearly all are, eight times as many as a list can name.
const RECORDS_BYTES_MAX: usize = 64 << 20;
/// Attributes of one file.
const ATTRIBUTES_MAX: usize = 16 << 10;
/// Runs of one file, which take sixteen times the memory that they take on the disk: no file has more.
const RUNS_MAX: usize = 2 << 20;
/// What tells a record from how often it was used.
pub(super) const NUMBER: u64 = 0xffff_ffff_ffff;

/// One attribute of a file.
pub(super) struct Attribute {
    pub(super) kind: u32,
    /// In UTF-16.
    pub(super) name: Vec<u8>,
    pub(super) flags: u16,
    pub(super) body: Body,
}

impl Attribute {
    /// How many runs its bytes are in.
    fn runs(&self) -> usize {
        match &self.body {
            Body::Here(_) => 0,
            Body::Elsewhere(it) => it.runs.len(),
        }
    }
}

pub(super) enum Body {
    /// In the record itself.
    Here(Vec<u8>),
    Elsewhere(Elsewhere),
}

/// Bytes that are in clusters of their own.
#[derive(Default)]
pub(super) struct Elsewhere {
    pub(super) runs: Vec<Run>,
    pub(super) size: u64,
    /// Bytes that were ever written; the others are zeros.
    pub(super) written: u64,
    pub(super) allocated: u64,
    /// Clusters that are compressed together, as a power of two.
    pub(super) unit: u16,
}

/// All of a file.
pub(super) struct File {
    pub(super) is_directory: bool,
    pub(super) attributes: Vec<Attribute>,
}

impl File {
    /// The attribute of a kind and, in UTF-16, a name.
    pub(super) fn get(&self, kind: u32, name: &[u8]) -> Option<&Attribute> {
        let mut all = self.attributes.iter();
        all.find(|it| it.kind == kind && it.name == name)
    }

    /// The bytes of one that is in the record.
    pub(super) fn here(&self, kind: u32) -> Option<&[u8]> {
        let mut all = self.attributes.iter().filter(|it| it.kind == kind);
        all.find_map(|it| match &it.body {
            Body::Here(bytes) => Some(&bytes[..]),
            Body::Elsewhere(_) => None,
        })
    }
}

/// Puts back the last bytes of each sector, which say whether all of it was written.
pub(super) fn whole(mut bytes: Vec<u8>, magic: &[u8; 4]) -> Result<Vec<u8>, Error> {
    const TORN: Error = Error::Corrupt("a record was not written whole");
    if !bytes.starts_with(magic) {
        return Err(Error::Corrupt("a record is none"));
    }
    let (at, count) = (usize::from(le16(&bytes, 4)?), usize::from(le16(&bytes, 6)?));
    let kept = slice(&bytes, at, count * 2)?.to_vec();
    let (mark, saved) = kept.split_first_chunk::<2>().ok_or(TORN)?;
    if bytes.len() / SECTOR != saved.len() / 2 {
        return Err(TORN);
    }
    for (sector, saved) in bytes.chunks_exact_mut(SECTOR).zip(saved.chunks_exact(2)) {
        let end = sector.get_mut(SECTOR - 2..).ok_or(TORN)?;
        if end != mark {
            return Err(TORN);
        }
        end.copy_from_slice(saved);
    }
    Ok(bytes)
}

/// The file of a record number.
pub(super) fn file(ntfs: &Ntfs, number: u64) -> Result<File, Error> {
    let bytes = ntfs.record(number)?;
    let flags = le16(&bytes, 22)?;
    if flags & IN_USE == 0 || le64(&bytes, 32)? & NUMBER != 0 {
        return Err(Error::Corrupt("a name leads to a removed file"));
    }
    let mut attributes = attributes(&bytes)?;
    let list = attributes.iter().position(|it| it.kind == LIST);
    if let Some(list) = list.map(|at| attributes.swap_remove(at)) {
        let list = match &list.body {
            Body::Here(bytes) => bytes.clone(),
            Body::Elsewhere(it) => {
                let size = it.size.min(LIST_MAX);
                runs::read(ntfs, &it.runs, 0, size as usize)?
            }
        };
        let (mut gathered, mut runs) = (0usize, 0usize);
        for other in others(&list, number)? {
            // A record that was given to another file meanwhile says so.
            let bytes = ntfs.record(other)?;
            gathered = gathered.saturating_add(bytes.len());
            if le64(&bytes, 32)? & NUMBER == number && le16(&bytes, 22)? & IN_USE != 0 {
                let more = self::attributes(&bytes)?;
                runs = runs.saturating_add(more.iter().map(Attribute::runs).sum());
                attributes.extend(more);
            }
            if attributes.len() > ATTRIBUTES_MAX || gathered > RECORDS_BYTES_MAX || runs > RUNS_MAX
            {
                return Err(Error::Corrupt("a file has too many attributes"));
            }
        }
    }
    Ok(File {
        is_directory: flags & DIRECTORY != 0,
        attributes: joined(attributes)?,
    })
}

/// The other records that a list of attributes names.
fn others(list: &[u8], number: u64) -> Result<Vec<u64>, Error> {
    let mut found = Vec::new();
    let mut at = 0;
    while at + 26 <= list.len() {
        let length = usize::from(le16(list, at + 4)?);
        if length < 26 {
            break;
        }
        found.push(le64(list, at + 16)? & NUMBER);
        at += length;
    }
    found.sort_unstable();
    found.dedup();
    found.retain(|other| *other != number);
    found.truncate(RECORDS_MAX);
    Ok(found)
}

/// The attributes of one record; what is continued elsewhere is in pieces.
pub(super) fn attributes(record: &[u8]) -> Result<Vec<Attribute>, Error> {
    let mut at = usize::from(le16(record, 20)?);
    let mut found = Vec::new();
    while le32(record, at)? != END {
        let length = le32(record, at + 4)? as usize;
        if length < 24 {
            return Err(Error::Corrupt("an attribute is cut short"));
        }
        found.push(attribute(slice(record, at, length)?)?);
        at += length;
    }
    Ok(found)
}

fn attribute(bytes: &[u8]) -> Result<Attribute, Error> {
    /// Compressed, or with holes.
    const SAVING: u16 = 0x80ff;
    let flags = le16(bytes, 12)?;
    let (characters, at) = (usize::from(u8(bytes, 9)?), usize::from(le16(bytes, 10)?));
    let body = match u8(bytes, 8)? {
        0 => {
            let (length, at) = (le32(bytes, 16)? as usize, usize::from(le16(bytes, 20)?));
            Body::Here(slice(bytes, at, length)?.to_vec())
        }
        _ => {
            let start = le64(bytes, 16)?;
            let at = usize::from(le16(bytes, 32)?);
            let runs = runs::decode(bytes.get(at..).unwrap_or_default(), start)?;
            // What continues another says nothing of sizes.
            let first = |at: usize| if start == 0 { le64(bytes, at) } else { Ok(0) };
            let size = first(48)?;
            if size > i64::MAX as u64 {
                return Err(Error::Corrupt("the size of a file"));
            }
            Body::Elsewhere(Elsewhere {
                runs,
                size,
                written: first(56)?.min(size),
                // With holes or compressed, what is not there is not counted.
                allocated: first(if flags & SAVING == 0 { 40 } else { 64 })?,
                unit: le16(bytes, 34)?,
            })
        }
    };
    Ok(Attribute {
        kind: le32(bytes, 0)?,
        name: slice(bytes, at, characters * 2)?.to_vec(),
        flags,
        body,
    })
}

/// Puts the pieces of attributes together.
fn joined(attributes: Vec<Attribute>) -> Result<Vec<Attribute>, Error> {
    let mut all: Vec<Attribute> = Vec::new();
    let mut pieces = Vec::new();
    for attribute in attributes {
        match &attribute.body {
            Body::Elsewhere(it) if it.runs.first().is_some_and(|run| run.at > 0) => {
                pieces.push(attribute);
            }
            Body::Elsewhere(_) | Body::Here(_) => all.push(attribute),
        }
    }
    let start = |it: &Attribute| match &it.body {
        Body::Elsewhere(it) => it.runs.first().map_or(0, |run| run.at),
        Body::Here(_) => 0,
    };
    pieces.sort_by_key(start);
    for piece in pieces {
        let mut found = all.iter_mut();
        let whole = found.find(|it| it.kind == piece.kind && it.name == piece.name);
        let (Some(whole), Body::Elsewhere(more)) = (whole, piece.body) else {
            return Err(Error::Corrupt("an attribute has no beginning"));
        };
        let Body::Elsewhere(whole) = &mut whole.body else {
            return Err(Error::Corrupt("an attribute has two beginnings"));
        };
        let end = whole
            .runs
            .last()
            .map(|run| run.at.saturating_add(run.count));
        if end != more.runs.first().map(|run| run.at) {
            return Err(Error::Corrupt("an attribute has gaps"));
        }
        whole.runs.extend(more.runs);
    }
    Ok(all)
}

/// Reads the record of a number by where the table is.
pub(super) fn read(source: &dyn ReadAt, at: u64, size: u64) -> Result<Vec<u8>, Error> {
    whole(source.bytes(at, size as usize)?, b"FILE")
}
