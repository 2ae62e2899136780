//! `job-resume`: lets a held job go on.

use serde::Serialize;

use super::{Command, Empty};
use crate::names::JobId;

/// `job-resume`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobResume {
    /// The job.
    pub id: JobId,
}

impl Command for JobResume {
    const NAME: &str = "job-resume";
    type Reply = Empty;
}
