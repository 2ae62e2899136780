//! `query-block-jobs`: the jobs of block devices.

use serde::{Deserialize, Serialize};

use super::Command;
use crate::names::JobId;

/// `query-block-jobs`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryBlockJobs;

/// A block job.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJob {
    /// The job's id, whatever its name says.
    pub device: JobId,
    /// Held by a person or an I/O error.
    pub paused: bool,
    /// `ok`, `failed` or `nospace`.
    pub io_status: Option<String>,
    /// Bytes a second, 0 for no limit.
    pub speed: u64,
    /// Whether it can be completed.
    pub ready: bool,
    /// Whether it is dismissed by itself.
    pub auto_dismiss: Option<bool>,
    /// Whether it is finalized by itself.
    pub auto_finalize: Option<bool>,
}

impl Command for QueryBlockJobs {
    const NAME: &str = "query-block-jobs";
    type Reply = Vec<BlockJob>;
}
