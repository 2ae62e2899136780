//! QEMU's events.
//!
//! Knows the names of those we act on; every other is kept as it came.
//! Events are hints: they are lost while away and may precede a command's own reply. The graph is the truth.

use serde_json::Value;

use crate::job::JobStatus;
use crate::names::JobId;

/// QEMU's word for the end of a cancelled job.
const CANCELLED: &str = "Operation canceled";

/// An event as QEMU sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// QEMU's name, `JOB_STATUS_CHANGE`.
    pub name: String,
    /// Its data, `null` when it has none.
    pub data: Value,
    /// QEMU's clock, -1 when it had none.
    pub seconds: i64,
    /// Part of a second.
    pub microseconds: i64,
}

/// The events with a meaning for block devices and jobs.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// `JOB_STATUS_CHANGE`: flaps between paused and running around every graph change.
    JobStatusChange {
        /// The job.
        id: JobId,
        /// Its state now.
        status: JobStatus,
    },
    /// `BLOCK_JOB_READY`, `_PENDING`, `_COMPLETED`, `_CANCELLED`.
    BlockJob {
        /// The job.
        id: JobId,
        /// When it is over: how. QEMU's words when it failed or was cancelled.
        outcome: Option<Result<(), String>>,
    },
    /// `BLOCK_JOB_ERROR`: the job met an I/O error.
    BlockJobError {
        /// The job.
        id: JobId,
        /// `read` or `write`.
        operation: String,
        /// `ignore`, `report` or `stop`.
        action: String,
    },
    /// `BLOCK_EXPORT_DELETED`
    BlockExportDeleted {
        /// The export.
        id: String,
    },
    /// `SHUTDOWN`: QEMU is about to leave.
    Shutdown {
        /// Whether the guest asked for it.
        guest: bool,
        /// QEMU's word for why.
        reason: String,
    },
    /// `STOP`
    Stop,
    /// `RESUME`
    Resume,
    /// `RESET`
    Reset,
    /// Any other.
    Other,
}

impl Event {
    /// The event's meaning.
    pub fn kind(&self) -> EventKind {
        let text = |key: &str| {
            self.data
                .get(key)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let job = |key: &str| text(key).and_then(|id| JobId::new(id).ok());
        let known = match self.name.as_str() {
            "JOB_STATUS_CHANGE" => job("id").map(|id| EventKind::JobStatusChange {
                id,
                status: self
                    .data
                    .get("status")
                    .map_or(JobStatus::Unknown, JobStatus::from_json),
            }),
            "BLOCK_JOB_READY" => job("device").map(|id| EventKind::BlockJob { id, outcome: None }),
            "BLOCK_JOB_PENDING" => job("id").map(|id| EventKind::BlockJob { id, outcome: None }),
            "BLOCK_JOB_COMPLETED" => job("device").map(|id| EventKind::BlockJob {
                id,
                outcome: Some(text("error").map_or(Ok(()), Err)),
            }),
            "BLOCK_JOB_CANCELLED" => job("device").map(|id| EventKind::BlockJob {
                id,
                // The event has no text; this is what `query-jobs` says of such a job.
                outcome: Some(Err(CANCELLED.to_owned())),
            }),
            "BLOCK_JOB_ERROR" => job("device").map(|id| EventKind::BlockJobError {
                id,
                operation: text("operation").unwrap_or_default(),
                action: text("action").unwrap_or_default(),
            }),
            "BLOCK_EXPORT_DELETED" => text("id").map(|id| EventKind::BlockExportDeleted { id }),
            "SHUTDOWN" => Some(EventKind::Shutdown {
                guest: self
                    .data
                    .get("guest")
                    .and_then(Value::as_bool)
                    .unwrap_or(false),
                reason: text("reason").unwrap_or_default(),
            }),
            "STOP" => Some(EventKind::Stop),
            "RESUME" => Some(EventKind::Resume),
            "RESET" => Some(EventKind::Reset),
            _ => None,
        };
        known.unwrap_or(EventKind::Other)
    }
}
