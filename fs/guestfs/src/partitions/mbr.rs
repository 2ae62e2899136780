//! The partition table of the PC: four entries in the first sector, and a chain of sectors for the
//! logical partitions, numbered from 5 on as Linux does it.

use super::{PARTITIONS_MAX, Partition, Scheme, Table};
use crate::bytes::{le32, slice, u8};
use crate::{Error, ReadAt};

/// Disks of images have sectors of 512 bytes where an MBR counts them.
const SECTOR: u64 = 512;
/// Where the four entries are, and how long one is.
const ENTRIES: usize = 446;
const ENTRY: usize = 16;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// The type of the one entry that covers a disk with a GPT.
const PROTECTIVE: u8 = 0xee;
/// The types of a partition that holds logical ones.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The number of the first logical partition.
const LOGICAL: u32 = 5;

/// What the first sector is.
pub(super) enum First {
    /// No partition table.
    Nothing,
    /// There is a GPT.
    Protective,
    /// This table.
    Entries(Vec<u8>),
}

struct Entry {
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    /// As a partition; None where its place is no number of bytes.
    fn partition(&self, number: u32, base: u64) -> Option<Partition> {
        let start = self.start.checked_add(base)?;
        Some(Partition {
            number,
            start: start.checked_mul(SECTOR)?,
            length: self.sectors.checked_mul(SECTOR)?,
            kind: format!("{:02x}", self.kind),
            name: String::new(),
        })
    }
}

pub(super) fn first_sector(disk: &dyn ReadAt) -> Result<First, Error> {
    if disk.size() < SECTOR {
        return Ok(First::Nothing);
    }
    let sector = disk.bytes(0, SECTOR as usize)?;
    if !has_signature(&sector)? || is_boot_sector(&sector)? {
        return Ok(First::Nothing);
    }
    let mut used = false;
    for index in 0..4 {
        let at = entry_at(index);
        // A boot sector of a filesystem has code there.
        if !matches!(u8(&sector, at)?, 0 | 0x80) {
            return Ok(First::Nothing);
        }
        if u8(&sector, at.saturating_add(4))? == PROTECTIVE {
            return Ok(First::Protective);
        }
        used |= le32(&sector, at.saturating_add(12))? != 0;
    }
    Ok(if used {
        First::Entries(sector)
    } else {
        First::Nothing
    })
}

pub(super) fn read(disk: &dyn ReadAt, sector: &[u8]) -> Result<Table, Error> {
    let mut table = Table {
        scheme: Scheme::Mbr,
        partitions: Vec::new(),
        notes: Vec::new(),
    };
    let mut extended = None;
    for (number, entry) in (1..).zip(entries(sector)?) {
        if entry.is_extended() {
            extended.get_or_insert(entry);
        } else {
            // As in Linux one is there if it has a size: the first one of a CD's image may have no type.
            let partition = (entry.sectors != 0).then(|| entry.partition(number, 0));
            table.partitions.extend(partition.flatten());
        }
    }
    if let Some(extended) = extended
        && let Err(why) = logical(disk, &extended, &mut table.partitions)
    {
        match why {
            Error::Io(error) => return Err(Error::Io(error)),
            why => table
                .notes
                .push(format!("the list of logical partitions is {why}")),
        }
    }
    Ok(table)
}

/// Follows the chain of sectors of an extended partition.
fn logical(disk: &dyn ReadAt, extended: &Entry, found: &mut Vec<Partition>) -> Result<(), Error> {
    let mut at = extended.start;
    let mut number = LOGICAL;
    // Each of them may be empty, but a chain that is longer than all numbers together is a ring.
    for _ in 0..PARTITIONS_MAX {
        let sector = disk.bytes(at.saturating_mul(SECTOR), SECTOR as usize)?;
        if !has_signature(&sector)? {
            return Err(Error::Corrupt("a sector of it has no signature"));
        }
        let entries = entries(&sector)?;
        for entry in entries.iter().take(2) {
            if entry.sectors != 0 && !entry.is_extended() {
                found.extend(entry.partition(number, at));
                number = number.saturating_add(1);
            }
        }
        let Some(next) = entries
            .iter()
            .find(|entry| entry.is_extended() && entry.sectors != 0)
        else {
            return Ok(());
        };
        at = extended.start.saturating_add(next.start);
    }
    Err(Error::Corrupt("it does not end"))
}

fn entries(sector: &[u8]) -> Result<Vec<Entry>, Error> {
    let entry = |index| {
        let bytes = slice(sector, entry_at(index), ENTRY)?;
        Ok(Entry {
            kind: u8(bytes, 4)?,
            start: le32(bytes, 8)?.into(),
            sectors: le32(bytes, 12)?.into(),
        })
    };
    (0..4).map(entry).collect()
}

fn entry_at(index: usize) -> usize {
    ENTRIES.saturating_add(index.saturating_mul(ENTRY))
}

fn has_signature(sector: &[u8]) -> Result<bool, Error> {
    Ok(slice(sector, 510, 2)? == SIGNATURE)
}

/// Whether it is the first sector of a FAT, NTFS or exFAT that fills the disk, which has the signature, too.
fn is_boot_sector(sector: &[u8]) -> Result<bool, Error> {
    let name = |at, name: &[u8]| Ok::<_, Error>(slice(sector, at, name.len())? == name);
    Ok(name(3, b"NTFS    ")? || name(3, b"EXFAT   ")? || name(54, b"FAT")? || name(82, b"FAT32")?)
}
