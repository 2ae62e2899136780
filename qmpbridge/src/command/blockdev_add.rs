//! `blockdev-add`: opens a node.

use std::path::PathBuf;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::NodeName;

/// `blockdev-add`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct BlockdevAdd(
    /// The node to be.
    pub BlockdevOptions,
);

impl Command for BlockdevAdd {
    const NAME: &str = "blockdev-add";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}

/// What lies below a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// What the header says. Dangerous: QEMU opens the file it names a second time.
    #[default]
    Header,
    /// Nothing, whatever the header says.
    Nothing,
    /// A node that is open.
    Node(NodeName),
}

impl Backing {
    fn is_header(&self) -> bool {
        *self == Backing::Header
    }
}

impl From<Option<NodeName>> for Backing {
    fn from(node: Option<NodeName>) -> Self {
        node.map_or(Backing::Nothing, Backing::Node)
    }
}

impl Serialize for Backing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Backing::Header | Backing::Nothing => serializer.serialize_none(),
            Backing::Node(node) => node.serialize(serializer),
        }
    }
}

/// The cache options of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheOptions {
    /// Bypass the host's page cache.
    pub direct: bool,
    /// Ignore flushes.
    pub no_flush: bool,
}

/// The options of a node, for `blockdev-add` and `blockdev-reopen`. What is `None` is left to QEMU.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevOptions {
    /// `file`, `qcow2`, `raw`, …
    pub driver: String,
    /// The node's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<NodeName>,
    /// The path, of a protocol node. Must be UTF-8 to travel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<PathBuf>,
    /// The node below, of a format node or a filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<NodeName>,
    /// What lies below, of an overlay.
    #[serde(skip_serializing_if = "Backing::is_header")]
    pub backing: Backing,
    /// Never on the protocol node of a layer that a commit or stream may write: they refuse then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Read-only until a writer comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_read_only: Option<bool>,
    /// Reads beside whoever writes the file, and keeps nobody from writing it; only with `read_only`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_share: Option<bool>,
    /// Cache mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheOptions>,
    /// `off`, `on` or `unmap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detect_zeroes: Option<String>,
    /// `ignore` or `unmap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<String>,
    /// `threads`, `native` or `io_uring`, of a protocol node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aio: Option<String>,
    /// What else the driver takes, in QEMU's spelling.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl BlockdevOptions {
    /// A protocol node on a file.
    pub fn file(node_name: NodeName, filename: impl Into<PathBuf>) -> Self {
        BlockdevOptions {
            driver: "file".into(),
            node_name: Some(node_name),
            filename: Some(filename.into()),
            ..Default::default()
        }
    }

    /// A format node or a filter on another node.
    pub fn over(driver: &str, node_name: NodeName, file: NodeName) -> Self {
        BlockdevOptions {
            driver: driver.into(),
            node_name: Some(node_name),
            file: Some(file),
            ..Default::default()
        }
    }
}
