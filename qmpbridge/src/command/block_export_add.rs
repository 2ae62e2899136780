//! `block-export-add`: exports a node.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::NodeName;

/// `block-export-add`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockExportAdd {
    /// What serves it.
    pub r#type: ExportKind,
    /// The export.
    pub id: String,
    /// What is exported.
    pub node_name: NodeName,
    /// The name NBD clients ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Read-only when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writable: Option<bool>,
    /// Bitmaps clients may ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<Vec<String>>,
}

/// What serves an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportKind {
    /// The NBD server of `nbd-server-start`.
    Nbd,
}

impl Command for BlockExportAdd {
    const NAME: &str = "block-export-add";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
