//! One disk's part of a snapshot: its names on the host's disk and its nodes in QEMU's graph, as
//! steps that `snapshot` calls in their order. The names: D, the path the VM boots from; S, the
//! sealed layer's; H, the overlay's hidden one. It does not know when the instant is, nor who else
//! takes part in it.

use crate::errno::{Errno, Failure};
use crate::layer_file::{self, SealMarker};
use crate::model::{Disk, FileId, GroupRecord, PointRecord};
use crate::ops::backup::bitmaps;
use crate::ops::blocking::blocking;
use crate::ops::check;
use crate::ops::engine::Engine;
use crate::ops::nodes::{self, Carried, Role};
use crate::ops::overlay::{self, Below, Overlay};
use crate::ops::quiesce::Quiesced;
use crate::ops::settle;
use crate::sys;
use qmpbridge::command::{BlockdevSnapshot, TransactionAction};
use qmpbridge::{BlockGraph, Bridge, NodeName};
use std::path::{Path, PathBuf};

pub(super) struct Seal {
    disk: Disk,
    root: NodeName,
    carried: Carried,
    names: Names,
    record: PointRecord,
    /// Something may have been changed.
    begun: bool,
    overlay: Option<Overlay>,
}

/// The files, as much as a worker needs of them.
#[derive(Clone)]
struct Names {
    /// D: the path the VM boots from.
    active: PathBuf,
    /// The name under which QEMU has the active layer open: D, or an alias of ours.
    opened_as: PathBuf,
    /// S: the sealed layer's name.
    sealed: PathBuf,
    /// H: the overlay's hidden name.
    overlay: PathBuf,
    /// The file that is sealed.
    file: FileId,
}

impl Seal {
    /// Everything that can be refused before anything is done.
    pub(super) fn check(engine: &Engine, disk: Disk, name: &str) -> Result<Seal, Failure> {
        let (root, file) = overlay::top_of(&disk)?;
        check::refuse_if_mixed(&disk.name, disk.layers.last())?;
        let active = disk.active_path.clone();
        let sealed = layer_file::sealed_path(&active, name);
        if sealed.symlink_metadata().is_ok() {
            return Err(
                Failure::new(Errno::EEXIST, format!("{} exists", sealed.display()))
                    .next("choose another name, or move that file away"),
            );
        }
        overlay::refuse_if_full(&active)?;
        Ok(Seal {
            root,
            carried: engine.carried(&disk),
            names: Names {
                opened_as: disk.active.path.clone(),
                sealed,
                overlay: layer_file::alias_path(&active),
                file,
                active,
            },
            record: PointRecord {
                id: layer_file::random_hex(),
                name: name.to_owned(),
                time: String::new(),
                consistency: "crash".into(),
                frozen_ms: None,
                quiesce_error: None,
                inode: file.ino,
                group: None,
            },
            begun: false,
            overlay: None,
            disk,
        })
    }

    /// The disk's name.
    pub(super) fn disk(&self) -> &str {
        &self.disk.name
    }

    /// What a group knows of it: the disk's name and the point's id.
    pub(super) fn member(&self) -> (String, String) {
        (self.disk.name.clone(), self.record.id.clone())
    }

    /// The first seal since the VM's start: QEMU has the active layer open as D.
    pub(super) fn first(&self) -> bool {
        self.names.opened_as == self.names.active
    }

    /// Its part of the transaction; None before the overlay is made.
    pub(super) fn action(&self) -> Option<TransactionAction> {
        let overlay = self.overlay.as_ref()?.format.clone();
        let node = self.root.clone();
        Some(TransactionAction::BlockdevSnapshot(BlockdevSnapshot {
            node,
            overlay,
        }))
    }

    /// The guest's disk would be cut to what it had before somebody made it larger.
    pub(super) fn refuse_if_resized(&self, graph: &BlockGraph) -> Result<(), Failure> {
        check::refuse_if_resized(graph, &self.root, self.disk.active.virtual_size)
    }

    /// What takes the dirty bitmaps of backups along, behind that.
    pub(super) fn bitmaps(&self) -> Vec<TransactionAction> {
        let overlay = self.overlay.as_ref();
        overlay.map_or_else(Vec::new, |overlay| {
            bitmaps::onto_overlay(&self.disk, &self.root, &overlay.format)
        })
    }

    /// Writes down on the file itself what is about to happen, before anything does.
    pub(super) async fn mark(&mut self) -> Result<(), Failure> {
        self.begun = true;
        let names = self.names.clone();
        blocking(move || layer_file::write_seal(&names.active, &names.marker(false))).await
    }

    /// Writes down that the VM is about to be stopped by us.
    pub(super) async fn note_standstill(&self) -> Result<(), Failure> {
        let names = self.names.clone();
        blocking(move || layer_file::write_seal(&names.active, &names.marker(true))).await
    }

