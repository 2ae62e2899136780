//! `blockdev-snapshot`: puts an overlay on a node.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::NodeName;

/// `blockdev-snapshot`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevSnapshot {
    /// The active layer.
    pub node: NodeName,
    /// What takes its place: a node without backing, of the same virtual size (QEMU does not check).
    pub overlay: NodeName,
}

impl Command for BlockdevSnapshot {
    const NAME: &str = "blockdev-snapshot";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
