//! `qom-set`: changes a property of an object.

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};

/// `qom-set`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct QomSet {
    /// The object.
    pub path: String,
    /// Its property.
    pub property: String,
    /// The new value.
    pub value: serde_json::Value,
}

impl Command for QomSet {
    const NAME: &str = "qom-set";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
