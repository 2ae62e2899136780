//! `query-jobs`: every job.

use serde::{Deserialize, Serialize};

use super::Command;
use crate::job::JobStatus;
use crate::names::JobId;

/// `query-jobs`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryJobs;

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// `stream`, `commit`, …
    pub r#type: String,
    /// Where it is.
    pub status: JobStatus,
    /// Done.
    pub current_progress: u64,
    /// To do; may grow.
    pub total_progress: u64,
    /// QEMU's words when it failed.
    pub error: Option<String>,
}

impl Command for QueryJobs {
    const NAME: &str = "query-jobs";
    type Reply = Vec<Job>;
}
