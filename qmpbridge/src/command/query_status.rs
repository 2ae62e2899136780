//! `query-status`: whether the guest runs.

use serde::{Deserialize, Serialize};

use super::Command;

/// `query-status`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryStatus;

/// Whether the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Whether its processors run.
    pub running: bool,
    /// QEMU's word: `running`, `paused`, `prelaunch`, `io-error`, …
    pub status: String,
}

impl Command for QueryStatus {
    const NAME: &str = "query-status";
    type Reply = Status;
}
