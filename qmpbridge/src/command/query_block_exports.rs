//! `query-block-exports`: the exports.

use serde::{Deserialize, Serialize};

use super::Command;
use crate::names::NodeName;

/// `query-block-exports`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryBlockExports;

/// An export.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExportInfo {
    /// The export.
    pub id: String,
    /// `nbd`, `fuse`, `vhost-user-blk`, …
    pub r#type: String,
    /// What is exported now; a filter while a job is at work.
    pub node_name: NodeName,
    /// Whether it is going away.
    pub shutting_down: bool,
}

impl Command for QueryBlockExports {
    const NAME: &str = "query-block-exports";
    type Reply = Vec<ExportInfo>;
}
