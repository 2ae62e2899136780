//! A snapshot that was not finished: taken back where QEMU still writes the file that was to be
//! sealed, finished where it writes the overlay.

use super::{Whose, idle_nodes, lost_active};
use crate::errno::Failure;
use crate::layer_file::{self, SealMarker};
use crate::model::{Disk, Format};
use crate::ops::engine::Engine;
use crate::ops::nodes::{self, Role};
use crate::ops::settle;
use crate::sys;
use qmpbridge::Bridge;

pub(super) async fn unfinished(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
) -> Result<(), Failure> {
    let Some(root_file) = disk.active.file else {
        return Ok(());
    };
    let active = &disk.active_path;
    if let Some(marker) = layer_file::read_seal(&disk.active.path)? {
        // the snapshot did not happen: QEMU still writes the file that was to be sealed
        engine.log.note(&format!(
            "disk '{}': taking back an unfinished snapshot",
            disk.name
        ));
        // a storage daemon may have written there before it died and came back without it
        let written = settle::holds_data(&marker.overlay).unwrap_or(false);
        if written {
            engine.log.note(&format!(
                "disk '{}': the storage daemon ended in the middle of a snapshot: what its clients wrote in its last milliseconds is in {} and LOST to the disk (next: check its filesystems before you trust it)",
                disk.name,
                marker.overlay.display()
            ));
        }
        let overlay = (!written).then_some(marker.overlay.as_path());
        settle::undo_seal(active, &marker.sealed, overlay, root_file);
        if sys::file_id(active).ok() != Some(root_file) {
            return Err(lost_active(disk));
        }
        layer_file::clear_point(active)?;
        resume(engine, disk, &marker).await?;
        return layer_file::clear_seal(active);
    }
    let Some((below, marker)) = sealed_with_mark(disk)? else {
        return Ok(());
    };
    engine.log.note(&format!(
        "disk '{}': finishing the snapshot '{}'",
        disk.name,
        marker.sealed.display()
    ));
    let rearranged = rearrange(engine, bridge, disk, below, &marker).await;
    // also where QEMU refuses that: while D is the sealed file the guest stands still
    if sys::file_id(active).ok() != Some(root_file) {
        layer_file::replace(&disk.active.path, active)
            .map_err(|failure| failure.next(settle::STANDS_STILL))?;
    }
    resume(engine, disk, &marker).await?;
    if rearranged.is_err() && marker.resume {
        // who stops the guest from now on means it
        let done = SealMarker {
            resume: false,
            ..marker.clone()
        };
        layer_file::write_seal(&marker.sealed, &done)?;
    }
    rearranged?;
    layer_file::clear_seal(&marker.sealed)
}

/// The sealed layer gets a fresh node under its own name, if it has none yet.
async fn rearrange(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
    below: usize,
    marker: &SealMarker,
) -> Result<(), Failure> {
    let root = disk.root.clone().ok_or_else(|| lost_active(disk))?;
    let sealed_node = disk.layers[below].node.clone();
    if disk.layers[below].path != marker.sealed && root.is_ours() {
        let carried = engine.carried(disk);
        let under = below
            .checked_sub(1)
            .and_then(|under| disk.layers[under].node.clone());
        let graph = bridge.graph().await?;
        let fresh = nodes::add_sealed(bridge, &marker.sealed, "qcow2", under, &carried).await?;
        nodes::set_backing(bridge, &graph, &root, Some(fresh), Role::Active, &carried).await?;
        if let Some(old) = sealed_node {
            nodes::drop_layer(bridge, &graph, &old).await?;
        }
    }
    // the VM's own node of the sealed layer, of which a part may be left, knows the file as D
    idle_nodes(engine, bridge, disk, Whose::Anybodys).await
}

/// The layer below the active one, if its seal is not finished.
fn sealed_with_mark(disk: &Disk) -> Result<Option<(usize, SealMarker)>, Failure> {
    let Some(below) = disk.layers.len().checked_sub(1) else {
        return Ok(None);
    };
    let here = &disk.layers[below];
    if here.path != disk.active_path {
        let marker = match here.file {
            Some(_) => layer_file::read_seal(&here.path)?,
            None => None,
        };
        return Ok(marker.map(|marker| (below, marker)));
    }
    // D was given to the overlay, and QEMU still knows the sealed file by it: the mark is on another name
    for path in layer_file::siblings(&disk.active_path)? {
        let of_this_disk = |marker: &SealMarker| {
            let active = layer_file::active_of_alias(&marker.overlay);
            marker.sealed == path && active.as_ref() == Some(&disk.active_path)
        };
        let marker = layer_file::said_by_sibling(layer_file::read_seal(&path))?;
        if let Some(marker) = marker.filter(of_this_disk) {
            return Ok(Some((below, marker)));
        }
    }
    Ok(None)
}

/// Lets a guest go on that a snapshot had stopped: when the last disk of that snapshot is settled,
/// for the names of the others are not right before.
async fn resume(engine: &Engine, disk: &Disk, marker: &SealMarker) -> Result<(), Failure> {
    if !marker.resume {
        return Ok(());
    }
    let _alone = engine.alone().await?;
    if !engine.paused().await? {
        return Ok(());
    }
    for other in engine.observe().await? {
        if other.name != disk.name && waits_for_resume(&other) {
            return Ok(());
        }
    }
    engine
        .log
        .note("the VM was left stopped in the middle of a snapshot; it goes on");
    engine.resume_guest().await
}

/// Whether the guest stands still for this disk, too. One that was never to be sealed has no mark, and one that cannot be read
/// has none that we wrote.
fn waits_for_resume(disk: &Disk) -> bool {
    if disk.active.file.is_none() || disk.active.format != Format::Qcow2 {
        return false;
    }
    let marker = match layer_file::read_seal(&disk.active.path) {
        Ok(None) => sealed_with_mark(disk).map(|sealed| sealed.map(|(_, marker)| marker)),
        told => told,
    };
    matches!(marker, Ok(Some(marker)) if marker.resume)
}
