//! A new overlay: an empty qcow2 file under a hidden name, open in QEMU with nothing below it yet.
//! It knows how QEMU is made to format and open one, and to let go of it; it does not know what for.

use super::check;
use super::nodes::{self, Carried};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{Disk, FileId};
use crate::sys;
use qmpbridge::command::BlockdevCreateOptions;
use qmpbridge::{Bridge, JobId, NodeName};
use std::path::Path;

/// A new overlay needs its header and first tables; less than this is "full".
const RESERVE: u64 = 4 << 20;

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

/// The node and the file that a new overlay takes the place of.
pub(super) fn top_of(disk: &Disk) -> Result<(NodeName, FileId), Failure> {
    if let Some(why) = disk.no_seal() {
        return Err(Failure::new(Errno::EOPNOTSUPP, why.clone()));
    }
    let root = check::root_of(disk)?;
    let active = &disk.active_path;
    let file = sys::file_id(active)
        .map_err(|error| Failure::io(format!("look at {}", active.display()), &error))?;
    if disk.active.file != Some(file) {
        return Err(Failure::new(
            Errno::EBUSY,
            format!("{} is not the file that QEMU writes", active.display()),
        )
        .next("somebody renamed or replaced it; put the file QEMU has open back under that name"));
    }
    Ok((root, file))
}

/// No overlay is begun that could not be written.
pub(super) fn refuse_if_full(active: &Path) -> Result<(), Failure> {
    let directory = active.parent().unwrap_or(Path::new("/"));
    let free = layer_file::free_bytes(directory)?;
    if free >= RESERVE {
        return Ok(());
    }
    Err(Failure::new(
        Errno::ENOSPC,
        format!(
            "{} has {free} bytes free, a new layer needs {RESERVE}",
            directory.display()
        ),
    )
    .next("make room on that filesystem"))
}

/// Makes the empty file `path` an overlay of what is to be below it, and opens it.
pub(super) async fn format(
    bridge: &Bridge,
    path: &Path,
    below: Below<'_>,
    carried: &Carried,
) -> Result<Overlay, Failure> {
    let job = create_job(path)?;
    let protocol = nodes::add_protocol(bridge, path, carried).await?;
    let options = BlockdevCreateOptions::qcow2_overlay(
        protocol.clone(),
        below.virtual_size,
        below.path,
        below.format,
    );
    match nodes::add_created(bridge, path, job, options, carried).await {
        Ok(format) => Ok(Overlay { protocol, format }),
        Err(failure) => {
            if failure.outcome_known() {
                nodes::discard_node(bridge, &protocol).await;
            }
            Err(failure)
        }
    }
}

/// The job that formats an overlay.
pub(super) fn create_job(overlay: &Path) -> Result<JobId, Failure> {
    nodes::create_job(&overlay.extension().unwrap_or_default().to_string_lossy())
}

impl Overlay {
    /// Lets go of its nodes; the file stays.
    pub(super) async fn discard(self, bridge: &Bridge) {
        nodes::discard_node(bridge, &self.format).await;
        nodes::discard_node(bridge, &self.protocol).await;
    }
}
