//! `snapshot-save`: an internal snapshot of the disks with the RAM. QEMU stops the guest and answers nobody until it is saved.

use std::time::Duration;

use serde::Serialize;

use super::{Command, Empty, STATE_DEADLINE};
use crate::names::{JobId, NodeName};

/// `snapshot-save`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotSave {
    /// The job it begins.
    pub job_id: JobId,
    /// The snapshot's name.
    pub tag: String,
    /// The node whose file holds the RAM.
    pub vmstate: NodeName,
    /// The disks, by their format nodes: a drive's id is not understood.
    pub devices: Vec<NodeName>,
}

impl Command for SnapshotSave {
    const NAME: &str = "snapshot-save";
    const DEADLINE: Duration = STATE_DEADLINE;
    type Reply = Empty;
}
