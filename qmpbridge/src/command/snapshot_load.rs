//! `snapshot-load`: disks and RAM as they were. QEMU looks for `tag` among the ids first, and leaves the guest stopped when it fails.

use std::time::Duration;

use serde::Serialize;

use super::{Command, Empty, STATE_DEADLINE};
use crate::names::{JobId, NodeName};

/// `snapshot-load`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotLoad {
    /// The job it begins.
    pub job_id: JobId,
    /// The snapshot's name.
    pub tag: String,
    /// The node whose file holds the RAM.
    pub vmstate: NodeName,
    /// The disks, by their format nodes: a drive's id is not understood.
    pub devices: Vec<NodeName>,
}

impl Command for SnapshotLoad {
    const NAME: &str = "snapshot-load";
    const DEADLINE: Duration = STATE_DEADLINE;
    type Reply = Empty;
}
