//! LVM2: which volume group a stretch of a disk belongs to, and where the group's logical volumes are.
//! Knows: labels, metadata areas, linear and striped volumes. Does not know: which other disks there are.
//! Invariants: a volume is given only if all its bytes are on physical volumes that are at hand, each
//! within its own.
#![deny(clippy::arithmetic_side_effects)]

mod group;
mod layout;
mod text;

pub use group::{Group, Logical, Member};
pub use layout::{Area, Layout, Piece};

use crate::bytes::{le32, le64, slice};
use crate::{Error, ReadAt};

const SECTOR: usize = 512;
/// Sectors in which a label may be.
const LABEL_SECTORS: usize = 4;
const LABEL: &[u8] = b"LABELONE";
const TYPE: &[u8] = b"LVM2 001";
const AREA_MAGIC: &[u8] = b"\x20LVM2\x20x[5A%r0N*>";
/// The header of a metadata area; the text may begin behind it, and goes on there from the end.
const AREA_HEADER: u64 = 512;
/// Areas of one physical volume that are looked at; there are two at most.
const AREAS_MAX: usize = 8;
/// The longest text that is read: thousands of volumes.
const TEXT_MAX: u64 = 8 << 20;
/// What an area that is not used says.
const IGNORED: u32 = 1;

/// A physical volume.
#[derive(Debug, Clone)]
pub struct Physical {
    /// What tells it from others.
    pub uuid: String,
    /// Its group as it knows it; None for one without metadata of its own, or of no group.
    pub group: Option<Group>,
}

impl Physical {
    /// Reads the label and the metadata of a physical volume.
    pub fn read(source: &dyn ReadAt) -> Result<Physical, Error> {
        let head = source.bytes(0, LABEL_SECTORS.saturating_mul(SECTOR))?;
        let sectors = head.chunks_exact(SECTOR);
        let mut labels = sectors.filter(|it| it.starts_with(LABEL) && it.get(24..32) == Some(TYPE));
        let label = labels.next();
        let label = label.ok_or(Error::Corrupt("the label of a physical volume"))?;
        if le32(label, 16)? != checksum(slice(label, 20, SECTOR.saturating_sub(20))?) {
            return Err(Error::Corrupt("the checksum of a physical volume's label"));
        }
        let start = le32(label, 20)? as usize;
        let header = label.get(start..).unwrap_or_default();
        let uuid = String::from_utf8_lossy(slice(header, 0, 32)?).into_owned();
        let (_data, rest) = areas(header, 40)?;
        let (metadata, _) = areas(header, rest)?;
        let mut group = None;
        let mut trouble = None;
        for (offset, size) in metadata {
            match area(source, offset, size) {
                Ok(Some(found)) => {
                    group = newer(group, found);
                }
                Ok(None) => {}
                Err(error) => trouble = Some(error),
            }
        }
        match (group, trouble) {
            (None, Some(error)) => Err(error),
            (group, _) => Ok(Physical { uuid, group }),
        }
    }
}

/// The one of two accounts of a group that was written later.
fn newer(known: Option<Group>, found: Group) -> Option<Group> {
    match known {
        Some(known) if known.sequence >= found.sequence => Some(known),
        Some(_) | None => Some(found),
    }
}

/// Offsets and sizes up to a pair of zeros, and what follows that.
fn areas(header: &[u8], mut at: usize) -> Result<(Vec<(u64, u64)>, usize), Error> {
    let mut found = Vec::new();
    loop {
        let (offset, size) = (le64(header, at)?, le64(header, at.saturating_add(8))?);
        at = at.saturating_add(16);
        if offset == 0 {
            return Ok((found, at));
        }
        found.push((offset, size));
        if found.len() > AREAS_MAX {
            return Err(Error::Corrupt("a physical volume has too many areas"));
        }
    }
}

/// The group of a metadata area; None where it is not used.
fn area(source: &dyn ReadAt, offset: u64, size: u64) -> Result<Option<Group>, Error> {
    let header = source.bytes(offset, AREA_HEADER as usize)?;
    if slice(&header, 4, AREA_MAGIC.len())? != AREA_MAGIC
        || le32(&header, 0)? != checksum(slice(&header, 4, SECTOR.saturating_sub(4))?)
    {
        return Err(Error::Corrupt("the header of a metadata area"));
    }
    let (at, length) = (le64(&header, 40)?, le64(&header, 48)?);
    let (expected, flags) = (le32(&header, 56)?, le32(&header, 60)?);
    if at == 0 || length == 0 || flags & IGNORED != 0 {
        return Ok(None);
    }
    if length > TEXT_MAX || at < AREA_HEADER || at >= size || length > size {
        return Err(Error::Corrupt("the text of a metadata area"));
    }
    // It is a ring behind the header.
    let first = length.min(size.saturating_sub(at));
    let mut text = source.bytes(offset.saturating_add(at), first as usize)?;
    let rest = length.saturating_sub(first);
    text.extend(source.bytes(offset.saturating_add(AREA_HEADER), rest as usize)?);
    if checksum(&text) != expected {
        return Err(Error::Corrupt("the checksum of a volume group's metadata"));
    }
    Group::parse(&text).map(Some)
}

/// The CRC-32 of all others, but from another beginning and without its last step.
fn checksum(bytes: &[u8]) -> u32 {
    const FIRST: u32 = 0xf597_a6cf;
    let mut hasher = crc32fast::Hasher::new_with_initial(!FIRST);
    hasher.update(bytes);
    !hasher.finalize()
}
