//! `mkdir disks/D/snapshots/N`: seal the active layer under the point's name and go on in a fresh
//! overlay, while the path the VM boots from keeps its name (docs/SEMANTICS.md, "The active path
//! never changes"). Every step leaves a bootable disk; every failure before the transaction is
//! undone, every one after it is finished.

use super::blocking::blocking;
use super::engine::{DiskGuard, Engine};
use super::nodes::{self, Carried, Role};
use super::settle;
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, SealMarker};
use crate::model::{Disk, FileId, PointRecord};
use crate::sys;
use qmpbridge::command::{
    BlockdevCreate, BlockdevCreateOptions, BlockdevSnapshot, TransactionAction,
};
use qmpbridge::{Bridge, JobId, NodeName};
use std::path::{Path, PathBuf};

/// A new overlay needs its header and first tables; less than this is "full".
const OVERLAY_RESERVE: u64 = 4 << 20;

/// Takes an external snapshot of one disk. Returns when the point exists.
pub(super) async fn take_external(
    engine: &Engine,
    guard: &DiskGuard,
    name: &str,
) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    let disk = engine.observe_disk(guard).await?;
    let seal = Seal::prepare(engine, &disk, name)?;
    seal.mark()?;
    let outcome = seal.run(engine, bridge).await;
    if outcome.is_err() && seal.is_open() {
        // whether QEMU did it is unknown, or it did and the names are not right yet: recover asks
        // its graph, or the files when it is gone
        engine.settle_later(guard.name());
    }
    outcome
}

struct Seal<'a> {
    disk: &'a Disk,
    root: NodeName,
    carried: Carried,
    /// D: the path the VM boots from.
    active: PathBuf,
    /// The name under which QEMU has the active layer open: D, or an alias of ours.
    opened_as: PathBuf,
    /// S: the sealed layer's name.
    sealed: PathBuf,
    /// H: the overlay's hidden name.
    overlay: PathBuf,
    file: FileId,
    record: PointRecord,
}

