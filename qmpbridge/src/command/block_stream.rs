//! `block-stream`: copies up what lies between a node and a base.
//!
//! Invariant: a stream is never left concluded. QEMU 10.0.2 dies of SIGSEGV when its nodes are listed beside
//! a concluded stream that is not dismissed: the job still holds its filter, and the filter has no child.
//! So it stops at `pending`, where nothing is lost if nobody looks, and `job-finalize` ends and dismisses it at once.

use std::path::PathBuf;

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty, OnError};
use crate::names::{JobId, NodeName};

/// `block-stream`: make it with [`BlockStream::new`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockStream {
    /// The id of the job.
    pub job_id: JobId,
    /// The node that receives the data; may be in the middle of a chain.
    pub device: NodeName,
    /// What stays below it; all is copied without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_node: Option<NodeName>,
    /// Written into the header, verbatim. Give it whenever there is a base: QEMU's own choice may be a `json:` name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<PathBuf>,
    /// Bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<u64>,
    /// `Report` when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,
    /// Not a choice.
    #[serde(flatten)]
    pub end: StreamEnd,
}

/// How a stream ends: it waits at `pending` for `job-finalize`, and is gone with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct StreamEnd {
    auto_finalize: bool,
    auto_dismiss: bool,
}

impl BlockStream {
    /// With QEMU's defaults for the rest.
    pub fn new(job_id: JobId, device: NodeName) -> Self {
        BlockStream {
            job_id,
            device,
            base_node: None,
            backing_file: None,
            speed: None,
            on_error: None,
            end: StreamEnd {
                auto_finalize: false,
                auto_dismiss: true,
            },
        }
    }
}

impl Command for BlockStream {
    const NAME: &str = "block-stream";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
