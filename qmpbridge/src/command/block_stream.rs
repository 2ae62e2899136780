//! `block-stream`: copies up what lies between a node and a base.

use std::path::PathBuf;

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty, OnError};
use crate::names::{JobId, NodeName};

/// `block-stream`
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
    /// Stays `pending` at its end when false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_finalize: Option<bool>,
    /// False, or its end may go unseen.
    pub auto_dismiss: bool,
}

impl BlockStream {
    /// With QEMU's defaults for the rest, and kept after its end until dismissed.
    pub fn new(job_id: JobId, device: NodeName) -> Self {
        BlockStream {
            job_id,
            device,
            base_node: None,
            backing_file: None,
            speed: None,
            on_error: None,
            auto_finalize: None,
            auto_dismiss: false,
        }
    }
}

impl Command for BlockStream {
    const NAME: &str = "block-stream";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
