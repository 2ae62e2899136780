//! `query-named-block-nodes`: every node, each for itself.

use serde::{Deserialize, Serialize};

use super::Command;
use crate::graph::{CacheMode, DirtyBitmap, InternalSnapshotInfo};
use crate::names::NodeName;

/// `query-named-block-nodes`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueryNamedBlockNodes {
    /// True: the other form is quadratic in the length of a chain.
    pub flat: bool,
}

impl Command for QueryNamedBlockNodes {
    const NAME: &str = "query-named-block-nodes";
    type Reply = Vec<NodeInfo>;
}

/// A node.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    #[serde(rename = "node-name")]
    pub node_name: NodeName,
    /// Its driver.
    pub drv: String,
    /// Whether it is open read-only.
    pub ro: bool,
    /// Whether it is active (not handed over by a migration); since QEMU 10.0.
    pub active: Option<bool>,
    /// QEMU's name for the file: a path, or `json:{…}`.
    pub file: String,
    /// `off`, `on` or `unmap`.
    #[serde(default)]
    pub detect_zeroes: String,
    /// Whether the data is encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// Cache mode.
    pub cache: CacheMode,
    /// Bitmaps in memory.
    #[serde(default, rename = "dirty-bitmaps")]
    pub dirty_bitmaps: Vec<DirtyBitmap>,
    /// What the image says of itself.
    pub image: ImageInfo,
}

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// As the driver is called.
    pub format: String,
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// What the file takes, in bytes; unknown for some protocols.
    pub actual_size: Option<u64>,
    /// Of the format.
    pub cluster_size: Option<u64>,
    /// The backing file as the header names it.
    pub backing_filename: Option<String>,
    /// The same, made absolute.
    pub full_backing_filename: Option<String>,
    /// Its format, as the header names it.
    pub backing_filename_format: Option<String>,
    /// Internal snapshots.
    #[serde(default)]
    pub snapshots: Vec<InternalSnapshotInfo>,
    /// What only this format has, `{"type":…,"data":{…}}`.
    #[serde(default)]
    pub format_specific: serde_json::Value,
}
