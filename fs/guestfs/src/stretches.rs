//! Files that lie on the disk as they are, in stretches. Pure, but for the bytes that are read.

use crate::filesystem::{Extent, Place};
use crate::{Error, ReadAt};

/// Adds a stretch to those of a file; one that goes on where the last one ends makes that longer.
pub(crate) fn add(extents: &mut Vec<Extent>, offset: u64, length: u64, start: u64) {
    if let Some(last) = extents.last_mut()
        && let Place::At(its) = last.place
        && last.offset.checked_add(last.length) == Some(offset)
        && its.checked_add(last.length) == Some(start)
        && let Some(both) = last.length.checked_add(length)
    {
        last.length = both;
        return;
    }
    extents.push(Extent {
        offset,
        length,
        place: Place::At(start),
    });
}

/// Bytes of a file of `size` bytes, by extents that cover them; fewer only at its end.
pub(crate) fn read(
    source: &dyn ReadAt,
    extents: &[Extent],
    size: u64,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>, Error> {
    let rest = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
    let length = length.min(rest);
    let end = offset.saturating_add(length as u64);
    let mut bytes = vec![0; length];
    for extent in extents {
        let from = extent.offset.max(offset);
        let to = extent.offset.saturating_add(extent.length).min(end);
        let Place::At(start) = extent.place else {
            return Err(Error::Corrupt("a stretch is no stretch of the disk"));
        };
        if from >= to {
            continue;
        }
        let at = start.checked_add(from - extent.offset);
        let at = at.ok_or(Error::Corrupt("a stretch is behind the end"))?;
        // Both within what was asked for.
        let (within, length) = ((from - offset) as usize, (to - from) as usize);
        bytes[within..within + length].copy_from_slice(&source.bytes(at, length)?);
    }
    Ok(bytes)
}
