//! `blockdev-snapshot-delete-internal-sync`: deletes an internal snapshot.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE};
use crate::graph::InternalSnapshotInfo;

/// `blockdev-snapshot-delete-internal-sync`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevSnapshotDeleteInternalSync {
    /// Node-name of the root, or drive id.
    pub device: String,
    /// Both must match when both are given: delete by both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// At least one is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Command for BlockdevSnapshotDeleteInternalSync {
    const NAME: &str = "blockdev-snapshot-delete-internal-sync";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = InternalSnapshotInfo;
}
