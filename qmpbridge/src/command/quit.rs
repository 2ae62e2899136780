//! `quit`: QEMU ends.

use serde::Serialize;

use super::{Command, Empty};

/// `quit`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quit;

impl Command for Quit {
    const NAME: &str = "quit";
    type Reply = Empty;
}
