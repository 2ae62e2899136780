//! `x-debug-query-block-graph`: the only exact picture of how nodes hang together.

use serde::{Deserialize, Serialize};

use super::Command;

/// `x-debug-query-block-graph`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct XDebugQueryBlockGraph;

/// The graph as QEMU draws it. The ids count anew at each call.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DebugGraph {
    /// Block backends, nodes and jobs.
    pub nodes: Vec<DebugNode>,
    /// From user to used.
    pub edges: Vec<DebugEdge>,
}

/// Something in the graph.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DebugNode {
    /// What edges refer to.
    pub id: u64,
    /// What it is.
    pub r#type: DebugNodeType,
    /// Node-name, job id, drive id, QOM path, or nothing (exports).
    pub name: String,
}

/// What something in the graph is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DebugNodeType {
    /// A user of a node: a guest device, an export, the inside of a job.
    BlockBackend,
    /// A job.
    BlockJob,
    /// A node.
    BlockDriver,
}

/// An edge of the graph.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DebugEdge {
    /// The user.
    pub parent: u64,
    /// The used.
    pub child: u64,
    /// `root`, `file`, `backing`, …
    pub name: String,
    /// What the user may do: `write`, `consistent-read`, …
    pub perm: Vec<String>,
}

impl Command for XDebugQueryBlockGraph {
    const NAME: &str = "x-debug-query-block-graph";
    type Reply = DebugGraph;
}
