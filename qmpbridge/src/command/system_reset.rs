//! `system_reset`: the guest starts anew.

use serde::Serialize;

use super::{Command, Empty};

/// `system_reset`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SystemReset;

impl Command for SystemReset {
    const NAME: &str = "system_reset";
    type Reply = Empty;
}
