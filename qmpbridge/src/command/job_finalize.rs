//! `job-finalize`: ends a job that is pending.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::JobId;

/// `job-finalize`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobFinalize {
    /// The job.
    pub id: JobId,
}

impl Command for JobFinalize {
    const NAME: &str = "job-finalize";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
