//! `query-block`: the block devices of the guest.

use serde::{Deserialize, Serialize};

use super::Command;
use crate::names::NodeName;

/// `query-block`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryBlock;

/// A block device of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BlockInfo {
    /// The drive id, empty for `-blockdev`.
    pub device: String,
    /// A QOM path, or for some devices the plain id.
    pub qdev: Option<String>,
    /// Whether the medium can be taken out.
    #[serde(default)]
    pub removable: bool,
    /// What is in it. More of it is in `query-named-block-nodes`.
    pub inserted: Option<Inserted>,
}

/// What is in a block device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inserted {
    /// The topmost node, as far as QEMU tells: not always a filter.
    pub node_name: Option<NodeName>,
}

impl Command for QueryBlock {
    const NAME: &str = "query-block";
    type Reply = Vec<BlockInfo>;
}
