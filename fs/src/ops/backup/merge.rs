//! `rmdir` of a backup on which others stand: exactly that instant goes. A storage daemon of ours streams its
//! bytes up, or commits those above down, whichever copies less; what is read meanwhile is read through maps
//! made before. A journal says what is under way, and whoever comes after a kill brings it to its end.
//! Removals that come meanwhile wait for their turn. Which files and manifests change then is `backups`' business.

mod choose;
mod work;

pub(super) use choose::{Look, choose};

use super::remove::{self, gone};
use crate::backups::{self, Journal, MergeVerb, Place, Stage};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::leases::Closed;
use crate::model::{Backup, Format, Job};
use crate::ops::blocking::blocking;
use crate::ops::embedded::StorageDaemon;
use crate::ops::engine::{DiskGuard, Engine};
use crate::ops::{Answer, check, merge as merges, shelf};
use crate::tree::disk_path;
use crate::view::LayerSpec;
use qmpbridge::JobId;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;
use work::Work;

/// What is to be done to one backup.
pub(super) struct Removal {
    pub(super) id: String,
    pub(super) job: JobId,
    /// It was begun by somebody who is gone.
    pub(super) resumed: Option<Journal>,
}

impl Removal {
    pub(super) fn new(id: &str) -> Result<Self, Failure> {
        let job = JobId::new(format!("qmpfs-merge-{}", layer_file::random_hex()))?;
        Ok(Removal {
            id: id.to_owned(),
            job,
            resumed: None,
        })
    }
}

/// Removes one, and whatever is queued behind it. `answer` is called once it is accepted, or refused.
pub(super) async fn run(
    engine: Rc<Engine>,
    guard: DiskGuard,
    first: Removal,
    answer: Option<Answer<()>>,
) {
    let (mut next, mut answer) = (Some(first), answer);
    engine.begin_removals(&guard);
    while let Some(removal) = next {
        let (id, job) = (removal.id.clone(), removal.job.clone());
        let started = Instant::now();
        let mut told = answer.take();
        let path = listed_at(&engine, guard.name(), &id);
        let outcome = one(&engine, &guard, removal, &mut told).await;
        engine.show_backups_anew(guard.name(), &id);
        let failed = outcome.err();
        if let (None, Some(path)) = (&told, path) {
            let outcome = failed.clone().map_or(Ok(()), Err);
            engine
                .log
                .record("merge", &path, 0, &outcome, started.elapsed());
        }
        // a refusal is told as the answer of the rmdir, and leaves no job
        let shown = failed.clone().filter(|_| told.is_none());
        engine.thaw(&guard, job.as_str(), shown).await;
        if let Some(told) = told {
            told(failed.map_or(Ok(()), Err));
        }
        next = engine.next_backup(guard.name()).map(|(id, job)| Removal {
            id,
            job,
            resumed: None,
        });
    }
    engine.end_removals(&guard);
    engine.rest(&guard);
    if engine.bridge().is_ok() {
        merges::go_on(&engine, &guard).await;
    }
}

/// Where a backup is listed, for the log.
fn listed_at(engine: &Engine, disk: &str, id: &str) -> Option<String> {
    let model = engine.current();
    let listings = engine.listings();
    let known = &listings.get(disk)?.backups;
    let shown = model.disk(disk).map_or(&[][..], |disk| &disk.backups);
    let mut all = shown.iter().chain(known);
    let found = all.find(|it| it.manifest.id == id)?;
    let kind = found.manifest.kind.name();
    let name = &found.manifest.name;
    Some(format!("{}/backups/{kind}/{name}", disk_path(disk)))
}

/// One that waits, behind the one that is at work.
pub(super) fn queue(engine: &Engine, disk: &str, id: &str) -> Result<(), Failure> {
    let model = engine.current();
    let backup = model.disk(disk).map(|disk| remove::find(disk, id));
    let backup = backup.ok_or_else(gone)??;
    remove::refuse_if_read(engine, backup)?;
    let removal = Removal::new(id)?;
    engine.queue_backup(disk, id, removal.job, &backup.manifest.name);
    Ok(())
}

