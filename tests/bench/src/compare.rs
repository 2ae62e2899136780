//! Comparing disks with large holes: what both call a hole is not read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::reader;

const CHUNK: usize = 1 << 20;

/// Compares two files byte by byte, wherever one of them has data.
pub(crate) fn same(found: &Path, expected: &Path) -> Result<(), String> {
    let said = |error: io::Error| format!("{}: {error}", found.display());
    let (a, b) = (
        File::open(found).map_err(said)?,
        File::open(expected).map_err(said)?,
    );
    let (length, right) = (
        a.metadata().map_err(said)?.len(),
        b.metadata().map_err(said)?.len(),
    );
    if length != right {
        return Err(format!("{length} bytes instead of {right}"));
    }
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    for range in [
        reader::extents(&a).map_err(said)?,
        reader::extents(&b).map_err(said)?,
    ]
    .concat()
    {
        for at in range.clone().step_by(CHUNK) {
            let length = CHUNK.min((range.end - at) as usize);
            a.read_exact_at(&mut left[..length], at).map_err(said)?;
            b.read_exact_at(&mut right[..length], at).map_err(said)?;
            if left[..length] != right[..length] {
                return Err(format!("{} differs in the MiB at {at}", found.display()));
            }
        }
    }
    Ok(())
}

/// Bytes of a file that are no holes.
pub(crate) fn data_bytes(path: &Path) -> u64 {
    let file = File::open(path).expect("a file of ours");
    let extents: Vec<Range<u64>> = reader::extents(&file).expect("its extents");
    extents.iter().map(|extent| extent.end - extent.start).sum()
}
