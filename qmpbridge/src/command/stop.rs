//! `stop`: the guest stands still.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};

/// `stop`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stop;

impl Command for Stop {
    const NAME: &str = "stop";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
