//! `cont`: the guest goes on.

use serde::Serialize;

use super::{Command, Empty};

/// `cont`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cont;

impl Command for Cont {
    const NAME: &str = "cont";
    type Reply = Empty;
}
