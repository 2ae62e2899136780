//! `blockdev-mirror`: copies a disk and follows it.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty, OnError, Sync};
use crate::names::{JobId, NodeName};

/// `blockdev-mirror`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevMirror {
    /// The id of the job.
    pub job_id: JobId,
    /// The root that is copied.
    pub device: NodeName,
    /// What receives it.
    pub target: NodeName,
    /// What is copied.
    pub sync: Sync,
    /// Bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<u64>,
    /// `Report` when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_source_error: Option<OnError>,
    /// `Report` when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_target_error: Option<OnError>,
    /// False, or its end may go unseen.
    pub auto_dismiss: bool,
}

impl BlockdevMirror {
    /// With QEMU's defaults for the rest, and kept after its end until dismissed.
    pub fn new(job_id: JobId, device: NodeName, target: NodeName, sync: Sync) -> Self {
        BlockdevMirror {
            job_id,
            device,
            target,
            sync,
            speed: None,
            on_source_error: None,
            on_target_error: None,
            auto_dismiss: false,
        }
    }
}

impl Command for BlockdevMirror {
    const NAME: &str = "blockdev-mirror";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
