//! The backups of a disk as the tree shows them: what lies in the backup directory, and what is on its
//! way there. The directory may be slow, or gone: a look at it has a deadline, and what was seen last
//! is shown until the next one. It does not know how a backup is made.

use super::{DiskGuard, Engine};
use crate::backups::{self, Listing, Place, Stamp};
use crate::errno::{Errno, Failure};
use crate::model::{Backup, Disk};
use crate::ops::shelf;
use qmpbridge::command::QueryName;
use std::collections::HashMap;
use std::time::Duration;

/// How long a look at the backup directory is waited for.
const LOOK_DEADLINE: Duration = Duration::from_secs(1);

impl Engine {
    /// What the VM is called, as soon as QEMU can be asked.
    pub(in crate::ops) async fn vm_name(&self) -> Result<String, Failure> {
        let bridge = self.bridge()?;
        let name = match &self.config.vm_name {
            Some(name) => Some(name.clone()),
            None if bridge.supports("query-name") => bridge.run(QueryName).await?.name,
            None => None,
        };
        let known = || self.current().vm.name.clone();
        Ok(name.filter(|name| !name.is_empty()).unwrap_or_else(known))
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
    pub(in crate::ops) fn listings(&self) -> HashMap<String, Listing> {
        self.listings.borrow().clone()
    }

    /// From now on this is known.
    pub(in crate::ops) fn set_listings(&self, listings: HashMap<String, Listing>) {
        *self.listings.borrow_mut() = listings;
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
    fn stamps(&self) -> HashMap<String, Option<Stamp>> {
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
        let mut shown = listed.unwrap_or_default();
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
