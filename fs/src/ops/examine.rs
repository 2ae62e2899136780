//! What a QMP socket answers, for `qmpfs doctor`: it asks, and changes nothing.

use super::{backup, capabilities, live};
use crate::errno::Failure;
use qmpbridge::{Address, Bridge};
use std::time::Duration;

/// How long a monitor may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is asked for, and the commands that it takes.
const WANTED: [(&str, &[&str]); 6] = [
    ("snapshots", capabilities::SEAL),
    ("internal snapshots", capabilities::INTERNAL),
    ("removing snapshots", capabilities::MERGE),
    (
        "checkpoints",
        &["snapshot-save", "snapshot-load", "snapshot-delete"],
    ),
    ("live/", &live::NEEDS),
    ("backups", &backup::NEEDS),
];

/// What was found.
#[derive(Debug)]
pub struct Examined {
    /// As it says itself.
    pub version: String,
    /// What it cannot do, and the commands that it has not.
    pub lacks: Vec<(&'static str, Vec<&'static str>)>,
}

/// Connects to a monitor, asks, and leaves.
pub fn examine(address: Address) -> Result<Examined, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("start a runtime", &error))?;
    runtime.block_on(async {
        let connected = tokio::time::timeout(PATIENCE, Bridge::connect(address)).await;
        let late = |_| qmpbridge::Error::MonitorTaken;
        let bridge = connected.map_err(late)??;
        let lacking = |(what, commands): &(&'static str, &[&'static str])| {
            let missing: Vec<&str> = commands
                .iter()
                .copied()
                .filter(|command| !bridge.supports(command))
                .collect();
            (!missing.is_empty()).then_some((*what, missing))
        };
        Ok(Examined {
            version: bridge.version().to_string(),
            lacks: WANTED.iter().filter_map(lacking).collect(),
        })
    })
}
