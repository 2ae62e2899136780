//! `block-job-set-speed`: limits a block job.

use serde::Serialize;

use super::{Command, Empty};
use crate::names::JobId;

/// `block-job-set-speed`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJobSetSpeed {
    /// The job.
    pub device: JobId,
    /// Bytes a second, 0 for no limit.
    pub speed: u64,
}

impl Command for BlockJobSetSpeed {
    const NAME: &str = "block-job-set-speed";
    type Reply = Empty;
}
