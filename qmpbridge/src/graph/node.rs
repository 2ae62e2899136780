//! A node of the block graph.
//!
//! Knows what QEMU tells about one open image, and which of it can be trusted.
//! Does not know its neighbours beyond their names.

use std::path::PathBuf;

use serde::Deserialize;

use crate::names::NodeName;

/// Drivers that pass data through. QEMU does not tell; these are the `is_filter` drivers of its source,
/// and the names older versions had for them.
const FILTERS: [&str; 11] = [
    "backup-top",
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "commit_top",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "mirror_top",
    "preallocate",
    "throttle",
];

/// Drivers whose `filename` is a path on this host.
const LOCAL: [&str; 3] = ["file", "host_device", "host_cdrom"];

pub(super) fn is_filter(driver: &str) -> bool {
    FILTERS.contains(&driver)
}

/// The path in QEMU's name for a protocol node, if it is one. Relative names are QEMU's, to its own directory.
pub(super) fn local_path(driver: &str, filename: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Options {
        filename: Option<String>,
    }
    if !LOCAL.contains(&driver) {
        return None;
    }
    let name = match filename.strip_prefix("json:") {
        Some(json) => serde_json::from_str::<Options>(json).ok()?.filename?,
        None => filename.to_owned(),
    };
    // A descriptor that was handed over has no name outside.
    (!name.is_empty() && !name.starts_with("/dev/fdset/")).then(|| PathBuf::from(name))
}

/// A node: an open image file (format node), its access (protocol node), or a filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its driver: `qcow2`, `raw`, `file`, `throttle`, …
    pub driver: String,
    /// Whether it is open read-only now.
    pub read_only: bool,
    /// Whether it only passes data through.
    pub is_filter: bool,
    /// The child that holds its own data.
    pub file: Option<NodeName>,
    /// The child below it in the chain.
    pub backing: Option<NodeName>,
    /// All its children.
    pub children: Vec<Child>,
    /// QEMU's name for it: a path, or a `json:{…}` pseudo-name. For people.
    pub filename: String,
    /// The local file that holds its data, from the protocol node. `None` when that is elsewhere, or has no name.
    pub path: Option<PathBuf>,
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// What the file takes, in bytes.
    pub actual_size: Option<u64>,
    /// Of the format.
    pub cluster_size: Option<u64>,
    /// The backing file as the header names it; stays when the node was opened with another.
    pub backing_filename: Option<String>,
    /// The same, made absolute by QEMU.
    pub full_backing_filename: Option<String>,
    /// Its format, as the header names it.
    pub backing_format: Option<String>,
    /// The external data file of a qcow2 image, as the header names it.
    pub data_file: Option<String>,
    /// Internal snapshots.
    pub snapshots: Vec<InternalSnapshotInfo>,
    /// Bitmaps in memory.
    pub dirty_bitmaps: Vec<DirtyBitmap>,
    /// Cache mode.
    pub cache: CacheMode,
    /// `off`, `on` or `unmap`.
    pub detect_zeroes: String,
    /// Whether the data is encrypted.
    pub encrypted: bool,
    /// The corrupt flag of formats that have one.
    pub corrupt: Option<bool>,
    /// Whether it is active (not handed over by a migration); since QEMU 10.0.
    pub active: Option<bool>,
    /// What only this format has: the `data` of QEMU's `format-specific`.
    pub format_specific: serde_json::Value,
}

impl Node {
    /// The next node of the chain: `backing`, or through a filter what it filters.
    pub fn below(&self) -> Option<&NodeName> {
        match (self.is_filter, &self.file, &self.backing) {
            (true, Some(file), _) => Some(file),
            (_, _, backing) => backing.as_ref(),
        }
    }

    /// Whether it is the access to a local file, without a format.
    pub fn is_local_protocol(&self) -> bool {
        LOCAL.contains(&self.driver.as_str())
    }
}

/// A child of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// `file`, `backing`, `target`, `data-file`, …
    pub edge: String,
    /// The child.
    pub node: NodeName,
}

/// The cache mode of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheMode {
    /// Whether writes count as done before they are flushed.
    pub writeback: bool,
    /// Whether the host's page cache is bypassed.
    pub direct: bool,
    /// Whether flushes are ignored.
    pub no_flush: bool,
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InternalSnapshotInfo {
    /// Its id, unique in the image.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When, by the host's clock, in seconds since 1970.
    pub date_sec: i64,
    /// Part of a second.
    pub date_nsec: i64,
    /// When, by the guest's clock.
    pub vm_clock_sec: i64,
    /// Part of a second.
    pub vm_clock_nsec: i64,
    /// Bytes of machine state; 0 for a snapshot of the disk alone.
    #[serde(rename = "vm-state-size")]
    pub vm_state_size: u64,
    /// Of record and replay.
    pub icount: Option<i64>,
}

/// A dirty bitmap.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DirtyBitmap {
    /// Its name; QEMU's own have none.
    pub name: Option<String>,
    /// Bytes a bit stands for.
    pub granularity: u64,
    /// Bytes that are marked.
    pub count: u64,
    /// Whether it marks writes.
    pub recording: bool,
    /// Whether a job has it.
    pub busy: bool,
    /// Whether it is stored in the image.
    pub persistent: bool,
    /// Set when it was not stored at the last end; it can only be removed.
    #[serde(default)]
    pub inconsistent: bool,
}
