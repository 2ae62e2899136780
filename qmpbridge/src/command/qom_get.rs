//! `qom-get`: reads a property of an object.

use serde::Serialize;

use super::Command;

/// `qom-get`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct QomGet {
    /// The object.
    pub path: String,
    /// Its property.
    pub property: String,
}

impl Command for QomGet {
    const NAME: &str = "qom-get";
    type Reply = serde_json::Value;
}