async fn one(
    engine: &Rc<Engine>,
    guard: &DiskGuard,
    removal: Removal,
    answer: &mut Option<Answer<()>>,
) -> Result<(), Failure> {
    let place = engine.place_of(guard.name()).await?;
    let _claim = shelf::claim(engine, &place).await?;
    let looked_at = place.clone();
    let (journals, _) = blocking(move || Journal::all(&looked_at)).await?;
    refuse_unfinished(&journals)?;
    engine.digests.stop(guard.name()).await;
    let left = journals.into_iter().filter(|it| it.stage == Stage::Merging);
    for journal in left {
        // what was cut short comes first: the chain is not what manifests say until then
        let is_it = journal.manifest.id == removal.id;
        let begun = Begun::Before;
        merge(engine, guard, &place, &removal.job, journal, begun, answer).await?;
        if is_it {
            return Ok(());
        }
    }
    if removal.resumed.is_some() {
        return Ok(());
    }
    let looked_at = place.clone();
    let listing = blocking(move || Ok(backups::list(&looked_at))).await?;
    let backup = listing
        .backups
        .iter()
        .find(|it| it.manifest.id == removal.id);
    let backup = backup.ok_or_else(gone)?;
    // nobody opens it between this look and its end
    let closed = match backup.layers.last().and_then(|layer| layer.file) {
        None => None,
        Some(file) => {
            let point = format!("'{}'", backup.manifest.name);
            Some(check::close(engine, check::state_of(file), &point)?)
        }
    };
    let above = remove::standing_on(&listing.backups, &removal.id);
    let (looked_at, name) = (place.clone(), backup.manifest.name.clone());
    let expected: Vec<PathBuf> = above
        .iter()
        .map(|it| place.file(&it.manifest.name))
        .collect();
    let is_leaf = above.is_empty();
    blocking(move || remove::refuse_if_needed(&looked_at, &name, &expected, is_leaf)).await?;
    if is_leaf {
        let journal = Journal::new(removal.job.as_str(), backup.manifest.clone());
        blocking(move || journal.remove_backup(&place)).await?;
    } else {
        let (looked_at, gone) = (
            backup.clone(),
            above.iter().copied().cloned().collect::<Vec<Backup>>(),
        );
        let plan = blocking(move || choose(&looked_at, &gone, Look::AtFiles)).await?;
        let journal = Journal::of_merge(removal.job.as_str(), backup.manifest.clone(), plan);
        let begun = Begun::Now(closed);
        merge(engine, guard, &place, &removal.job, journal, begun, answer).await?;
    }
    remove::drop_bitmap_of(engine, guard.name(), &backup.manifest).await
}

/// A backup that is being made may stand on any of these.
fn refuse_unfinished(journals: &[Journal]) -> Result<(), Failure> {
    let making = |it: &&Journal| match it.stage {
        Stage::Running | Stage::Below | Stage::Copied => true,
        Stage::Removing | Stage::Merging => false,
    };
    match journals.iter().find(making) {
        None => Ok(()),
        Some(journal) => Err(Failure::new(
            Errno::EBUSY,
            format!(
                "the backup '{}' is being made, or was cut short",
                journal.manifest.name
            ),
        )
        .next(
            "wait for it; one that was cut short is settled by a mount of its VM with --backup-dir",
        )),
    }
}

/// Who began a merge.
enum Begun {
    /// Somebody who is gone, or failed.
    Before,
    /// This removal, which keeps readers away.
    Now(Option<Closed>),
}

