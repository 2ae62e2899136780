//! `query-name`: the name of `-name`.

use serde::{Deserialize, Serialize};

use super::Command;

/// `query-name`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryName;

/// The VM's name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Name {
    /// `None` when it was started without one.
    pub name: Option<String>,
}

impl Command for QueryName {
    const NAME: &str = "query-name";
    type Reply = Name;
}
