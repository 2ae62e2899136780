//! A new overlay: an empty qcow2 file under a hidden name, open in QEMU with nothing below it yet.
//! It knows how one is made and taken back; it does not know what for.

use super::blocking::blocking;
use super::nodes::{self, Carried, Role};
use super::snapshot::create_job;
use crate::errno::Failure;
use crate::layer_file;
use crate::model::Layer;
use qmpbridge::command::{BlockdevCreate, BlockdevCreateOptions};
use qmpbridge::{Bridge, NodeName};
use std::path::{Path, PathBuf};

/// An overlay in QEMU's graph.
pub(super) struct Overlay {
    protocol: NodeName,
    pub(super) format: NodeName,
}

/// Makes the overlay `path` of the layer `onto`, with the owner, mode and labels of `like`.
pub(super) async fn make(
    bridge: &Bridge,
    path: &Path,
    like: &Path,
    onto: &Layer,
    carried: &Carried,
) -> Result<Overlay, Failure> {
    let (new, model): (PathBuf, PathBuf) = (path.to_owned(), like.to_owned());
    blocking(move || layer_file::create_like(&new, &model).map(drop)).await?;
    let protocol = nodes::add_protocol(bridge, path, carried).await?;
    match format(bridge, path, &protocol, onto, carried).await {
        Ok(format) => Ok(Overlay { protocol, format }),
        Err(failure) => {
            if failure.outcome_known() {
                nodes::discard_node(bridge, &protocol).await;
            }
            Err(failure)
        }
    }
}

async fn format(
    bridge: &Bridge,
    path: &Path,
    protocol: &NodeName,
    onto: &Layer,
    carried: &Carried,
) -> Result<NodeName, Failure> {
    let job_id = create_job(path)?;
    let command = BlockdevCreate {
        job_id: job_id.clone(),
        options: BlockdevCreateOptions::qcow2_overlay(
            protocol.clone(),
            onto.virtual_size,
            &onto.path,
            onto.format.name(),
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
