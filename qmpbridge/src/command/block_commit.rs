//! `block-commit`: copies down what lies between a top and a base.

use std::path::PathBuf;

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty, OnError};
use crate::names::{JobId, NodeName};

/// `block-commit`
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockCommit {
    /// The id of the job.
    pub job_id: JobId,
    /// The root of the chain.
    pub device: NodeName,
    /// What is copied down; the active layer without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_node: Option<NodeName>,
    /// What receives it; the bottom without. Its own view is lost at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_node: Option<NodeName>,
    /// Written into the header of the overlay of `top_node`, verbatim. Not allowed for the active layer.
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

impl BlockCommit {
    /// With QEMU's defaults for the rest, and kept after its end until dismissed.
    pub fn new(job_id: JobId, device: NodeName) -> Self {
        BlockCommit {
            job_id,
            device,
            top_node: None,
            base_node: None,
            backing_file: None,
            speed: None,
            on_error: None,
            auto_finalize: None,
            auto_dismiss: false,
        }
    }
}

impl Command for BlockCommit {
    const NAME: &str = "block-commit";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
