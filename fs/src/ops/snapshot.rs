//! `mkdir .../snapshots/N`: seals the active layer of each of some disks at one instant, under the
//! point's name, and goes on in fresh overlays, while the paths the VM boots from keep their names
//! (docs/SEMANTICS.md, "The active path never changes"). Three stages over all disks together:
//! prepare | instant | finish; one disk is the case of one, and one freeze of the guest is around
//! the instant of all. Every step leaves bootable disks; a failure before the end of the instant
//! undoes every disk, one after it is finished.

mod seal;

use super::engine::{DiskGuard, Engine, Standstill};
use super::migration;
use super::quiesce::Quiescing;
use super::settle;
use crate::errno::{Errno, Failure};
use crate::intent::none_can;
use crate::layer_file;
use crate::model::{Disk, GroupRecord};
use qmpbridge::Bridge;
use seal::Seal;
use std::collections::BTreeMap;

/// What the points belong to.
pub(super) enum Of {
    /// Their disk alone.
    Disk,
    /// A snapshot of all disks, with those that cannot take part and why.
    AllDisks(BTreeMap<String, String>),
}

/// Takes an external snapshot of one disk. Returns when the point exists.
pub(super) async fn take_external(
    engine: &Engine,
    guard: &DiskGuard,
    name: &str,
) -> Result<(), Failure> {
    let disk = engine.observe_disk(guard).await?;
    take_all(engine, vec![disk], name, Of::Disk).await
}

/// Seals disks that are held. Returns when all points exist, or none does.
pub(super) async fn take_all(
    engine: &Engine,
    disks: Vec<Disk>,
    name: &str,
    of: Of,
) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    migration::refuse(bridge).await?;
    let mut seals = Vec::new();
    for disk in disks {
        let disk_name = disk.name.clone();
        let seal = Seal::check(engine, disk, name);
        seals.push(seal.map_err(|failure| failure.of_disk(&disk_name))?);
    }
    let what = match (&of, seals.first()) {
        (Of::Disk, Some(seal)) => format!("disks/{}/snapshots/{name}", seal.disk()),
        (Of::Disk | Of::AllDisks(_), _) => format!("snapshots/{name}"),
    };
    let quiescing = Quiescing::begin(engine).await?;
    let outcome = take(engine, bridge, &mut seals, of, quiescing, &what).await;
    if outcome.is_err() {
        // whether QEMU did it is unknown, or it did and the names are not right yet: recover asks
        // its graph, or the files when it is gone
        for seal in seals.iter().filter(|seal| seal.is_open()) {
            engine.settle_later(seal.disk());
        }
    }
    outcome
}

async fn take(
    engine: &Engine,
    bridge: &Bridge,
    seals: &mut Vec<Seal>,
    of: Of,
    mut quiescing: Quiescing,
    what: &str,
) -> Result<(), Failure> {
    if let Err(failure) = prepare(bridge, seals, of).await {
        return Err(undo(bridge, seals, failure).await);
    }
    match instant(engine, bridge, seals, &mut quiescing).await {
        Ok(passed) => finish(engine, bridge, seals, passed, quiescing, what).await,
        Err(failure) => {
            drop(quiescing);
            Err(undo(bridge, seals, failure).await)
        }
    }
}

/// All that can be done before: marks, overlays, nodes, records. The disks are as they were. One
/// that turns out not to be able to take part does not hinder the others.
async fn prepare(bridge: &Bridge, seals: &mut Vec<Seal>, mut of: Of) -> Result<(), Failure> {
    let mut index = 0;
    while let Some(seal) = seals.get_mut(index) {
        match (make(bridge, seal).await, &mut of) {
            (Ok(()), Of::Disk | Of::AllDisks(_)) => index += 1,
            (Err(failure), Of::AllDisks(missing)) if failure.errno == Errno::EOPNOTSUPP => {
                seal.undo(bridge).await;
                missing.insert(seal.disk().to_owned(), failure.message);
                seals.remove(index);
            }
            (Err(failure), Of::Disk | Of::AllDisks(_)) => {
                return Err(failure.of_disk(seal.disk()));
            }
        }
    }
    let group = match of {
        Of::Disk => None,
        Of::AllDisks(missing) if seals.is_empty() => return Err(none_can(&missing)),
        Of::AllDisks(missing) => Some(GroupRecord {
            id: layer_file::random_hex(),
            members: seals.iter().map(Seal::member).collect(),
            missing,
        }),
    };
    let (group, time) = (group.map(GroupRecord::fitted), crate::render::now());
    for seal in seals {
        let recorded = seal.record(&time, group.clone()).await;
        recorded.map_err(|failure| failure.of_disk(seal.disk()))?;
    }
    Ok(())
}

async fn make(bridge: &Bridge, seal: &mut Seal) -> Result<(), Failure> {
    seal.mark().await?;
    seal.make_overlay(bridge).await
}

/// An instant that has passed.
struct Passed {
    standstill: Standstill,
    time: String,
}

