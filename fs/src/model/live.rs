//! Instants of a running disk: what is shown of them.

use super::{FileId, PointRecord};
use std::path::PathBuf;

/// The disk as it was at one instant, as long as this mount lives. What is written to the disk
/// since then has its old bytes in a scratch file; all others are where they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// What other points have on their files: name, instant, consistency. Its id is this one's.
    pub record: PointRecord,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Where the old bytes go.
    pub scratch: PathBuf,
    /// The scratch file.
    pub file: FileId,
    /// Why it shows nothing any more.
    pub broken: Option<String>,
}
