//! The backups of a disk as the tree shows them: what lies in the backup directory, and what is on its
//! way there. The directory may be slow, or gone: a look at it has a deadline, and what was seen last
//! is shown until the next one. It does not know how a backup is made.

use super::{DiskGuard, Engine};
use crate::backups::{self, Listing, Place, Stamp, Unnamed};
use crate::errno::{Errno, Failure};
use crate::model::{Backup, Disk, Job};
use crate::ops::shelf;
use crate::view::Pin;
use qmpbridge::command::QueryName;
use qmpbridge::{Bridge, JobId};
use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// How long a look at the backup directory is waited for.
const LOOK_DEADLINE: Duration = Duration::from_secs(1);

/// Backups of a disk that are being removed while a job works on their files.
#[derive(Default)]
pub(super) struct Removals {
    /// Set while there is one: the backups as they were before, and read through the maps made then.
    kept: RefCell<Option<(Vec<Backup>, Pin)>>,
    /// Identities of those that are listed no more.
    leaving: RefCell<BTreeSet<String>>,
    /// Those whose turn comes: identity, and the job that shows it.
    queue: RefCell<VecDeque<(String, JobId)>>,
    /// Somebody removes them, one after the other.
    at_work: Cell<bool>,
    /// The storage daemon that has the job.
    helper: RefCell<Option<Bridge>>,
}

/// How a mirror that is one of all disks ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::ops) enum Ending {
    /// Nobody has told all of them to.
    #[default]
    Nobodys,
    /// They have been told, and do not all hold one instant yet.
    UnderWay,
    /// They are of this instant.
    At(String),
}

impl Engine {
    /// How the mirror of a disk ends, from now on.
    pub(in crate::ops) fn set_ending(&self, disk: &str, ending: Ending) {
        *self.state(disk).ending.borrow_mut() = ending;
    }

    /// How it ends.
    pub(in crate::ops) fn ending(&self, disk: &str) -> Ending {
        self.state(disk).ending.borrow().clone()
    }

    /// From now on, and until [`Engine::show_backups_anew`], the backups are shown and read as they are
    /// now, but for one.
    pub(in crate::ops) fn keep_backups(
        &self,
        disk: &str,
        shown: Vec<Backup>,
        gone: &str,
        pin: Pin,
    ) {
        let state = self.state(disk);
        *state.removals.kept.borrow_mut() = Some((shown, pin));
        state.removals.leaving.borrow_mut().insert(gone.to_owned());
    }

    /// What lies in the directory is shown again.
    pub(in crate::ops) fn show_backups_anew(&self, disk: &str, was_leaving: &str) {
        let state = self.state(disk);
        *state.removals.kept.borrow_mut() = None;
        *state.removals.helper.borrow_mut() = None;
        state.removals.leaving.borrow_mut().remove(was_leaving);
        self.backups_changed(disk);
    }

    /// Whether somebody removes backups of the disk: he takes what is queued behind it, too.
    pub(in crate::ops) fn removes_backups(&self, disk: &str) -> bool {
        self.state(disk).removals.at_work.get()
    }

    /// The holder of the disk removes backups from now on.
    pub(in crate::ops) fn begin_removals(&self, guard: &DiskGuard) {
        guard.state.removals.at_work.set(true);
    }

    /// He has found nothing more in the queue.
    pub(in crate::ops) fn end_removals(&self, guard: &DiskGuard) {
        guard.state.removals.at_work.set(false);
    }

    /// Whether a merge works on the files of the disk's backups.
    pub(in crate::ops) fn merges_backups(&self, disk: &str) -> bool {
        self.state(disk).removals.kept.borrow().is_some()
    }

    /// The storage daemon that has the disk's job, from now on.
    pub(in crate::ops) fn set_helper(&self, disk: &str, bridge: Bridge) {
        *self.state(disk).removals.helper.borrow_mut() = Some(bridge);
    }

    /// Whoever has the disk's jobs: QEMU, or the storage daemon that merges backups.
    pub(in crate::ops) fn bridge_of(&self, disk: &str) -> Result<Bridge, Failure> {
        let helper = self.state(disk).removals.helper.borrow().clone();
        match helper {
            Some(helper) => Ok(helper),
            None => self.bridge().cloned(),
        }
    }

    /// A backup is removed when its turn comes, and listed no more.
    pub(in crate::ops) fn queue_backup(&self, disk: &str, id: &str, job: JobId, name: &str) {
        let shown = Job::new(&job, "merge", name, "queued");
        let state = self.state(disk);
        state.removals.leaving.borrow_mut().insert(id.to_owned());
        let mut queue = state.removals.queue.borrow_mut();
        queue.push_back((id.to_owned(), job));
        state.jobs.borrow_mut().push(shown);
        drop(queue);
        self.publish_jobs(disk);
    }

    /// Whose turn it is.
    pub(in crate::ops) fn next_backup(&self, disk: &str) -> Option<(String, JobId)> {
        self.state(disk).removals.queue.borrow_mut().pop_front()
    }

    /// Takes one out of the queue: its name comes back.
    pub(in crate::ops) fn drop_queued_backup(&self, disk: &str, job: &str) -> bool {
        let state = self.state(disk);
        let mut queue = state.removals.queue.borrow_mut();
        let found = queue.iter().position(|(_, queued)| queued.as_str() == job);
        let dropped = found.and_then(|at| queue.remove(at));
        drop(queue);
        let Some((id, _)) = dropped else {
            return false;
        };
        state.removals.leaving.borrow_mut().remove(&id);
        state.jobs.borrow_mut().retain(|known| known.id != job);
        self.publish_jobs(disk);
        true
    }