impl<'a> Seal<'a> {
    fn prepare(engine: &Engine, disk: &'a Disk, name: &str) -> Result<Seal<'a>, Failure> {
        if let Some(why) = &disk.no_snapshots {
            return Err(Failure::new(Errno::EOPNOTSUPP, why.clone()));
        }
        let root = disk
            .root
            .clone()
            .ok_or_else(|| Failure::new(Errno::ENOTCONN, "the disk has no node"))?;
        let active = disk.active_path.clone();
        let file = sys::file_id(&active)
            .map_err(|error| Failure::io(format!("look at {}", active.display()), &error))?;
        if disk.active.file != Some(file) {
            return Err(Failure::new(
                Errno::EBUSY,
                format!("{} is not the file that QEMU writes", active.display()),
            )
            .next(
                "somebody renamed or replaced it; put the file QEMU has open back under that name",
            ));
        }
        let sealed = layer_file::sealed_path(&active, name);
        if sealed.symlink_metadata().is_ok() {
            return Err(Failure::new(
                Errno::EEXIST,
                format!("{} exists", sealed.display()),
            ));
        }
        let directory = active.parent().unwrap_or(Path::new("/"));
        let free = sys::free_bytes(directory)
            .map_err(|error| Failure::io(format!("look at {}", directory.display()), &error))?;
        if free < OVERLAY_RESERVE {
            return Err(Failure::new(
                Errno::ENOSPC,
                format!(
                    "{} has {free} bytes free, a new layer needs {OVERLAY_RESERVE}",
                    directory.display()
                ),
            )
            .next("make room on that filesystem"));
        }
        Ok(Seal {
            root,
            carried: engine.carried(disk),
            opened_as: disk.active.path.clone(),
            sealed,
            overlay: layer_file::alias_path(&active),
            file,
            record: PointRecord {
                id: layer_file::random_hex(),
                name: name.to_owned(),
                time: crate::render::now(),
                consistency: "crash".into(),
                inode: file.ino,
            },
            active,
            disk,
        })
    }

    /// The first seal since the VM's start: QEMU has the active layer open as D.
    fn first(&self) -> bool {
        self.opened_as == self.active
    }

    /// Writes down on the file itself what is about to happen, before anything does.
    fn mark(&self) -> Result<(), Failure> {
        layer_file::write_seal(&self.active, &self.marker(false))?;
        layer_file::write_point(&self.active, &self.record)
            .inspect_err(|_| self.unmark(&self.active))
    }

    /// What is written down; `resume`: the VM was stopped by us.
    fn marker(&self, resume: bool) -> SealMarker {
        SealMarker {
            version: 1,
            overlay: self.overlay.clone(),
            sealed: self.sealed.clone(),
            resume,
            inode: self.file.ino,
        }
    }

    /// Whether the mark is still there, on the file under whichever name it has now.
    fn is_open(&self) -> bool {
        [&self.sealed, &self.active, &self.opened_as]
            .iter()
            .any(|path| matches!(layer_file::read_seal(path), Ok(Some(_))))
    }

    fn unmark(&self, path: &Path) {
        for cleared in [layer_file::clear_point(path), layer_file::clear_seal(path)] {
            if let Err(failure) = cleared {
                tracing::warn!(path = %path.display(), %failure, "a mark stays behind");
            }
        }
    }

    async fn run(&self, engine: &Engine, bridge: &Bridge) -> Result<(), Failure> {
        let overlay = match self.make_overlay(bridge).await {
            Ok(overlay) => overlay,
            Err(failure) => return Err(self.undo(failure, bridge, None, false).await),
        };
        // the guest stands still only in the first seal: no write may fall between the snapshot
        // and the moment D names the overlay
        let stopped = if self.first() {
            match self.stop(engine).await {
                Ok(stopped) => stopped,
                Err(failure) => return Err(self.undo(failure, bridge, Some(overlay), false).await),
            }
        } else {
            if let Err(failure) = layer_file::replace(&self.overlay, &self.active) {
                return Err(self.undo(failure, bridge, Some(overlay), false).await);
            }
            false
        };
        let snapshot = TransactionAction::BlockdevSnapshot(BlockdevSnapshot {
            node: self.root.clone(),
            overlay: overlay.format.clone(),
        });
        if let Err(error) = bridge.transaction(vec![snapshot]).await {
            return Err(self
                .undo(error.into(), bridge, Some(overlay), stopped)
                .await);
        }
        self.finish(engine, bridge, &overlay, stopped).await
    }

    /// H: an empty overlay on S, with D's size, owner, mode and labels, open in QEMU.
    async fn make_overlay(&self, bridge: &Bridge) -> Result<Overlay, Failure> {
        layer_file::create_like(&self.overlay, &self.active)?;
        layer_file::link_new(&self.active, &self.sealed)?;
        let protocol = nodes::add_protocol(bridge, &self.overlay, &self.carried).await?;
        let made = self.format_overlay(bridge, &protocol).await;
        match made {
            Ok(format) => Ok(Overlay { protocol, format }),
            Err(failure) => {
                nodes::discard_node(bridge, &protocol).await;
                Err(failure)
            }
        }
    }

    async fn format_overlay(
        &self,
        bridge: &Bridge,
        protocol: &NodeName,
    ) -> Result<NodeName, Failure> {
        let job_id = create_job(&self.overlay)?;
        let command = BlockdevCreate {
            job_id: job_id.clone(),
            options: BlockdevCreateOptions::qcow2_overlay(
                protocol.clone(),
                self.disk.active.virtual_size,
                &self.sealed,
                "qcow2",
            ),
        };
        let mut job = bridge.start_job(job_id.clone(), command).await?;
        let outcome = job.wait_concluded().await;
        bridge.dismiss_job(&job_id).await?;
        outcome?;
        let overlay = self.overlay.clone();
        blocking(move || layer_file::fsync_file(&overlay)).await?;
        nodes::add_format(
            bridge,
            "qcow2",
            protocol.clone(),
            None,
            Role::Active,
            &self.carried,
        )
        .await
    }

    async fn stop(&self, engine: &Engine) -> Result<bool, Failure> {
        if !engine.running().await? {
            return Ok(false);
        }
        // first the note, then the deed: a daemon that dies in between leaves a VM to be resumed
        layer_file::write_seal(&self.active, &self.marker(true))?;
        engine.stop_guest().await?;
        Ok(true)
    }

    /// After the transaction there is no way back: what fails now is finished as far as it goes.
    async fn finish(
        &self,
        engine: &Engine,
        bridge: &Bridge,
        overlay: &Overlay,
        stopped: bool,
    ) -> Result<(), Failure> {
        let rearranged = self.rearrange(bridge, overlay).await;
        let renamed = if self.first() {
            layer_file::replace(&self.overlay, &self.active)
        } else {
            match rearranged {
                // a node that QEMU still has under the old alias keeps its name (I1)
                Ok(()) => settle::remove_name(&self.opened_as),
                Err(_) => Ok(()),
            }
        };
        let resumed = if stopped {
            engine.resume_guest().await
        } else {
            Ok(())
        };
        renamed?;
        resumed?;
        rearranged?;
        layer_file::clear_seal(&self.sealed)
    }

    async fn rearrange(&self, bridge: &Bridge, overlay: &Overlay) -> Result<(), Failure> {
        let graph = bridge.graph().await?;
        let below = graph.node(&self.root).and_then(|node| node.backing.clone());
        let sealed = nodes::add_sealed(bridge, &self.sealed, "qcow2", below, &self.carried).await?;
        nodes::set_backing(
            bridge,
            &graph,
            &overlay.format,
            Some(sealed),
            Role::Active,
            &self.carried,
        )
        .await?;
        nodes::drop_layer(bridge, &graph, &self.root).await
    }

    /// Takes back what was done before the transaction, and tells why it was not done.
    async fn undo(
        &self,
        failure: Failure,
        bridge: &Bridge,
        overlay: Option<Overlay>,
        stopped: bool,
    ) -> Failure {
        if !failure.outcome_known() {
            return failure;
        }
        if stopped && let Err(error) = bridge.run(qmpbridge::command::Cont).await {
            tracing::error!(%error, "the VM stays stopped");
        }
        if let Some(overlay) = overlay {
            nodes::discard_node(bridge, &overlay.format).await;
            nodes::discard_node(bridge, &overlay.protocol).await;
        }
        settle::undo_seal(&self.active, &self.sealed, Some(&self.overlay), self.file);
        self.unmark(&self.active);
        failure
    }
}

/// The job that formats an overlay is named after it: so recovery knows whose it is.
pub(super) fn create_job(overlay: &Path) -> Result<JobId, Failure> {
    let digits = overlay.extension().unwrap_or_default().to_string_lossy();
    JobId::new(format!("qmpfs-create-{digits}"))
        .map_err(|error| Failure::new(Errno::EIO, error.to_string()))
}

struct Overlay {
    protocol: NodeName,
    format: NodeName,
}
