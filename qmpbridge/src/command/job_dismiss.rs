//! `job-dismiss`: forgets a concluded job.

use serde::Serialize;

use super::{Command, Empty};
use crate::names::JobId;

/// `job-dismiss`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobDismiss {
    /// The job.
    pub id: JobId,
}

impl Command for JobDismiss {
    const NAME: &str = "job-dismiss";
    type Reply = Empty;
}
