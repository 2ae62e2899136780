//! The jobs of a disk as the tree shows them: announced before their first step, their progress
//! while they run, their failure until it is dismissed. It knows what is shown; it does not
//! know how a merge is done.

use super::pace::Pace;
use super::{DiskGuard, Engine, Frozen};
use crate::errno::Failure;
use crate::model::{Disk, Job, Model};
use crate::tree::layer_identity;
use crate::view::Pin;
use qmpbridge::{JobId, JobInfo, JobStatus};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A job is not looked at more often, however many read its progress.
const PROGRESS_FRESH: Duration = Duration::from_millis(100);

/// What stands in `state` of a job that a person holds.
pub(super) const PAUSED: &str = "paused";

/// What `wait` waits for.
pub(in crate::ops) enum Work {
    UnderWay,
    Failed(String),
    Done,
}

/// Whether the end of a job was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::ops) enum Cancelled {
    #[default]
    No,
    /// QEMU was told, and has not answered: it may refuse.
    Asked,
    Yes,
}

impl Engine {
    /// Shows a job from before its first step on: who looks, or waits, finds it at work.
    pub(in crate::ops) fn announce(&self, guard: &DiskGuard, job: Job) {
        let state = &guard.state;
        let mut jobs = state.jobs.borrow_mut();
        if !state.merging.replace(true) {
            // what failed before is history once new work begins, but for what is to be taken up again
            jobs.retain(|known| !known.ended() || self.is_cut_short(guard.name(), &known.point));
        }
        state.cancelled.set(Cancelled::No);
        state.asked_speed.set(None);
        state.asked_to_wait.set(false);
        state.pivoting.set(false);
        *state.pace.borrow_mut() = Pace::default();
        match jobs.iter_mut().find(|known| known.id == job.id) {
            Some(known) => *known = job,
            None => jobs.push(job),
        }
    }

    /// Shows the disk as it was, without the point that leaves, for as long as the job runs.
    pub(in crate::ops) fn freeze(
        &self,
        guard: &DiskGuard,
        disk: &Disk,
        leaving: usize,
        job: Job,
        pin: Pin,
    ) {
        let mut shown = disk.clone();
        shown.layers[leaving].leaving = true;
        // it is taken up again
        let again = |known: &Job| known.ended() && known.point == job.point;
        guard.state.jobs.borrow_mut().retain(|known| !again(known));
        self.announce(guard, job);
        *guard.state.frozen.borrow_mut() = Some(Frozen {
            disk: shown,
            _pin: pin,
        });
        self.publish_jobs(guard.name());
    }

    /// The job has ended: shows the disk as it is now, and the failure as long as nobody dismisses it.
    pub(in crate::ops) async fn thaw(&self, guard: &DiskGuard, id: &str, failed: Option<Failure>) {
        let state = &guard.state;
        if let Err(failure) = self.refresh(&[guard]).await {
            // what is shown stays as it was until QEMU can be asked
            tracing::debug!(%failure, "refresh after a merge");
            *state.frozen.borrow_mut() = None;
        }
        let asked = state.cancelled.get() != Cancelled::No;
        let job = self.job(guard.name(), id);
        // a stream that was to end a commit leaves it as it was: its job is what takes it up again
        let is_whole = |job: Job| !self.is_cut_short(guard.name(), &job.point);
        let as_asked = asked && job.is_none_or(is_whole);
        // only now: who waits for the job finds the tree as it is after it
        self.end_job(guard.name(), id, failed.filter(|_| !as_asked).as_ref());
    }

    /// Whether a commit into the layer of a point was begun and has not ended.
    pub(in crate::ops) fn is_cut_short(&self, disk: &str, point: &str) -> bool {
        let model = self.current();
        let layers = model.disk(disk).map_or(&[][..], |disk| &disk.layers);
        let mut mixed = layers.iter().filter(|layer| layer.leaving);
        mixed.any(|layer| layer.point_name() == Some(point))
    }

    /// Nothing is at work on the disk any more.
    pub(in crate::ops) fn rest(&self, guard: &DiskGuard) {
        guard.state.merging.set(false);
        self.publish_jobs(guard.name());
    }

