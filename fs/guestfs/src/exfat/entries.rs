//! The entries of one file: which belong together, and what they say.

use super::size;
use crate::Error;
use crate::bytes::{le16, le32, u8, utf16};
use crate::fat::clusters::{Chain, Clusters};
use crate::fat::time::time;
use crate::filesystem::Time;

/// Bytes of an entry.
pub(super) const ENTRY: u64 = 32;
/// Entries of a file: two, and those with the name.
const SECONDARY_MAX: u8 = 18;
const READ_ONLY: u16 = 0x1;
const DIRECTORY: u16 = 0x10;
/// What has no chain in the table.
const CONTIGUOUS: u8 = 0x2;

/// What an entry is for.
#[derive(PartialEq, Eq)]
pub(super) enum Sort {
    End,
    File,
    Secondary,
    /// A label, a bitmap, a removed one.
    Other,
}

impl Sort {
    pub(super) fn of(byte: u8) -> Sort {
        match byte {
            0 => Sort::End,
            0x85 => Sort::File,
            0xc0.. => Sort::Secondary,
            _ => Sort::Other,
        }
    }
}

/// What the entries of a file say.
pub(super) struct Set {
    flags: u16,
    pub(super) chain: Chain,
    pub(super) size: u64,
    /// Bytes that were ever written; the others are zeros.
    pub(super) written: u64,
    pub(super) modified: Time,
    pub(super) accessed: Time,
}

impl Set {
    fn parse(set: &[u8]) -> Result<Set, Error> {
        let stream = set.get(ENTRY as usize..).unwrap_or_default();
        if u8(stream, 0)? != 0xc0 {
            return Err(Error::Corrupt("a file has no stream"));
        }
        let whole = size(stream, 24)?;
        Ok(Set {
            flags: le16(set, 4)?,
            chain: Chain {
                first: le32(stream, 20)?,
                contiguous: u8(stream, 1)? & CONTIGUOUS != 0,
            },
            size: whole,
            written: size(stream, 8)?.min(whole),
            modified: stamp(le32(set, 12)?, u8(set, 21)?, u8(set, 23)?),
            accessed: stamp(le32(set, 16)?, 0, u8(set, 24)?),
        })
    }

    pub(super) fn is_directory(&self) -> bool {
        self.flags & DIRECTORY != 0
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.flags & READ_ONLY != 0
    }
}

/// A time with hundredths, and quarters of an hour to UTC where they are known.
fn stamp(stamp: u32, hundredths: u8, zone: u8) -> Time {
    const KNOWN: u8 = 0x80;
    let mut at = time((stamp >> 16) as u16, (stamp & 0xffff) as u16);
    at.seconds += i64::from(hundredths / 100);
    at.nanoseconds = u32::from(hundredths % 100) * 10_000_000;
    if zone & KNOWN != 0 {
        // Seven bits with a sign.
        let quarters = i64::from((zone << 1).cast_signed() >> 1);
        at.seconds -= quarters * 15 * 60;
    }
    at
}

/// Whether all entries of a set are there.
pub(super) fn is_whole(set: &[u8]) -> bool {
    let count = set.get(1).map_or(0, |count| (*count).min(SECONDARY_MAX));
    set.len() as u64 >= (u64::from(count) + 1) * ENTRY
}

pub(super) fn is_directory(set: &[u8]) -> Result<bool, Error> {
    Ok(le16(set, 4)? & DIRECTORY != 0)
}

/// The name that a whole set gives.
pub(super) fn name(set: &[u8]) -> Option<Vec<u8>> {
    let length = usize::from(*set.get(ENTRY as usize + 3)?) * 2;
    let pieces = set.chunks_exact(ENTRY as usize).skip(2);
    let pieces = pieces.filter(|entry| entry.first() == Some(&0xc1));
    let units: Vec<u8> = pieces
        .flat_map(|entry| entry[2..].iter().copied())
        .collect();
    Some(utf16(units.get(..length)?))
}

/// The set whose first entry is at `place` of the disk.
pub(super) fn find(clusters: &Clusters, place: u64) -> Result<Set, Error> {
    const NONE: Error = Error::Corrupt("a number is of no file");
    let cluster = clusters.of_place(place).ok_or(NONE)?;
    let first = clusters.source.bytes(place, ENTRY as usize)?;
    let secondary = u8(&first, 1)?;
    if Sort::of(u8(&first, 0)?) != Sort::File || !(1..=SECONDARY_MAX).contains(&secondary) {
        return Err(NONE);
    }
    for contiguous in [true, false] {
        let set = gather(clusters, place, cluster, secondary, contiguous);
        if let Ok(set) = set
            && le16(&set, 2)? == checksum(&set)
        {
            return Set::parse(&set);
        }
    }
    Err(Error::Corrupt(
        "the entries of a file do not belong together",
    ))
}

/// So many entries from `place` on, by one of the ways that a directory can go on.
fn gather(
    clusters: &Clusters,
    place: u64,
    cluster: u32,
    secondary: u8,
    contiguous: bool,
) -> Result<Vec<u8>, Error> {
    let mut rest = (u64::from(secondary) + 1) * ENTRY;
    let (mut cluster, mut place) = (cluster, place);
    let mut set = Vec::new();
    loop {
        let end = clusters.place(cluster)? + clusters.size;
        let here = rest.min(end - place);
        set.extend(clusters.source.bytes(place, here as usize)?);
        rest -= here;
        if rest == 0 {
            return Ok(set);
        }
        let chain = Chain {
            first: cluster,
            contiguous,
        };
        let next = clusters.next(cluster, chain)?;
        cluster = next.ok_or(Error::Corrupt("a directory ends within a file"))?;
        place = clusters.place(cluster)?;
    }
}

/// Over all entries of a set but the checksum itself.
fn checksum(set: &[u8]) -> u16 {
    let bytes = set.iter().enumerate();
    let counted = bytes.filter(|(at, _)| !matches!(at, 2 | 3));
    counted.fold(0u16, |sum, (_, byte)| {
        sum.rotate_right(1).wrapping_add((*byte).into())
    })
}

#[cfg(test)]
mod tests {
    use super::stamp;

    #[test]
    fn times_with_and_without_a_zone() {
        let local = stamp(0x5a21_0000, 150, 0);
        assert_eq!(local.nanoseconds, 500_000_000);
        // Two hours before UTC, and one behind.
        let east = stamp(0x5a21_0000, 150, 0x88);
        let west = stamp(0x5a21_0000, 150, 0xfc);
        assert_eq!(local.seconds - east.seconds, 7200);
        assert_eq!(west.seconds - local.seconds, 3600);
    }
}
