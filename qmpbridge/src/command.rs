//! The QMP commands, one a file, and what a command is.
//!
//! Knows QEMU's schema for what it sends and for what it reads; reads no more than is used.
//! Does not know how a command travels, nor when to send which.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

mod block_commit;
mod block_dirty_bitmap_add;
mod block_dirty_bitmap_merge;
mod block_dirty_bitmap_remove;
mod block_export_add;
mod block_export_del;
mod block_job_cancel;
mod block_job_set_speed;
mod block_stream;
mod blockdev_add;
mod blockdev_backup;
mod blockdev_create;
mod blockdev_del;
mod blockdev_mirror;
mod blockdev_reopen;
mod blockdev_snapshot;
mod blockdev_snapshot_delete_internal_sync;
mod blockdev_snapshot_internal_sync;
mod change_backing_file;
mod cont;
mod human_monitor_command;
mod job_cancel;
mod job_complete;
mod job_dismiss;
mod job_finalize;
mod job_pause;
mod job_resume;
mod nbd_server_start;
mod nbd_server_stop;
mod qom_get;
mod qom_set;
mod query_block;
mod query_block_exports;
mod query_block_jobs;
mod query_cpus_fast;
mod query_jobs;
mod query_migrate;
mod query_name;
mod query_named_block_nodes;
mod query_status;
mod query_uuid;
mod quit;
mod snapshot_delete;
mod snapshot_load;
mod snapshot_save;
mod stop;
mod system_reset;
mod transaction;
mod x_debug_query_block_graph;

pub use block_commit::BlockCommit;
pub use block_dirty_bitmap_add::BlockDirtyBitmapAdd;
pub use block_dirty_bitmap_merge::{BitmapSource, BlockDirtyBitmapMerge};
pub use block_dirty_bitmap_remove::BlockDirtyBitmapRemove;
pub use block_export_add::{BlockExportAdd, ExportKind};
pub use block_export_del::{BlockExportDel, ExportRemoval};
pub use block_job_cancel::BlockJobCancel;
pub use block_job_set_speed::BlockJobSetSpeed;
pub use block_stream::{BlockStream, StreamEnd};
pub use blockdev_add::{Backing, BlockdevAdd, BlockdevOptions, CacheOptions};
pub use blockdev_backup::{BackupPerf, BitmapMode, BlockdevBackup};
pub use blockdev_create::{BlockdevCreate, BlockdevCreateOptions};
pub use blockdev_del::BlockdevDel;
pub use blockdev_mirror::BlockdevMirror;
pub use blockdev_reopen::BlockdevReopen;
pub use blockdev_snapshot::BlockdevSnapshot;
pub use blockdev_snapshot_delete_internal_sync::BlockdevSnapshotDeleteInternalSync;
pub use blockdev_snapshot_internal_sync::BlockdevSnapshotInternalSync;
pub use change_backing_file::ChangeBackingFile;
pub use cont::Cont;
pub use human_monitor_command::HumanMonitorCommand;
pub use job_cancel::JobCancel;
pub use job_complete::JobComplete;
pub use job_dismiss::JobDismiss;
pub use job_finalize::JobFinalize;
pub use job_pause::JobPause;
pub use job_resume::JobResume;
pub use nbd_server_start::{NbdServerStart, SocketAddress};
pub use nbd_server_stop::NbdServerStop;
pub use qom_get::QomGet;
pub use qom_set::QomSet;
pub use query_block::{BlockInfo, Inserted, QueryBlock};
pub use query_block_exports::{ExportInfo, QueryBlockExports};
pub use query_block_jobs::{BlockJob, QueryBlockJobs};
pub use query_cpus_fast::{Cpu, QueryCpusFast};
pub use query_jobs::{Job, QueryJobs};
pub use query_migrate::{Migration, QueryMigrate};
pub use query_name::{Name, QueryName};
pub use query_named_block_nodes::{ImageInfo, NodeInfo, QueryNamedBlockNodes};
pub use query_status::{QueryStatus, Status};
pub use query_uuid::{QueryUuid, Uuid};
pub use quit::Quit;
pub use snapshot_delete::SnapshotDelete;
pub use snapshot_load::SnapshotLoad;
pub use snapshot_save::SnapshotSave;
pub use stop::Stop;
pub use system_reset::SystemReset;
pub use transaction::{
    BitmapName, CompletionMode, Transaction, TransactionAction, TransactionProperties,
};
pub use x_debug_query_block_graph::{
    DebugEdge, DebugGraph, DebugNode, DebugNodeType, XDebugQueryBlockGraph,
};

/// Commands that only look or flip a switch are answered in milliseconds; a chain of 300 layers takes half a second to list.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// Commands that drain: they wait for the disk's requests under way, and a slow disk's take long.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// Commands that are answered when the RAM was written or read, which takes as long as that takes: a terabyte to a slow disk.
pub const STATE_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// A QMP command: its arguments are what it serializes to.
pub trait Command: Serialize + Send {
    /// QEMU's name.
    const NAME: &'static str;
    /// How long to wait for the reply.
    const DEADLINE: Duration = DEFAULT_DEADLINE;
    /// What it returns.
    type Reply: DeserializeOwned + Send;
}

/// The reply `{}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Empty {}

/// What a job does at an I/O error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The job fails.
    Report,
    /// The job stops and can be resumed.
    Stop,
    /// Stops when there is no space, fails otherwise.
    Enospc,
}

/// What a mirror or a backup copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sync {
    /// All that the guest sees.
    Full,
    /// The active layer alone.
    Top,
    /// Only what is written from now on.
    None,
    /// What the bitmap marks, with the bitmap cleared at success.
    Incremental,
    /// What the bitmap marks.
    Bitmap,
}