    /// A job leaves, or stays with its failure.
    pub(in crate::ops) fn end_job(&self, disk: &str, id: &str, failed: Option<&Failure>) {
        let state = self.state(disk);
        {
            let mut jobs = state.jobs.borrow_mut();
            match failed {
                None => jobs.retain(|job| job.id != id),
                Some(failure) => {
                    if let Some(job) = jobs.iter_mut().find(|job| job.id == id) {
                        job.state = "concluded".into();
                        job.error = Some(failure.to_string());
                        job.rate = None;
                    }
                }
            }
        }
        if state.queue.borrow().is_empty() && state.frozen.borrow().is_none() {
            // who waited for it may begin something at once
            state.merging.set(false);
        }
        self.publish_jobs(disk);
    }

    /// Shows the jobs as they are known now; the disk itself stays as it is.
    pub(in crate::ops) fn publish_jobs(&self, disk: &str) {
        let state = self.state(disk);
        let mut model = Model::clone(&self.current());
        if let Some(shown) = model.disks.iter_mut().find(|shown| shown.name == disk) {
            if let Some(frozen) = &*state.frozen.borrow() {
                let others = std::mem::take(&mut shown.jobs);
                *shown = frozen.disk.clone();
                shown.jobs = others;
            }
            self.dress(shown);
        }
        self.publish(model);
    }

    /// What is not QEMU's to tell: the jobs, and that points in the queue are gone.
    pub(in crate::ops) fn dress(&self, disk: &mut Disk) {
        let state = self.state(&disk.name);
        disk.lives = self.lives.of(&disk.name);
        disk.jobs.retain(Job::by_others);
        let others = std::mem::take(&mut disk.jobs);
        disk.jobs = [state.jobs.borrow().clone(), others].concat();
        disk.backups = self.shown_backups(&disk.name);
        let queue = state.queue.borrow();
        for layer in &mut disk.layers {
            let identity = layer_identity(layer);
            layer.leaving |= queue.iter().any(|queued| queued.identity == identity);
        }
    }

    /// Says in a running job's `error` why it does not go on.
    pub(in crate::ops) fn explain_job(&self, disk: &str, id: &str, why: Option<&str>) {
        let state = self.state(disk);
        let mut jobs = state.jobs.borrow_mut();
        if let Some(job) = jobs.iter_mut().find(|job| job.id == id && !job.ended()) {
            job.error = why.map(str::to_owned);
        }
    }

    /// Brings a job's progress up to date.
    pub(in crate::ops) async fn show_progress(&self, disk: &str, id: &str) {
        let Ok(bridge) = self.bridge_of(disk) else {
            return;
        };
        let Ok(jobs) = bridge.jobs().await else {
            return;
        };
        // one that has concluded stays as it was shown until its end is dealt with: who waits for it
        // finds the tree as it is after it
        let at_work = |job: &JobInfo| job.id.as_str() == id && job.status != JobStatus::Concluded;
        let Some(seen) = jobs.into_iter().find(at_work) else {
            return;
        };
        let state = self.state(disk);
        if let Some(job) = state
            .jobs
            .borrow_mut()
            .iter_mut()
            .find(|job| job.id == id && !job.ended())
        {
            let now = Instant::now();
            let mut pace = state.pace.borrow_mut();
            pace.looked = Some(now);
            job.state = word(&seen);
            job.progress = (seen.current_progress, seen.total_progress);
            job.rate = pace.rate(now, seen.current_progress);
            job.limit = seen.speed.filter(|speed| *speed > 0);
        }
        self.publish_jobs(disk);
    }

    /// The same for a reader of its files, unless that was just done.
    pub(in crate::ops) async fn show_progress_if_older(&self, disk: &str, id: &str) {
        let looked = self.state(disk).pace.borrow().looked;
        let fresh = looked.is_some_and(|looked| looked.elapsed() < PROGRESS_FRESH);
        let at_work = self.job(disk, id).is_some_and(|job| !job.ended());
        let at_work = at_work && self.qemu_is_free().is_ok();
        if at_work && !fresh && !self.is_queued(disk, id) {
            self.show_progress(disk, id).await;
        }
    }

    /// A job as it is shown.
    pub(in crate::ops) fn job(&self, disk: &str, id: &str) -> Option<Job> {
        let state = self.state(disk);
        let jobs = state.jobs.borrow();
        jobs.iter().find(|job| job.id == id).cloned()
    }

