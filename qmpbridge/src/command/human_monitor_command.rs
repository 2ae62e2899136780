//! `human-monitor-command`: a line of the human monitor.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE};

/// `human-monitor-command`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HumanMonitorCommand {
    /// The line. Errors come back as a successful text.
    pub command_line: String,
}

impl Command for HumanMonitorCommand {
    const NAME: &str = "human-monitor-command";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = String;
}
