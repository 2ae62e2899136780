//! `block-dirty-bitmap-remove`: removes a dirty bitmap.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::NodeName;

/// `block-dirty-bitmap-remove`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockDirtyBitmapRemove {
    /// The node.
    pub node: NodeName,
    /// The bitmap.
    pub name: String,
}

impl Command for BlockDirtyBitmapRemove {
    const NAME: &str = "block-dirty-bitmap-remove";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