/// The instant itself, of all disks: one transaction. The guest stands still around it, and until
/// the names are right, where a disk is sealed for the first time since the VM's start: no write
/// may fall between the snapshot and the moment D names the overlay. On failure it runs again.
/// It is frozen last, but before it is stopped: what takes time here takes it from a guest at work.
async fn instant(
    engine: &Engine,
    bridge: &Bridge,
    seals: &[Seal],
    quiescing: &mut Quiescing,
) -> Result<Passed, Failure> {
    let files = || {
        seals
            .iter()
            .map(|seal| seal.open_file().to_owned())
            .collect()
    };
    for seal in seals.iter().filter(|seal| !seal.first()) {
        seal.name_overlay().await?;
    }
    let standstill = if seals.iter().any(Seal::first) {
        // first the note, then the deed: a daemon that dies in between leaves a VM to be resumed
        let note = async || {
            for seal in seals.iter().filter(|seal| seal.first()) {
                seal.note_standstill().await?;
            }
            quiescing.freeze(files()).await
        };
        engine.stand_still(note).await?
    } else {
        Standstill::not_needed()
    };
    // where nobody can be stopped
    quiescing.freeze(files()).await?;
    let time = crate::render::now();
    let sealed = async {
        // what is begun elsewhere meanwhile
        migration::refuse(bridge).await?;
        refuse_if_resized(bridge, seals).await?;
        seal_all(engine, bridge, seals).await.map_err(Failure::from)
    };
    match sealed.await {
        Ok(()) => Ok(Passed { standstill, time }),
        Err(failure) => {
            if failure.outcome_known()
                && let Err(stuck) = engine.go_on(standstill).await
            {
                engine.log.note(&format!(
                    "the VM stays stopped: {stuck} (next: tell it `cont`)"
                ));
                if !stuck.outcome_known() {
                    // with the marks still there it is taken back, and the VM resumed, later
                    return Err(stuck);
                }
            }
            Err(failure)
        }
    }
}

/// An overlay has the size that its disk had when it was looked at.
async fn refuse_if_resized(bridge: &Bridge, seals: &[Seal]) -> Result<(), Failure> {
    let graph = bridge.graph().await?;
    for seal in seals {
        let same = seal.refuse_if_resized(&graph);
        same.map_err(|failure| failure.of_disk(seal.disk()))?;
    }
    Ok(())
}

/// The transaction. A snapshot is not refused for a bitmap's sake: that would only make a later backup smaller.
async fn seal_all(
    engine: &Engine,
    bridge: &Bridge,
    seals: &[Seal],
) -> Result<(), qmpbridge::Error> {
    let actions: Vec<_> = seals.iter().filter_map(Seal::action).collect();
    let bitmaps: Vec<_> = seals.iter().flat_map(Seal::bitmaps).collect();
    if bitmaps.is_empty() {
        return bridge.transaction(actions).await;
    }
    let all = actions.iter().cloned().chain(bitmaps).collect();
    match bridge.transaction(all).await {
        Err(refused @ qmpbridge::Error::Refused { .. }) => {
            bridge.transaction(actions).await?;
            engine.log.note(&format!(
                "the dirty bitmaps of backups stay behind with the sealed layer ({refused}): the next incremental backup copies the whole disk"
            ));
            Ok(())
        }
        told => told,
    }
}

/// After the transaction there is no way back: what fails now is finished as far as it goes. The guest stands still until
/// D names what it writes.
async fn finish(
    engine: &Engine,
    bridge: &Bridge,
    seals: &[Seal],
    passed: Passed,
    mut quiescing: Quiescing,
    what: &str,
) -> Result<(), Failure> {
    let Passed { standstill, time } = passed;
    // an agent answers only where the guest runs
    let at_once = match standstill.is_still() {
        false => Some(quiescing.thaw(engine, what).await),
        true => None,
    };
    // one look for all: the guest may be standing still
    let graph = bridge.graph().await.map_err(Failure::from);
    let mut trouble: Option<Failure> = None;
    let mut done = Vec::new();
    for seal in seals {
        // a QEMU that does not answer is asked no more; the names are put right all the same
        let silent = trouble.clone().filter(|failure| !failure.outcome_known());
        let rearranged = match (&graph, silent) {
            (Ok(graph), None) => seal.rearrange(bridge, graph).await,
            (_, Some(failure)) => Err(failure),
            (Err(failure), None) => Err(failure.clone()),
        };
        match seal.finish_names(rearranged).await {
            Ok(()) => done.push(seal),
            Err(failure) => trouble = trouble.or(Some(failure)),
        }
    }
    if let Some(failure) = &trouble
        && standstill.is_still()
        && !are_named(seals).await?
    {
        // what it wrote from now on would be lost at the VM's next start; whoever settles this lets it go on, also where
        // the mark cannot be read just now
        for seal in seals {
            engine.settle_later(seal.disk());
        }
        return Err(failure.clone().next(settle::STANDS_STILL));
    }
    engine.go_on(standstill).await?;
    let quiesced = match at_once {
        Some(quiesced) => quiesced,
        None => quiescing.thaw(engine, what).await,
    };
    for seal in done {
        seal.tell(&time, &quiesced).await;
        if let Err(failure) = seal.clear_mark().await {
            trouble = trouble.or(Some(failure));
        }
    }
    trouble.map_or(Ok(()), Err)
}

/// Whether each D names what the guest writes.
async fn are_named(seals: &[Seal]) -> Result<bool, Failure> {
    for seal in seals {
        if !seal.is_named().await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes back what was done before the transaction, and tells why it was not done.
async fn undo(bridge: &Bridge, seals: &mut [Seal], failure: Failure) -> Failure {
    if failure.outcome_known() {
        for seal in seals.iter_mut().rev() {
            seal.undo(bridge).await;
        }
    }
    failure
}