    /// What the VM is called, as soon as QEMU can be asked.
    pub(in crate::ops) async fn vm_name(&self) -> Result<String, Failure> {
        let known = || self.current().vm.name.clone();
        Ok(self.given_name().await?.unwrap_or_else(known))
    }

    /// What somebody has called the VM.
    async fn given_name(&self) -> Result<Option<String>, Failure> {
        let bridge = self.bridge()?;
        let name = match &self.config.vm_name {
            Some(name) => Some(name.clone()),
            None if bridge.supports("query-name") => bridge.run(QueryName).await?.name,
            None => None,
        };
        Ok(name.filter(|name| !name.is_empty()))
    }

    /// The VM, where it has no name of its own, and may have backups.
    pub(in crate::ops) async fn unnamed(&self) -> Result<Option<Unnamed>, Failure> {
        let Some(root) = &self.config.backup.directory else {
            return Ok(None);
        };
        if self.given_name().await?.is_some() {
            return Ok(None);
        }
        Ok(Some(Unnamed {
            root: root.clone(),
            vm: self.current().vm.name.clone(),
            from: self.config.source.whence(),
        }))
    }

    /// Where a disk's backups are; None without a backup directory.
    pub(in crate::ops) fn place(&self, vm: &str, disk: &str) -> Option<Place> {
        if let Some(root) = shelf::root(self) {
            return backups::place_on_shelf(root, disk);
        }
        let root = self.config.backup.directory.as_ref()?;
        Some(Place::new(root, vm, disk))
    }

    /// What is known of all disks.
    pub(in crate::ops) fn listings(&self) -> Ref<'_, HashMap<String, Listing>> {
        self.listings.borrow()
    }

    /// From now on there are these disks, and of each what is given, or else what is known.
    pub(in crate::ops) fn set_listings(
        &self,
        disks: impl Iterator<Item = (String, Option<Listing>)>,
    ) {
        let mut listings = self.listings.borrow_mut();
        let mut known = std::mem::take(&mut *listings);
        for (disk, listing) in disks {
            let listing = listing.or_else(|| known.remove(&disk));
            listings.extend(listing.map(|listing| (disk, listing)));
        }
    }

    /// Lists the backups of disks whose directories have changed since they were listed.
    pub(super) async fn look_at_backups(&self, vm: &str, disks: &[Disk]) {
        let places: Vec<(String, Place)> = disks
            .iter()
            .filter_map(|disk| Some((disk.name.clone(), self.place(vm, &disk.name)?)))
            .collect();
        if places.is_empty() {
            return;
        }
        let known = self.stamps();
        let look = tokio::task::spawn_blocking(move || {
            let changed = places.into_iter().filter_map(|(disk, place)| {
                let stamp = backups::stamp(&place);
                (known.get(&disk) != Some(&stamp)).then(|| (disk, backups::list(&place)))
            });
            changed.collect::<Vec<(String, Listing)>>()
        });
        match tokio::time::timeout(LOOK_DEADLINE, look).await {
            Ok(Ok(changed)) => self.listings.borrow_mut().extend(changed),
            Ok(Err(_)) | Err(_) => tracing::debug!("the backup directory does not answer"),
        }
    }

    /// When each disk's directory was listed, by what it looked like then.
    pub(in crate::ops) fn stamps(&self) -> HashMap<String, Option<Stamp>> {
        let listings = self.listings.borrow();
        let stamps = listings.iter().map(|(disk, it)| (disk.clone(), it.stamp));
        stamps.collect()
    }

    /// What was listed of a disk is old, whatever the directory's times say.
    pub(in crate::ops) fn backups_changed(&self, disk: &str) {
        self.listings.borrow_mut().remove(disk);
    }

    /// Shows a backup that is made, as long as its job is shown.
    pub(in crate::ops) fn show_backup(&self, guard: &DiskGuard, backup: Backup) {
        let mut making = guard.state.making.borrow_mut();
        making.retain(|known| known.manifest.name != backup.manifest.name);
        making.push(backup);
    }

    /// A backup that is made is shown no more: it is complete, or nobody wants it.
    pub(in crate::ops) fn hide_backup(&self, disk: &str, id: &str) {
        let state = self.state(disk);
        state
            .making
            .borrow_mut()
            .retain(|known| known.manifest.id != id);
    }

    /// The backups of a disk, in what order they were made; those that are made last.
    pub(super) fn shown_backups(&self, disk: &str) -> Vec<Backup> {
        let state = self.state(disk);
        let jobs = state.jobs.borrow();
        let mut making = state.making.borrow_mut();
        making.retain(|backup| {
            let id = backup.job().unwrap_or_default();
            jobs.iter().any(|job| job.id == id)
        });
        let listings = self.listings.borrow();
        let listed = listings.get(disk).map(|listing| listing.backups.clone());
        let kept = state.removals.kept.borrow();
        let kept = kept.as_ref().map(|(backups, _)| backups.clone());
        let mut shown = kept.or(listed).unwrap_or_default();
        let leaving = state.removals.leaving.borrow();
        shown.retain(|backup| !leaving.contains(&backup.manifest.id));
        shown.retain(|backup| {
            let same = |other: &Backup| other.manifest.name == backup.manifest.name;
            !making.iter().any(same)
        });
        shown.extend(making.iter().cloned());
        shown
    }

    /// The same, or why there can be none.
    pub(in crate::ops) async fn place_of(&self, disk: &str) -> Result<Place, Failure> {
        let vm = match shelf::root(self) {
            Some(_) => String::new(),
            None => self.vm_name().await?,
        };
        self.place(&vm, disk).ok_or_else(|| {
            Failure::new(
                Errno::EPERM,
                "no directory for backups was named at the mount",
            )
            .next("mount with --backup-dir DIR")
        })
    }
}
