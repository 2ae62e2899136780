//! `change-backing-file`: rewrites the backing file name in an overlay's header.

use std::path::PathBuf;

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::NodeName;

/// `change-backing-file`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChangeBackingFile {
    /// The root.
    pub device: String,
    /// The overlay whose header changes.
    pub image_node_name: NodeName,
    /// The new text, verbatim.
    pub backing_file: PathBuf,
}

impl Command for ChangeBackingFile {
    const NAME: &str = "change-backing-file";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
