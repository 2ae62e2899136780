//! `block-dirty-bitmap-merge`: merges dirty bitmaps.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::NodeName;

/// `block-dirty-bitmap-merge`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockDirtyBitmapMerge {
    /// The node of the target.
    pub node: NodeName,
    /// The bitmap that receives.
    pub target: String,
    /// The bitmaps that are merged into it.
    pub bitmaps: Vec<BitmapSource>,
}

/// A bitmap to merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum BitmapSource {
    /// Of the same node as the target.
    Local(String),
    /// Of another node.
    External {
        /// Its node.
        node: NodeName,
        /// Its name.
        name: String,
    },
}

impl Command for BlockDirtyBitmapMerge {
    const NAME: &str = "block-dirty-bitmap-merge";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