    /// Forgets a job that has failed, on every disk it was at work on.
    pub(in crate::ops) fn dismiss(&self, id: &str) {
        let states = self.disks.borrow();
        let with_it: Vec<String> = states
            .iter()
            .filter(|(_, state)| state.jobs.borrow().iter().any(|job| job.id == id))
            .map(|(disk, _)| disk.clone())
            .collect();
        drop(states);
        for disk in with_it {
            self.state(&disk)
                .jobs
                .borrow_mut()
                .retain(|job| job.id != id);
            self.publish_jobs(&disk);
        }
    }

    /// Its end, when it comes, is not a failure but what was asked for. Says how it was before.
    pub(in crate::ops) fn set_cancelled(&self, disk: &str, cancelled: Cancelled) -> Cancelled {
        self.state(disk).cancelled.replace(cancelled)
    }

    /// Whether its end was asked for.
    pub(in crate::ops) fn cancelled(&self, disk: &str) -> Cancelled {
        self.state(disk).cancelled.get()
    }

    /// A person limits the job at work on the disk to so many bytes a second, 0 for none.
    pub(in crate::ops) fn ask_speed(&self, disk: &str, speed: u64) {
        self.state(disk).asked_speed.set(Some(speed));
    }

    /// How fast a backup may be: as a person said of its job, else as the mount's options say. None is no limit.
    pub(in crate::ops) fn backup_speed(&self, disk: &str) -> Option<u64> {
        let asked = self.state(disk).asked_speed.get();
        asked.or(self.config.backup.speed).filter(|it| *it > 0)
    }

    /// A person wants the job at work on the disk to wait, or to go on.
    pub(in crate::ops) fn ask_to_wait(&self, disk: &str, waits: bool) {
        self.state(disk).asked_to_wait.set(waits);
    }

    /// Whether a person wants it to wait.
    pub(in crate::ops) fn asked_to_wait(&self, disk: &str) -> bool {
        self.state(disk).asked_to_wait.get()
    }

    /// From now on the disk's job is not paused; false if it is. Who wants to pause it looks at
    /// [`Engine::pivots`] right before QEMU is told, so one of the two sees the other.
    pub(in crate::ops) async fn begin_pivot(
        &self,
        disk: &str,
        id: &JobId,
    ) -> Result<bool, Failure> {
        let state = self.state(disk);
        state.pivoting.set(true);
        let jobs = self.bridge()?.jobs().await?;
        let paused = jobs.iter().any(|job| job.id == *id && job.paused);
        state.pivoting.set(!paused);
        Ok(!paused)
    }

    /// The pivot does not come now: the job may be paused again.
    pub(in crate::ops) fn end_pivot(&self, disk: &str) {
        self.state(disk).pivoting.set(false);
    }

    /// Whether the disk's job is at its pivot.
    pub(in crate::ops) fn pivots(&self, disk: &str) -> bool {
        self.state(disk).pivoting.get()
    }

    /// Whether work is under way in a scope, or how the last of it ended.
    pub(in crate::ops) fn work_in(&self, disk: Option<&str>, id: Option<&str>) -> Work {
        let model = self.current();
        let shown = model.disks.iter();
        let others = shown
            .filter(|shown| disk.is_none_or(|disk| disk == shown.name))
            .flat_map(|shown| &shown.jobs)
            .filter(|job| job.by_others() && id.is_none_or(|id| id == job.id));
        // how they end is told where they were begun
        if others.into_iter().any(|job| !job.ended()) {
            return Work::UnderWay;
        }
        let states = self.disks.borrow();
        let jobs: Vec<Job> = states
            .iter()
            .filter(|(name, _)| disk.is_none_or(|disk| disk == name.as_str()))
            .flat_map(|(_, state)| state.jobs.borrow().clone())
            .filter(|job| id.is_none_or(|id| id == job.id))
            .collect();
        if jobs.iter().any(|job| !job.ended()) {
            return Work::UnderWay;
        }
        match jobs.into_iter().find_map(|job| job.error) {
            Some(error) => Work::Failed(error),
            None => Work::Done,
        }
    }

    pub(in crate::ops) fn work_changes(&self) -> watch::Receiver<u64> {
        self.work.subscribe()
    }
}

/// The state of a job in QEMU's words, without the pauses that are QEMU's own for an instant.
fn word(job: &JobInfo) -> String {
    match (job.status, job.paused) {
        (_, true) => PAUSED.into(),
        (JobStatus::Paused, false) => "running".into(),
        (JobStatus::Standby, false) => "ready".into(),
        (status, false) => format!("{status:?}").to_lowercase(),
    }
}
