//! `job-cancel`: stops and undoes a job.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::JobId;

/// `job-cancel`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobCancel {
    /// The job.
    pub id: JobId,
}

impl Command for JobCancel {
    const NAME: &str = "job-cancel";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
