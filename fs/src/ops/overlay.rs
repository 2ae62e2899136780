//! A new overlay: an empty qcow2 file under a hidden name, open in QEMU with nothing below it yet.
//! It knows how QEMU is made to format and open one, and to let go of it; it does not know what for.

use super::blocking::blocking;
use super::nodes::{self, Carried, Role};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use qmpbridge::command::{BlockdevCreate, BlockdevCreateOptions};
use qmpbridge::{Bridge, JobId, NodeName};
use std::path::Path;

/// An overlay in QEMU's graph.
pub(super) struct Overlay {
    protocol: NodeName,
    pub(super) format: NodeName,
}

/// What an overlay is to stand on.
pub(super) struct Below<'a> {
    pub(super) path: &'a Path,
    pub(super) format: &'a str,
    pub(super) virtual_size: u64,
}

/// Makes the empty file `path` an overlay of what is to be below it, and opens it.
pub(super) async fn format(
    bridge: &Bridge,
    path: &Path,
    below: Below<'_>,
    carried: &Carried,
) -> Result<Overlay, Failure> {
    let protocol = nodes::add_protocol(bridge, path, carried).await?;
    match format_node(bridge, path, &protocol, below, carried).await {
        Ok(format) => Ok(Overlay { protocol, format }),
        Err(failure) => {
            if failure.outcome_known() {
                nodes::discard_node(bridge, &protocol).await;
            }
            Err(failure)
        }
    }
}

/// The job that formats an overlay is named after it: so recovery knows whose it is.
pub(super) fn create_job(overlay: &Path) -> Result<JobId, Failure> {
    let digits = overlay.extension().unwrap_or_default().to_string_lossy();
    JobId::new(format!("qmpfs-create-{digits}"))
        .map_err(|error| Failure::new(Errno::EIO, error.to_string()))
}

async fn format_node(
    bridge: &Bridge,
    path: &Path,
    protocol: &NodeName,
    below: Below<'_>,
    carried: &Carried,
) -> Result<NodeName, Failure> {
    let job_id = create_job(path)?;
    let command = BlockdevCreate {
        job_id: job_id.clone(),
        options: BlockdevCreateOptions::qcow2_overlay(
            protocol.clone(),
            below.virtual_size,
            below.path,
            below.format,
        ),
    };
    let mut job = bridge.start_job(job_id.clone(), command).await?;
    let outcome = job.wait_concluded().await;
    bridge.dismiss_job(&job_id).await?;
    outcome?;
    let made = path.to_owned();
    blocking(move || layer_file::fsync_file(&made)).await?;
    nodes::add_format(
        bridge,
        "qcow2",
        protocol.clone(),
        None,
        Role::Active,
        carried,
    )
    .await
}

impl Overlay {
    /// Lets go of its nodes; the file stays.
    pub(super) async fn discard(self, bridge: &Bridge) {
        nodes::discard_node(bridge, &self.format).await;
        nodes::discard_node(bridge, &self.protocol).await;
    }
}
