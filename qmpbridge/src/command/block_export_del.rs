//! `block-export-del`: ends an export; done at `BLOCK_EXPORT_DELETED`, not at the reply.

use serde::Serialize;

use super::{Command, Empty};

/// `block-export-del`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockExportDel {
    /// The export.
    pub id: String,
    /// `Safe` when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<ExportRemoval>,
}

/// What becomes of the clients of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportRemoval {
    /// Refused while there are clients.
    Safe,
    /// They are cut off.
    Hard,
}

impl Command for BlockExportDel {
    const NAME: &str = "block-export-del";
    type Reply = Empty;
}
