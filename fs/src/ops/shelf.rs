//! Mounts of a directory of backups: no QEMU and no VM behind them. What lies there is listed again when its
//! directories have changed; each disk is called `VM/DISK` and has nothing but backups.

use super::Source;
use super::blocking::blocking;
use super::engine::{Engine, patiently};
use crate::backups::{self, Listing, Place, Stamp};
use crate::errno::{Errno, Failure};
use crate::layer_file::Claim;
use crate::model::{ConnectionState, Contents, Disk, Format, Layer, Model, StatePart, Tuning, Vm};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a look is waited for: then what was seen last is shown.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);

/// The directory, if the mount is of one.
pub(super) fn root(engine: &Engine) -> Option<&PathBuf> {
    match &engine.config.source {
        Source::Backups(root) => Some(root),
        Source::Qmp(_) | Source::Images { .. } => None,
    }
}

/// Keeps other mounts from a disk's backups. In a mount of a directory who holds the disk has it already.
pub(super) async fn claim(engine: &Engine, place: &Place) -> Result<Option<Claim>, Failure> {
    if root(engine).is_some() {
        return Ok(None);
    }
    match claim_beside_digests(engine, place).await {
        // nothing was ever put there
        Err(failure) if failure.errno == Errno::ENOENT => Ok(None),
        claimed => claimed.map(Some),
    }
}

/// Claims a directory of backups. It may be a digest of ours that has it, to be written down: on slow storage that takes a
/// while.
pub(super) async fn claim_beside_digests(engine: &Engine, place: &Place) -> Result<Claim, Failure> {
    match patiently(|| place.claim()).await {
        Err(failure) if failure.errno == Errno::EBUSY => {
            engine.digests.stop_in(place).await;
            patiently(|| place.claim()).await
        }
        claimed => claimed,
    }
}

/// Refused where the VM has no name, and its backups would be among those of another that has none.
pub(super) async fn refuse_anothers(engine: &Engine) -> Result<(), Failure> {
    match engine.unnamed().await? {
        Some(unnamed) => blocking(move || unnamed.refuse_anothers()).await,
        None => Ok(()),
    }
}

/// Looks at the directory and publishes what lies there.
pub(super) async fn refresh(engine: &Engine, root: &Path) -> Result<(), Failure> {
    let (root, known) = (root.to_owned(), engine.stamps());
    let look = tokio::task::spawn_blocking(move || look(&root, known));
    let seen = match tokio::time::timeout(LOOK_DEADLINE, look).await {
        Ok(Ok(seen)) => seen?,
        Ok(Err(_)) | Err(_) => {
            return Err(Failure::new(
                Errno::ETIMEDOUT,
                "the directory of the backups does not answer",
            )
            .next("see what it lies on"));
        }
    };
    let places: Vec<(String, Place)> = seen
        .iter()
        .map(|(name, place, _)| (name.clone(), place.clone()))
        .collect();
    engine.set_listings(seen.into_iter().map(|(name, _, changed)| (name, changed)));
    let mut disks: Vec<Disk> = places
        .iter()
        .map(|(name, place)| disk(name, place, engine.listings().get(name)))
        .collect();
    disks.iter_mut().for_each(|disk| engine.dress(disk));
    let vm = Vm {
        name: engine.config.source_text.clone(),
        switched_off: true,
        source: engine.config.source_text.clone(),
        connection: ConnectionState::Offline,
        contents: Contents::Backups,
        ..Vm::default()
    };
    engine.publish(Model { vm, disks });
    Ok(())
}

/// The disks that have backups, and the backups of those whose directories have changed.
fn look(
    root: &Path,
    known: HashMap<String, Option<Stamp>>,
) -> Result<Vec<(String, Place, Option<Listing>)>, Failure> {
    let shelf = backups::shelf(root)?;
    let seen = shelf.into_iter().map(|(name, place)| {
        let stamp = backups::stamp(&place);
        let changed = (known.get(&name) != Some(&stamp)).then(|| backups::list(&place));
        (name, place, changed)
    });
    Ok(seen.collect())
}

/// A disk of which there is nothing but backups: no layer of it can be seen.
fn disk(name: &str, place: &Place, listing: Option<&Listing>) -> Disk {
    let newest = listing.and_then(|it| it.backups.last());
    let seat = place.seat();
    Disk {
        name: name.to_owned(),
        root: None,
        active_path: seat.clone(),
        active: Layer {
            node: None,
            path: seat,
            file: None,
            format: Format::Qcow2,
            virtual_size: newest.map_or(0, |backup| backup.manifest.virtual_size),
            allocated_size: 0,
            modified: None,
            record: None,
            foreign_name: None,
            leaving: false,
        },
        layers: Vec::new(),
        branches: Vec::new(),
        internals: Vec::new(),
        lives: Vec::new(),
        backups: Vec::new(),
        bitmaps: Vec::new(),
        jobs: Vec::new(),
        no_snapshots: Some("these are backups, without their VM".into()),
        tuning: Tuning::default(),
        no_overlay: None,
        assumed: Vec::new(),
        state_part: StatePart::default(),
    }
}
