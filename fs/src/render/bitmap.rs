//! The file of a dirty bitmap.

use crate::model::{Bitmap, Disk};
use serde::Serialize;

/// The object of `bitmaps/NAME`.
#[derive(Serialize)]
pub(super) struct BitmapJson<'a> {
    name: &'a str,
    granularity: u64,
    /// Bytes that are marked.
    count: u64,
    recording: bool,
    persistent: bool,
    busy: bool,
    inconsistent: bool,
    /// The backup since whose instant it marks what was written.
    since: Option<&'a str>,
}

pub(super) fn bitmap<'a>(disk: &'a Disk, bitmap: &'a Bitmap) -> BitmapJson<'a> {
    let of = |name: &Option<String>| name.as_deref() == Some(bitmap.tag.as_str());
    let mut backups = disk.backups.iter().map(|backup| &backup.manifest);
    BitmapJson {
        name: &bitmap.tag,
        granularity: bitmap.granularity,
        count: bitmap.count,
        recording: bitmap.recording,
        persistent: bitmap.persistent,
        busy: bitmap.busy,
        inconsistent: bitmap.inconsistent,
        since: backups
            .find(|manifest| of(&manifest.bitmap))
            .map(|manifest| manifest.name.as_str()),
    }
}
