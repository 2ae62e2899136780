//! `block-job-cancel`: cancels a block job, maybe softly.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::JobId;

/// `block-job-cancel`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJobCancel {
    /// The job.
    pub device: JobId,
    /// False ends a ready mirror well, without its pivot.
    pub force: bool,
}

impl Command for BlockJobCancel {
    const NAME: &str = "block-job-cancel";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
