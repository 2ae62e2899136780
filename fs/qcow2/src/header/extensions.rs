//! Header extensions: the typed records between the header and the backing file name.
//!
//! Knows: the backing format, feature names, the data file's name, that bitmaps exist.
//! Does not know: anything of the other extensions, which are skipped.
//! Invariant: every step goes forward, so the walk ends within a cluster.

use super::features::FeatureName;
use super::{Area, ParseFailure, until_nul};
use crate::bytes::be32;
use crate::error::CorruptCause;

pub(super) const ENCRYPTION: u32 = 0x0537_be77;
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const DATA_FILE: u32 = 0x4441_5441;
/// QEMU keeps the format's name in 16 bytes with its final NUL.
const MAX_FORMAT_NAME: u32 = 15;
/// QEMU keeps file names below PATH_MAX; so long a name is a lie.
const MAX_DATA_FILE_NAME: u32 = 4095;
/// One entry of the feature name table: set, bit, 46 bytes of name.
const FEATURE_NAME_BYTES: usize = 48;
/// Three sets of 64 bits can have no more names than this.
const MAX_FEATURE_NAMES: usize = 192;

#[derive(Default)]
pub(crate) struct Extensions {
    pub(crate) backing_format: Option<String>,
    pub(crate) data_file: Option<Vec<u8>>,
    pub(crate) feature_names: Vec<FeatureName>,
    pub(crate) has_bitmaps: bool,
    /// Where the encryption's record is; only an encrypted image may have one.
    pub(crate) encryption: Option<u64>,
}

impl Extensions {
    pub(crate) fn parse(area: &Area<'_>, start: u64, end: u64) -> Result<Self, ParseFailure> {
        let mut found = Extensions::default();
        let mut offset = start;
        while offset < end {
            let record = area.get(index(offset)?, 8)?;
            let magic = be32(&record, 0).unwrap_or(END);
            let len = be32(&record, 4).unwrap_or(0);
            let invalid = CorruptCause::Extension { magic, offset };
            let body = offset.saturating_add(8);
            if body > end || u64::from(len) > end.saturating_sub(body) {
                return Err(invalid.into());
            }
            let data = || area.get(index(body)?, len as usize);
            match magic {
                END => return Ok(found),
                BACKING_FORMAT => {
                    if len > MAX_FORMAT_NAME {
                        return Err(invalid.into());
                    }
                    let name = until_nul(data()?);
                    found.backing_format = Some(String::from_utf8_lossy(&name).into_owned());
                }
                FEATURE_NAMES => found.feature_names = feature_names(&data()?),
                DATA_FILE => {
                    if len > MAX_DATA_FILE_NAME {
                        return Err(invalid.into());
                    }
                    found.data_file = Some(until_nul(data()?));
                }
                BITMAPS => found.has_bitmaps = true,
                ENCRYPTION => found.encryption = Some(offset),
                _ => {}
            }
            offset = body.saturating_add(u64::from(len).next_multiple_of(8));
        }
        Ok(found)
    }
}

fn index(offset: u64) -> Result<usize, CorruptCause> {
    usize::try_from(offset).map_err(|_| CorruptCause::NotQcow2)
}

fn feature_names(data: &[u8]) -> Vec<FeatureName> {
    data.chunks_exact(FEATURE_NAME_BYTES)
        .take(MAX_FEATURE_NAMES)
        .map(|entry| {
            let name = until_nul(entry[2..].to_vec());
            let name = String::from_utf8_lossy(&name).escape_debug().to_string();
            FeatureName {
                set: entry[0],
                bit: entry[1],
                name,
            }
        })
        .collect()
}
