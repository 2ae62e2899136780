//! `job-complete`: pivots a job that is ready.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::JobId;

/// `job-complete`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobComplete {
    /// The job.
    pub id: JobId,
}

impl Command for JobComplete {
    const NAME: &str = "job-complete";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
