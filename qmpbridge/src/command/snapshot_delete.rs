//! `snapshot-delete`: removes the snapshot of that name from the disks. One that has none is no error.

use std::time::Duration;

use serde::Serialize;

use super::{Command, Empty, STATE_DEADLINE};
use crate::names::{JobId, NodeName};

/// `snapshot-delete`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotDelete {
    /// The job it begins.
    pub job_id: JobId,
    /// The snapshot's name.
    pub tag: String,
    /// The disks, by their format nodes: a drive's id is not understood.
    pub devices: Vec<NodeName>,
}

impl Command for SnapshotDelete {
    const NAME: &str = "snapshot-delete";
    const DEADLINE: Duration = STATE_DEADLINE;
    type Reply = Empty;
}
