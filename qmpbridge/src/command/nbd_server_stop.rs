//! `nbd-server-stop`: stops the NBD server and all its exports.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};

/// `nbd-server-stop`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NbdServerStop;

impl Command for NbdServerStop {
    const NAME: &str = "nbd-server-stop";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
