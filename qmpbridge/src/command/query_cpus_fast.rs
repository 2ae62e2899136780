//! `query-cpus-fast`: the guest's processors.

use serde::{Deserialize, Serialize};

use super::Command;

/// `query-cpus-fast`; the guest is not disturbed by it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryCpusFast;

/// A processor of the guest; QEMU's other fields are not read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cpu {
    /// The thread of QEMU's that runs it, by its id on QEMU's host.
    pub thread_id: i64,
}

impl Command for QueryCpusFast {
    const NAME: &str = "query-cpus-fast";
    type Reply = Vec<Cpu>;
}
