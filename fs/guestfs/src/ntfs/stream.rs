//! The bytes of a stream: in its record, in clusters as they are, or compressed.

use super::record::{Attribute, Body, Elsewhere};
use super::{Ntfs, lznt1, runs};
use crate::filesystem::{Extent, Place};
use crate::{Error, stretches};

const COMPRESSED: u16 = 0x00ff;
const ENCRYPTED: u16 = 0x4000;
/// Clusters that are compressed together, as a power of two; Windows has 16.
const UNIT_MAX: u16 = 8;

fn check(attribute: &Attribute) -> Result<(), Error> {
    match attribute.flags & ENCRYPTED {
        0 => Ok(()),
        _ => Err(Error::Unsupported("the file is encrypted")),
    }
}

/// Whether a stream is compressed, and in units of how many bytes.
fn unit(ntfs: &Ntfs, attribute: &Attribute, it: &Elsewhere) -> Result<Option<u64>, Error> {
    if attribute.flags & COMPRESSED == 0 || it.unit == 0 {
        return Ok(None);
    }
    let bytes = match it.unit {
        ..=UNIT_MAX => ntfs.cluster << it.unit,
        _ => return Err(Error::Corrupt("the unit of compression")),
    };
    match bytes {
        ..=0x10_0000 => Ok(Some(bytes)),
        _ => Err(Error::Corrupt("the unit of compression")),
    }
}

/// Holes have runs, too: where these end before the bytes do, some were lost, as those of a record that was given to
/// another file, and would be read as zeros.
fn reaches(ntfs: &Ntfs, it: &Elsewhere, bytes: u64) -> Result<(), Error> {
    let clusters = it.runs.last().map_or(0, |run| run.at + run.count);
    match clusters.saturating_mul(ntfs.cluster) < bytes {
        true => Err(Error::Corrupt("a file ends before its size")),
        false => Ok(()),
    }
}

pub(super) fn size(attribute: &Attribute) -> u64 {
    match &attribute.body {
        Body::Here(bytes) => bytes.len() as u64,
        Body::Elsewhere(it) => it.size,
    }
}

pub(super) fn extents(
    ntfs: &Ntfs,
    attribute: &Attribute,
    offset: u64,
    limit: usize,
) -> Result<Vec<Extent>, Error> {
    check(attribute)?;
    let length = size(attribute);
    if offset >= length {
        return Ok(Vec::new());
    }
    let reader = vec![Extent {
        offset: 0,
        length,
        place: Place::Reader,
    }];
    let it = match &attribute.body {
        Body::Here(_) => return Ok(reader),
        Body::Elsewhere(it) => it,
    };
    if unit(ntfs, attribute, it)?.is_some() {
        reaches(ntfs, it, it.size)?;
        return Ok(reader);
    }
    reaches(ntfs, it, it.written)?;
    let mut found = Vec::new();
    for run in &it.runs {
        let Some(at) = run
            .at
            .checked_mul(ntfs.cluster)
            .filter(|at| *at < it.written)
        else {
            break;
        };
        let whole = run.count.saturating_mul(ntfs.cluster);
        if at.saturating_add(whole) <= offset {
            continue;
        }
        if let Some(cluster) = run.place {
            let start = runs::place(ntfs, cluster, run.count)?;
            let before = found.len();
            stretches::add(&mut found, at, whole.min(it.written - at), start);
            if found.len() > limit {
                found.truncate(before);
                break;
            }
        }
    }
    Ok(found)
}

pub(super) fn read(
    ntfs: &Ntfs,
    attribute: &Attribute,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>, Error> {
    check(attribute)?;
    let rest = size(attribute).saturating_sub(offset);
    let length = length.min(usize::try_from(rest).unwrap_or(usize::MAX));
    let it = match &attribute.body {
        Body::Here(bytes) => {
            let rest = bytes.get(offset.min(bytes.len() as u64) as usize..);
            return Ok(rest.unwrap_or_default()[..length].to_vec());
        }
        Body::Elsewhere(it) => it,
    };
    let Some(unit) = unit(ntfs, attribute, it)? else {
        let extents = extents(ntfs, attribute, offset, usize::MAX)?;
        return stretches::read(&*ntfs.source, &extents, it.size, offset, length);
    };
    if length == 0 {
        // It may be asked for what no sum reaches.
        return Ok(Vec::new());
    }
    reaches(ntfs, it, it.size)?;
    let end = offset + length as u64;
    let mut bytes = Vec::with_capacity(length);
    let mut at = offset / unit * unit;
    while at < end {
        let whole = expanded(ntfs, it, at, unit)?;
        let (from, to) = (offset.max(at) - at, end.min(at + unit) - at);
        bytes.extend(&whole[from as usize..to as usize]);
        at += unit;
    }
    let written = it.written.saturating_sub(offset).min(length as u64);
    bytes[written as usize..].fill(0);
    Ok(bytes)
}

/// The bytes of the unit that begins at `at`.
fn expanded(ntfs: &Ntfs, it: &Elsewhere, at: u64, unit: u64) -> Result<Vec<u8>, Error> {
    let (first, clusters) = (at / ntfs.cluster, unit / ntfs.cluster);
    let mut packed = Vec::new();
    let mut used = 0;
    for cluster in first..first + clusters {
        // What is not there at the end, or is a hole, was saved by compression.
        let Some(place) = runs::find(&it.runs, cluster).and_then(|run| {
            let place = run.place?;
            place.checked_add(cluster - run.at)
        }) else {
            continue;
        };
        let start = runs::place(ntfs, place, 1)?;
        packed.extend(ntfs.source.bytes(start, ntfs.cluster as usize)?);
        used += 1;
    }
    match used {
        0 => Ok(vec![0; unit as usize]),
        all if all == clusters => Ok(packed),
        _ => lznt1::decompress(&packed, unit as usize),
    }
}

/// The beginning of a stream, `limit` bytes at most.
pub(super) fn head(ntfs: &Ntfs, attribute: &Attribute, limit: u64) -> Result<Vec<u8>, Error> {
    read(ntfs, attribute, 0, size(attribute).min(limit) as usize)
}
