//! `blockdev-snapshot-internal-sync`: makes an internal snapshot.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};

/// `blockdev-snapshot-internal-sync`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevSnapshotInternalSync {
    /// Node-name of the root, or drive id.
    pub device: String,
    /// Silently cut to 255 bytes by QEMU.
    pub name: String,
}

impl Command for BlockdevSnapshotInternalSync {
    const NAME: &str = "blockdev-snapshot-internal-sync";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