    /// Whether the mark is still there, on the file under whichever name it has now.
    pub(super) fn is_open(&self) -> bool {
        let Names {
            active,
            opened_as,
            sealed,
            ..
        } = &self.names;
        [sealed, active, opened_as]
            .iter()
            .any(|path| matches!(layer_file::read_seal(path), Ok(Some(_))))
    }

    /// The mark has done its duty.
    pub(super) async fn clear_mark(&self) -> Result<(), Failure> {
        let sealed = self.names.sealed.clone();
        blocking(move || layer_file::clear_seal(&sealed)).await
    }

    /// Writes the point's record, with its instant, on the file that is about to be sealed.
    pub(super) async fn record(
        &mut self,
        time: &str,
        group: Option<GroupRecord>,
    ) -> Result<(), Failure> {
        time.clone_into(&mut self.record.time);
        self.record.group = group;
        let (active, record) = (self.names.active.clone(), self.record.clone());
        blocking(move || layer_file::write_point(&active, &record)).await
    }

    /// The name under which QEMU has the file open whose instant it is.
    pub(super) fn open_file(&self) -> &Path {
        &self.names.opened_as
    }

    /// Completes the record with what is known since the instant. Without it the point counts as
    /// one after a power cut, which is no reason to fail.
    pub(super) async fn tell(&self, time: &str, quiesced: &Quiesced) {
        if *quiesced == Quiesced::default() {
            return;
        }
        let (sealed, mut record) = (self.names.sealed.clone(), self.record.clone());
        time.clone_into(&mut record.time);
        quiesced.tell(&mut record);
        let written = blocking(move || layer_file::write_point(&sealed, &record)).await;
        if let Err(failure) = written {
            tracing::warn!(%failure, "a point's record is not complete");
        }
    }

    /// H: an empty overlay on S, with D's size, owner, mode and labels, open in QEMU.
    pub(super) async fn make_overlay(&mut self, bridge: &Bridge) -> Result<(), Failure> {
        let names = self.names.clone();
        blocking(move || {
            layer_file::create_like(&names.overlay, &names.active)?;
            layer_file::link_new(&names.active, &names.sealed)
        })
        .await?;
        let below = Below {
            path: &self.names.sealed,
            format: "qcow2",
            virtual_size: self.disk.active.virtual_size,
        };
        let overlay = &self.names.overlay;
        self.overlay = Some(overlay::format(bridge, overlay, below, &self.carried).await?);
        Ok(())
    }

    /// D becomes a name of the overlay.
    pub(super) async fn name_overlay(&self) -> Result<(), Failure> {
        let names = self.names.clone();
        blocking(move || layer_file::replace(&names.overlay, &names.active)).await
    }

    /// After the transaction: the sealed file gets a fresh node under its own name.
    pub(super) async fn rearrange(
        &self,
        bridge: &Bridge,
        graph: &BlockGraph,
    ) -> Result<(), Failure> {
        let overlay = self.overlay.as_ref().ok_or_else(|| {
            Failure::new(Errno::EIO, "the overlay was not made before the instant")
                .next("keep the log and report it: this is a bug")
        })?;
        let below = graph.node(&self.root).and_then(|node| node.backing.clone());
        let sealed =
            nodes::add_sealed(bridge, &self.names.sealed, "qcow2", below, &self.carried).await?;
        nodes::set_backing(
            bridge,
            graph,
            &overlay.format,
            Some(sealed),
            Role::Active,
            &self.carried,
        )
        .await?;
        nodes::drop_layer(bridge, graph, &self.root).await
    }

    /// After the nodes: D names the overlay, and the name that QEMU knew before goes.
    pub(super) async fn finish_names(
        &self,
        rearranged: Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.first() {
            self.name_overlay().await?;
        } else if rearranged.is_ok() {
            // a node that QEMU still has under the old alias keeps its name (I1)
            let opened_as = self.names.opened_as.clone();
            blocking(move || settle::remove_name(&opened_as)).await?;
        }
        rearranged
    }

    /// Whether D is not the sealed file any more.
    pub(super) async fn is_named(&self) -> Result<bool, Failure> {
        let names = self.names.clone();
        blocking(move || Ok(sys::file_id(&names.active).is_ok_and(|file| file != names.file))).await
    }

    /// Takes back what was done before the transaction, as far as it was done.
    pub(super) async fn undo(&mut self, bridge: &Bridge) {
        if !self.begun {
            return;
        }
        if let Some(overlay) = self.overlay.take() {
            overlay.discard(bridge).await;
        }
        let names = self.names.clone();
        let undone = blocking(move || {
            names.undo();
            Ok(())
        });
        if let Err(failure) = undone.await {
            tracing::error!(%failure, "a seal could not be taken back");
        }
    }
}

impl Names {
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

    fn undo(&self) {
        settle::undo_seal(&self.active, &self.sealed, Some(&self.overlay), self.file);
        for cleared in [
            layer_file::clear_point(&self.active),
            layer_file::clear_seal(&self.active),
        ] {
            if let Err(failure) = cleared {
                tracing::warn!(path = %self.active.display(), %failure, "a mark stays behind");
            }
        }
    }
}
