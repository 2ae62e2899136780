//! Who may change a disk: one holder at a time, here and among other mounts. While a merge is at
//! work nobody waits for the disk: a mkdir that waited for hours would freeze its directory.

use super::{DiskState, Engine};
use crate::backups;
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, Claim};
use crate::model::Disk;
use crate::ops::{recover, shelf};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedMutexGuard;

/// How long a verb waits for another verb on the same disk; a snapshot takes well under a second.
const DISK_DEADLINE: Duration = Duration::from_secs(10);
/// How long it waits for another mount: that one may run a merge, which takes hours.
const CLAIM_DEADLINE: Duration = Duration::from_secs(1);
/// Between two attempts.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

/// The right to change one disk.
pub(in crate::ops) struct DiskGuard {
    name: String,
    pub(super) state: Rc<DiskState>,
    _lock: OwnedMutexGuard<()>,
    _claim: Option<Rc<Claim>>,
}

impl DiskGuard {
    /// The disk's name.
    pub(in crate::ops) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for DiskGuard {
    fn drop(&mut self) {
        self.state.held.set(false);
    }
}

/// What came of asking for a disk.
pub(in crate::ops) enum Turn {
    /// It is ours.
    Now(DiskGuard),
    /// A merge is at work on it.
    AtWork,
}

impl Engine {
    /// Takes the right to change a disk, for a verb; not while a merge is at work on it.
    pub(in crate::ops) async fn hold(&self, disk: &str) -> Result<DiskGuard, Failure> {
        let guard = self.hold_to_settle(disk).await?;
        self.free_of_others(&BTreeSet::from([disk.to_owned()]))
            .await?;
        Ok(guard)
    }

    /// The same to settle what was left: another monitor's job is no reason to leave it open.
    pub(in crate::ops) async fn hold_to_settle(&self, disk: &str) -> Result<DiskGuard, Failure> {
        self.hold_until(disk, tokio::time::Instant::now() + DISK_DEADLINE)
            .await
    }

    /// Takes the right to change several disks. Always in the order of their names: two who want
    /// them all, or one and all, never wait for each other.
    pub(in crate::ops) async fn hold_all(
        &self,
        disks: &BTreeSet<String>,
    ) -> Result<Vec<DiskGuard>, Failure> {
        let guards = self.hold_all_to_settle(disks).await?;
        self.free_of_others(disks).await?;
        Ok(guards)
    }

    /// The same, whoever else is at work in QEMU.
    pub(in crate::ops) async fn hold_all_to_settle(
        &self,
        disks: &BTreeSet<String>,
    ) -> Result<Vec<DiskGuard>, Failure> {
        let deadline = tokio::time::Instant::now() + DISK_DEADLINE;
        // one that is busy for long is told before anybody waits for another
        if let Some(busy) = disks.iter().find(|disk| self.is_merging(disk)) {
            return Err(at_work(busy));
        }
        let mut guards = Vec::new();
        for disk in disks {
            guards.push(self.hold_until(disk, deadline).await?);
        }
        Ok(guards)
    }

    async fn hold_until(
        &self,
        disk: &str,
        deadline: tokio::time::Instant,
    ) -> Result<DiskGuard, Failure> {
        match self.turn_until(disk, deadline).await? {
            Turn::Now(guard) => Ok(guard),
            Turn::AtWork => Err(at_work(disk)),
        }
    }

    /// Takes the right to change a disk, or finds a merge at work on it.
    pub(in crate::ops) async fn turn(&self, disk: &str) -> Result<Turn, Failure> {
        let turn = self
            .turn_until(disk, tokio::time::Instant::now() + DISK_DEADLINE)
            .await?;
        self.free_of_others(&BTreeSet::from([disk.to_owned()]))
            .await?;
        Ok(turn)
    }

    async fn turn_until(
        &self,
        disk: &str,
        deadline: tokio::time::Instant,
    ) -> Result<Turn, Failure> {
        let state = self.state(disk);
        let mut changes = self.work_changes();
        let lock = Arc::clone(&state.lock).lock_owned();
        tokio::pin!(lock);
        let lock = loop {
            if state.merging.get() {
                return Ok(Turn::AtWork);
            }
            tokio::select! {
                lock = &mut lock => break lock,
                changed = changes.changed() => changed.map_err(|_| at_work(disk))?,
                () = tokio::time::sleep_until(deadline) => return Err(at_work(disk)),
            }
        };
        let claim = self.claim(disk).await?;
        state.held.set(true);
        state.turns.set(state.turns.get().wrapping_add(1));
        let guard = DiskGuard {
            name: disk.to_owned(),
            state,
            _lock: lock,
            _claim: claim,
        };
        // a verb may be faster than who settles all disks of a QEMU that is back
        if self.is_unsettled(disk) || self.is_settling() {
            recover::files_and_graph(self, &guard).await?;
        }
        Ok(Turn::Now(guard))
    }

    /// Keeps other mounts of the same VM from changing the disk.
    async fn claim(&self, disk: &str) -> Result<Option<Rc<Claim>>, Failure> {
        let names = |disk: &Disk| (disk.active_path.clone(), disk.active.file);
        let known = self.current().disk(disk).map(names);
        let (active, file) = match known {
            Some(known) => known,
            // before the first look is shown: what another mount is at work on is not for us to settle
            None if self.bridge.is_some() => names(&self.observe_again(disk).await?),
            None => return Ok(None),
        };
        if let Some(claim) = self.claimed(&active) {
            // two disks may be of one file, as CDs are
            return Ok(Some(claim));
        }
        // backups alone have no file, and a directory to be claimed
        let shelf = shelf::root(self).and_then(|root| backups::place_on_shelf(root, disk));
        let claim = match &shelf {
            Some(place) => shelf::claim_beside_digests(self, place).await,
            None => patiently(|| layer_file::claim(&active)).await,
        };
        match claim {
            // of what cannot be seen from here nothing is changed
            Err(_) if file.is_none() && shelf.is_none() => Ok(None),
            claim => {
                let claim = Rc::new(claim?);
                let mut claims = self.claims.borrow_mut();
                claims.retain(|_, claim| claim.strong_count() > 0);
                claims.insert(active, Rc::downgrade(&claim));
                Ok(Some(claim))
            }
        }
    }

    /// What another disk of this mount has claimed.
    fn claimed(&self, active: &Path) -> Option<Rc<Claim>> {
        self.claims.borrow().get(active).and_then(Weak::upgrade)
    }

    /// Whether somebody is changing the disk.
    pub(in crate::ops) fn is_held(&self, disk: &str) -> bool {
        self.state(disk).held.get()
    }

    /// Whether a merge is at work on the disk, or one after another.
    pub(in crate::ops) fn is_merging(&self, disk: &str) -> bool {
        self.state(disk).merging.get()
    }
}

/// Claims what another may have for a moment.
pub(in crate::ops) async fn patiently(
    claim: impl Fn() -> Result<Claim, Failure>,
) -> Result<Claim, Failure> {
    let began = Instant::now();
    loop {
        match claim() {
            Err(failure) if failure.errno == Errno::EBUSY && began.elapsed() < CLAIM_DEADLINE => {
                tokio::time::sleep(CLAIM_PAUSE).await;
            }
            claimed => return claimed,
        }
    }
}

/// What is told of a disk that nobody waits for.
pub(in crate::ops) fn at_work(disk: &str) -> Failure {
    Failure::new(Errno::EBUSY, format!("a job is at work on disk '{disk}'")).next(format!(
        "wait for it: qmpfs wait on disks/{disk}, or cat disks/{disk}/wait"
    ))
}
