//! `block-dirty-bitmap-add`: adds a dirty bitmap.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::NodeName;

/// `block-dirty-bitmap-add`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockDirtyBitmapAdd {
    /// The node.
    pub node: NodeName,
    /// The bitmap.
    pub name: String,
    /// Bytes a bit stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<u32>,
    /// Whether it is stored in the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent: Option<bool>,
    /// Whether it starts without recording.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
}

impl Command for BlockDirtyBitmapAdd {
    const NAME: &str = "block-dirty-bitmap-add";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
