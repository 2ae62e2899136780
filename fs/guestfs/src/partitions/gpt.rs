//! The partition table of EFI: a header and a list at the beginning of the disk, the same at its end.
//! Both have checksums; the backup is read where the first is damaged.

use super::{PARTITIONS_MAX, Partition, Scheme, Table};
use crate::bytes::{guid, le16, le32, le64, slice};
use crate::{Error, ReadAt};

/// What a header counts in: what nearly all disks say, and what new ones may say.
const SECTORS: [u64; 2] = [512, 4096];
const SIGNATURE: &[u8] = b"EFI PART";
/// The shortest header there is.
const HEADER: usize = 92;
/// An entry that a list may have: 128 bytes in practice; the format allows more.
const ENTRY: std::ops::RangeInclusive<usize> = 128..=4096;
/// Entries a list may have: 128 in practice.
const ENTRIES_MAX: usize = 1024;

/// Where the list is, and what it is.
struct Header {
    sector: u64,
    list: u64,
    entries: usize,
    entry: usize,
    checksum: u32,
}

pub(super) fn read(disk: &dyn ReadAt) -> Result<Table, Error> {
    let mut damage = Error::Corrupt("there is no GPT where one must be");
    for sector in SECTORS {
        match table(disk, sector, 1) {
            Ok(table) => return Ok(table),
            Err(Error::Io(error)) => return Err(Error::Io(error)),
            Err(Error::NotFound) => {}
            Err(why) => damage = why,
        }
    }
    for sector in SECTORS {
        // At least a sector is there: the first one was read.
        let sectors = disk.size().checked_div(sector).unwrap_or(0);
        let last = sectors.saturating_sub(1);
        match table(disk, sector, last) {
            Ok(mut table) => {
                let note = format!("its first GPT is {damage}; this is its backup");
                table.notes.push(note);
                return Ok(table);
            }
            Err(Error::Io(error)) => return Err(Error::Io(error)),
            Err(_) => {}
        }
    }
    Err(damage)
}

/// The table whose header is in sector `at`; NotFound where there is none.
fn table(disk: &dyn ReadAt, sector: u64, at: u64) -> Result<Table, Error> {
    let header = header(disk, sector, at)?;
    let length = header.entries.saturating_mul(header.entry);
    let list = disk.bytes(header.list.saturating_mul(header.sector), length)?;
    if crc32fast::hash(&list) != header.checksum {
        return Err(Error::Corrupt("the list of the GPT has another checksum"));
    }
    let mut table = Table {
        scheme: Scheme::Gpt,
        partitions: Vec::new(),
        notes: Vec::new(),
    };
    for (number, entry) in (1..).zip(list.chunks_exact(header.entry)) {
        let kind = slice(entry, 0, 16)?;
        if kind.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
        let place = last
            .checked_sub(first)
            .and_then(|sectors| sectors.checked_add(1)?.checked_mul(sector))
            .and_then(|length| Some((first.checked_mul(sector)?, length)));
        let Some((start, length)) = place else {
            let note = format!("partition {number} ends before it begins");
            table.notes.push(note);
            continue;
        };
        if table.partitions.len() == PARTITIONS_MAX {
            let note = format!("only its first {PARTITIONS_MAX} partitions are listed");
            table.notes.push(note);
            break;
        }
        table.partitions.push(Partition {
            number,
            start,
            length,
            kind: guid(kind),
            name: name(slice(entry, 56, 72)?)?,
        });
    }
    Ok(table)
}

fn header(disk: &dyn ReadAt, sector: u64, at: u64) -> Result<Header, Error> {
    let offset = at.saturating_mul(sector);
    if offset.saturating_add(sector) > disk.size() {
        return Err(Error::NotFound);
    }
    // One of the two numbers above.
    let bytes = disk.bytes(offset, sector as usize)?;
    if slice(&bytes, 0, 8)? != SIGNATURE {
        return Err(Error::NotFound);
    }
    let length = le32(&bytes, 12)? as usize;
    if length < HEADER {
        return Err(Error::Corrupt("the header of the GPT is too short"));
    }
    let mut summed = slice(&bytes, 0, length)?.to_vec();
    if let Some(own) = summed.get_mut(16..20) {
        own.fill(0);
    }
    if crc32fast::hash(&summed) != le32(&bytes, 16)? {
        return Err(Error::Corrupt("the header of the GPT has another checksum"));
    }
    if le64(&bytes, 24)? != at {
        return Err(Error::Corrupt("the header of the GPT belongs elsewhere"));
    }
    let (entries, entry) = (le32(&bytes, 80)? as usize, le32(&bytes, 84)? as usize);
    if !ENTRY.contains(&entry) || entries > ENTRIES_MAX {
        return Err(Error::Unsupported("a GPT with such a large list"));
    }
    Ok(Header {
        sector,
        list: le64(&bytes, 72)?,
        entries,
        entry,
        checksum: le32(&bytes, 88)?,
    })
}

/// UTF-16 up to the first zero.
fn name(field: &[u8]) -> Result<String, Error> {
    let units = field.chunks_exact(2).map(|unit| le16(unit, 0));
    let units: Vec<u16> = units.collect::<Result<_, _>>()?;
    let end = units.iter().position(|unit| *unit == 0);
    let units = units.get(..end.unwrap_or(units.len())).unwrap_or_default();
    Ok(String::from_utf16_lossy(units))
}
