//! `blockdev-create`: writes a new image into a file, as a job.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Command, DRAIN_DEADLINE, Empty};
use crate::names::{JobId, NodeName};

/// `blockdev-create`. Its job is never dismissed by itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevCreate {
    /// The id of the job.
    pub job_id: JobId,
    /// What to write.
    pub options: BlockdevCreateOptions,
}

/// The image to be.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevCreateOptions {
    /// `qcow2`
    pub driver: String,
    /// The protocol node of an empty file.
    pub file: NodeName,
    /// Virtual size in bytes.
    pub size: u64,
    /// Written into the header, verbatim; the file is not opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<PathBuf>,
    /// Its format. Without it QEMU would probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_fmt: Option<String>,
}

impl BlockdevCreateOptions {
    /// An empty qcow2 image that stands on nothing.
    pub fn qcow2(file: NodeName, size: u64) -> Self {
        BlockdevCreateOptions {
            driver: "qcow2".into(),
            file,
            size,
            backing_file: None,
            backing_fmt: None,
        }
    }

    /// An empty qcow2 overlay.
    pub fn qcow2_overlay(file: NodeName, size: u64, backing: &Path, backing_format: &str) -> Self {
        BlockdevCreateOptions {
            driver: "qcow2".into(),
            file,
            size,
            backing_file: Some(backing.to_owned()),
            backing_fmt: Some(backing_format.into()),
        }
    }
}

impl Command for BlockdevCreate {
    const NAME: &str = "blockdev-create";
    const DEADLINE: std::time::Duration = DRAIN_DEADLINE;
    type Reply = Empty;
}
