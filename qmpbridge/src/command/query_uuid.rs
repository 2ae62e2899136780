//! `query-uuid`: the VM's UUID.

use serde::{Deserialize, Serialize};

use super::Command;

/// `query-uuid`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryUuid;

/// The VM's UUID.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Uuid {
    /// All zeros when it was started without one.
    #[serde(rename = "UUID")]
    pub uuid: String,
}

impl Command for QueryUuid {
    const NAME: &str = "query-uuid";
    type Reply = Uuid;
}
