//! `job-pause`: holds a job.

use serde::Serialize;

use super::{Command, Empty};
use crate::names::JobId;

/// `job-pause`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobPause {
    /// The job.
    pub id: JobId,
}

impl Command for JobPause {
    const NAME: &str = "job-pause";
    type Reply = Empty;
}
