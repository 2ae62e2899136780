//! `blockdev-reopen`: changes options of nodes in place.

use serde::Serialize;

use super::{BlockdevOptions, Command, DRAIN_DEADLINE, Empty};

/// `blockdev-reopen`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevReopen {
    /// All options of each node: what is not given goes back to its default. Change nothing but `backing`.
    pub options: Vec<BlockdevOptions>,
}

impl Command for BlockdevReopen {
    const NAME: &str = "blockdev-reopen";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
