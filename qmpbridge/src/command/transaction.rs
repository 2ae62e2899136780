//! `transaction`: several actions at one instant, all or none.

use serde::Serialize;

use super::{
    BlockDirtyBitmapAdd, BlockDirtyBitmapMerge, BlockDirtyBitmapRemove, BlockdevBackup,
    BlockdevSnapshot, BlockdevSnapshotInternalSync, Command, DRAIN_DEADLINE, Empty,
};
use crate::names::NodeName;

/// `transaction`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Transaction {
    /// In order.
    pub actions: Vec<TransactionAction>,
    /// How the jobs that it starts hang together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties: Option<TransactionProperties>,
}

impl Command for Transaction {
    const NAME: &str = "transaction";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}

/// Of the jobs of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TransactionProperties {
    /// Whether they fail together.
    pub completion_mode: CompletionMode,
}

/// Whether the jobs of a transaction fail together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompletionMode {
    /// Each for itself.
    Individual,
    /// One that fails cancels the others.
    Grouped,
}

/// One action of a transaction.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum TransactionAction {
    /// Fails, and with it the whole: for tests.
    Abort {},
    /// Puts an overlay on a node.
    BlockdevSnapshot(BlockdevSnapshot),
    /// Makes an internal snapshot.
    BlockdevSnapshotInternalSync(BlockdevSnapshotInternalSync),
    /// Starts a backup as of this instant.
    BlockdevBackup(BlockdevBackup),
    /// Adds a bitmap.
    BlockDirtyBitmapAdd(BlockDirtyBitmapAdd),
    /// Removes a bitmap.
    BlockDirtyBitmapRemove(BlockDirtyBitmapRemove),
    /// Empties a bitmap.
    BlockDirtyBitmapClear(BitmapName),
    /// Lets a bitmap record.
    BlockDirtyBitmapEnable(BitmapName),
    /// Stops a bitmap from recording.
    BlockDirtyBitmapDisable(BitmapName),
    /// Merges bitmaps.
    BlockDirtyBitmapMerge(BlockDirtyBitmapMerge),
}

/// A bitmap of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BitmapName {
    /// The node.
    pub node: NodeName,
    /// The bitmap.
    pub name: String,
}
