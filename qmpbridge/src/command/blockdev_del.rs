//! `blockdev-del`: deletes a node that `blockdev-add` made.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::NodeName;

/// `blockdev-del`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevDel {
    /// The node; nothing may use it.
    pub node_name: NodeName,
}

impl Command for BlockdevDel {
    const NAME: &str = "blockdev-del";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