/// Merges: from the journal to the last name. The journal may have been written by somebody else.
async fn merge(
    engine: &Rc<Engine>,
    guard: &DiskGuard,
    place: &Place,
    job: &JobId,
    journal: Journal,
    begun: Begun,
    answer: &mut Option<Answer<()>>,
) -> Result<(), Failure> {
    let Some(plan) = journal.merge.clone() else {
        return Err(gone());
    };
    let (id, name) = (journal.manifest.id.clone(), journal.manifest.name.clone());
    let (written, looked_at) = (journal.clone(), place.clone());
    let listing = blocking(move || {
        written.write(&looked_at)?;
        Ok(backups::list(&looked_at))
    })
    .await?;
    let specs: Vec<LayerSpec> = listing
        .backups
        .iter()
        .flat_map(|backup| backup.layers.iter().map(LayerSpec::from))
        .collect();
    let cache = engine.cache.clone();
    let pin = blocking(move || cache.pin(&specs, None)).await?;
    engine.keep_backups(guard.name(), listing.backups.clone(), &id, pin);
    let verb = match plan.verb {
        MergeVerb::Stream => "stream",
        MergeVerb::Commit => "commit",
    };
    engine.announce(guard, Job::new(job, verb, &name, "created"));
    engine.publish_jobs(guard.name());
    let outcome = copy(
        engine,
        guard,
        place,
        job,
        &journal,
        &listing.backups,
        answer,
    )
    .await;
    let place = place.clone();
    let (untouched, closed) = match begun {
        Begun::Before => (false, None),
        // as long as nobody was told that it began, no job of this removal has written anything
        Begun::Now(closed) => (answer.is_some(), closed),
    };
    if outcome.is_ok() && plan.verb == MergeVerb::Commit {
        // what its file holds now is the other backup, which may be read
        drop(closed);
        let file_of = |id: &str| {
            let backup = listing.backups.iter().find(|it| it.manifest.id == id)?;
            backup.layers.last()?.file
        };
        for upper in &plan.into {
            if let (Some(from), Some(to)) = (file_of(&upper.id), file_of(&id)) {
                engine.leases.became(guard.name(), from, to);
            }
        }
    }
    match (outcome, plan.verb) {
        (Ok(()), _) => blocking(move || journal.conclude(&place)).await,
        // its file holds neither its own instant nor the other's: the next attempt brings it to its end
        (Err(failure), MergeVerb::Commit) if !untouched => Err(failure.next(
            "rmdir of its job in jobs/ tries again, as does the next mount; the other backups are as they were",
        )),
        (Err(failure), _) => {
            blocking(move || journal.take_back(&place)).await?;
            Err(failure)
        }
    }
}

/// Copies what is not copied yet, in a storage daemon that is gone afterwards.
async fn copy(
    engine: &Rc<Engine>,
    guard: &DiskGuard,
    place: &Place,
    job: &JobId,
    journal: &Journal,
    listed: &[Backup],
    answer: &mut Option<Answer<()>>,
) -> Result<(), Failure> {
    let Some(plan) = &journal.merge else {
        return Ok(());
    };
    if plan.copied {
        return Ok(());
    }
    for upper in &plan.into {
        let (looked_at, above, manifest) = (place.clone(), upper.clone(), journal.manifest.clone());
        let done = blocking(move || backups::is_merged(&looked_at, &above, &manifest)).await?;
        let backup = listed.iter().find(|it| it.manifest.id == upper.id);
        let layers = backup.map_or(&[][..], |it| &it.layers);
        let file = place.file(&journal.manifest.name);
        let Some(at) = layers.iter().position(|layer| layer.path == file) else {
            match done {
                true => continue,
                false => return Err(gone()),
            }
        };
        let chain: Vec<(PathBuf, Format)> = layers
            .iter()
            .map(|layer| (layer.path.clone(), layer.format.clone()))
            .collect();
        let daemon = StorageDaemon::bare().await?;
        let bridge = daemon.bridge().clone();
        engine.set_helper(guard.name(), bridge.clone());
        let work = Work {
            engine,
            disk: guard.name(),
            bridge: &bridge,
            job,
        };
        let copied = work.up_or_down(plan.verb, &chain, at, answer).await;
        // it flushes and closes the files
        daemon.stop().await;
        copied?;
    }
    Ok(())
}
