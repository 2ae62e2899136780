//! `blockdev-backup`: copies a disk as of the moment it starts.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty, OnError, Sync};
use crate::names::{JobId, NodeName};

/// `blockdev-backup`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevBackup {
    /// The id of the job.
    pub job_id: JobId,
    /// What is copied.
    pub device: NodeName,
    /// What receives it.
    pub target: NodeName,
    /// What is copied.
    pub sync: Sync,
    /// For `Incremental` and `Bitmap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmap: Option<String>,
    /// For `Bitmap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmap_mode: Option<BitmapMode>,
    /// Whether the target is written compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress: Option<bool>,
    /// Bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<u64>,
    /// `Report` when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_source_error: Option<OnError>,
    /// `Report` when not given; never `Ignore`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_target_error: Option<OnError>,
    /// How it is done, beyond what it does.
    #[serde(rename = "x-perf", skip_serializing_if = "Option::is_none")]
    pub perf: Option<BackupPerf>,
    /// Stays `pending` at its end when false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_finalize: Option<bool>,
    /// False, or its end may go unseen.
    pub auto_dismiss: bool,
}

/// How a backup is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BackupPerf {
    /// Copies under way at the same time; QEMU has 64 when nothing is said.
    pub max_workers: u64,
}

/// What a backup does with its bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BitmapMode {
    /// Cleared of what was copied, if the job succeeds.
    OnSuccess,
    /// Left as it is.
    Never,
    /// Cleared of what was copied, even if the job fails.
    Always,
}

impl BlockdevBackup {
    /// With QEMU's defaults for the rest, and kept after its end until dismissed.
    pub fn new(job_id: JobId, device: NodeName, target: NodeName, sync: Sync) -> Self {
        BlockdevBackup {
            job_id,
            device,
            target,
            sync,
            bitmap: None,
            bitmap_mode: None,
            compress: None,
            speed: None,
            on_source_error: None,
            on_target_error: None,
            perf: None,
            auto_finalize: None,
            auto_dismiss: false,
        }
    }
}

impl Command for BlockdevBackup {
    const NAME: &str = "blockdev-backup";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
