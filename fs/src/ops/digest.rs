//! Digests of backups: each that is complete and has none is read whole, by a thread that gives way to
//! everybody, one after the other. Whoever is about to change a backup's files stops it first
//! ([`Digests::stop`]) while he holds the disk; what was read is then forgotten, and read again later.

use super::engine::Engine;
use crate::backups::{self, Place};
use crate::digest::{Pieces, measure};
use crate::errno::{Errno, Failure};
use crate::model::{Backup, Manifest};
use crate::view::{LayerCache, LayerSpec};
use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How soon it looks again at what could not be read, or written down, just now.
const RETRY: Duration = Duration::from_secs(2);
/// The same, on the thread that has a digest and may not write it down yet.
const CLAIM_PAUSE: Duration = Duration::from_millis(200);
/// Bytes after which the kernel is told that what was read need not stay in memory.
const FORGET_EVERY: u64 = 64 << 20;

/// What is read now.
#[derive(Default)]
pub(super) struct Digests {
    at_work: RefCell<Option<AtWork>>,
    /// Backups that cannot be read, or whose manifest cannot be written: told once.
    given_up: RefCell<HashSet<String>>,
}

struct AtWork {
    disk: String,
    place: Place,
    stop: Arc<AtomicBool>,
    ended: watch::Receiver<bool>,
}

impl Digests {
    /// Nothing of this disk is read any more when it returns, nor will be while the caller holds the disk.
    pub(super) async fn stop(&self, disk: &str) {
        self.stop_where(|at_work| at_work.disk == disk).await;
    }

    /// Nothing of a directory is read any more, nor written down.
    pub(super) async fn stop_in(&self, place: &Place) {
        self.stop_where(|at_work| at_work.place == *place).await;
    }

    /// Nothing is read any more.
    pub(super) async fn stop_all(&self) {
        self.stop_where(|_| true).await;
    }

    async fn stop_where(&self, which: impl Fn(&AtWork) -> bool) {
        let ended = match &*self.at_work.borrow() {
            Some(at_work) if which(at_work) => {
                at_work.stop.store(true, Ordering::Relaxed);
                Some(at_work.ended.clone())
            }
            Some(_) | None => None,
        };
        if let Some(mut ended) = ended {
            // a thread that is gone has ended, too
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }
}

/// One backup that is to be read.
struct Wanted {
    disk: String,
    place: Place,
    backup: Backup,
}

/// Reads what has no digest yet, as long as the mount lives.
pub(super) async fn keep(engine: Rc<Engine>) {
    if engine.config.verbs.read_only {
        return;
    }
    let mut changes = engine.work_changes();
    loop {
        let pending = match next(&engine) {
            Next::Read(wanted) => {
                one(&engine, *wanted).await;
                continue;
            }
            Next::Later => true,
            Next::Nothing => false,
        };
        let changed = changes.changed();
        let ended = match pending {
            true => matches!(tokio::time::timeout(RETRY, changed).await, Ok(Err(_))),
            false => changed.await.is_err(),
        };
        if ended {
            return;
        }
    }
}

enum Next {
    Read(Box<Wanted>),
    /// There is something, on a disk that somebody changes.
    Later,
    Nothing,
}

fn next(engine: &Engine) -> Next {
    let model = engine.current();
    let given_up = engine.digests.given_up.borrow();
    let mut found = Next::Nothing;
    for disk in &model.disks {
        let to_read = disk.backups.iter().find(|backup| {
            let Manifest { digest, id, .. } = &backup.manifest;
            backup.is_complete() && digest.is_none() && !given_up.contains(id)
        });
        let Some(backup) = to_read else {
            continue;
        };
        if engine.is_held(&disk.name) || engine.is_merging(&disk.name) {
            found = Next::Later;
            continue;
        }
        let Some(place) = engine.place(&model.vm.name, &disk.name) else {
            continue;
        };
        return Next::Read(Box::new(Wanted {
            disk: disk.name.clone(),
            place,
            backup: backup.clone(),
        }));
    }
    found
}

async fn one(engine: &Engine, wanted: Wanted) {
    let (disk, manifest) = (wanted.disk.clone(), wanted.backup.manifest.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let (has_ended, ended) = watch::channel(false);
    *engine.digests.at_work.borrow_mut() = Some(AtWork {
        disk: disk.clone(),
        place: wanted.place.clone(),
        stop: Arc::clone(&stop),
        ended,
    });
    let (told, outcome) = oneshot::channel();
    let cache = engine.cache.clone();
    let thread = std::thread::Builder::new().name("digest".into());
    let spawned = thread.spawn(move || {
        crate::sys::give_way();
        let outcome = read(&cache, &wanted, &stop);
        // who waits for the end must find nothing open
        let _ = has_ended.send(true);
        let _ = told.send(outcome);
    });
    let outcome = match spawned {
        Ok(_) => outcome
            .await
            .unwrap_or_else(|_| Err(Failure::new(Errno::EIO, "the reading thread is gone"))),
        Err(error) => Err(Failure::io("start a thread", &error)),
    };
    *engine.digests.at_work.borrow_mut() = None;
    match outcome {
        Ok(()) => {
            engine.backups_changed(&disk);
            if let Err(failure) = engine.refresh(&[]).await {
                tracing::debug!(%failure, "refresh after a digest");
            }
        }
        Err(failure) if matches!(failure.errno, Errno::EINTR | Errno::EBUSY | Errno::ESTALE) => {
            tracing::debug!(%failure, "a digest is made later");
            tokio::time::sleep(RETRY).await;
        }
        Err(failure) => {
            let Manifest { name, id, .. } = manifest;
            engine.log.note(&format!(
                "disk '{disk}': the backup '{name}' has no digest: {failure}"
            ));
            engine.digests.given_up.borrow_mut().insert(id);
        }
    }
}

/// On its own thread: reads a backup whole and writes its digest down.
fn read(cache: &LayerCache, wanted: &Wanted, stop: &AtomicBool) -> Result<(), Failure> {
    let go_on = || match stop.load(Ordering::Relaxed) {
        true => Err(Failure::new(Errno::EINTR, "stopped")),
        false => Ok(()),
    };
    let Wanted { place, backup, .. } = wanted;
    let manifest = &backup.manifest;
    let specs: Vec<LayerSpec> = backup.layers.iter().map(LayerSpec::from).collect();
    let opened = cache.open(&specs, None)?;
    let known = backups::known_tree(place, manifest);
    let differs = |stretch| opened.top_holds(stretch);
    let known = known.as_ref().map(|tree| Pieces {
        tree,
        differs: &differs,
    });
    let mut forgotten = 0;
    let (digest, tree) = measure(&*opened, known.as_ref(), 1, &mut |done| {
        if done - forgotten >= FORGET_EVERY {
            forgotten = done;
            opened.forget_pages();
        }
        go_on()
    })?;
    opened.forget_pages();
    if !opened.unchanged() {
        return Err(Failure::new(
            Errno::EBUSY,
            "a file was written to while it was read",
        ));
    }
    drop(opened);
    loop {
        go_on()?;
        match place.claim() {
            Ok(_claim) => return backups::record(place, manifest, &digest, tree.as_ref()),
            Err(failure) if failure.errno == Errno::EBUSY => std::thread::sleep(CLAIM_PAUSE),
            Err(failure) => return Err(failure),
        }
    }
}
