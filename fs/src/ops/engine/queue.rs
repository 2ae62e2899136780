//! The points that wait in the queue of a disk, and the jobs that show them. It knows whose turn is
//! next; it does not know how a merge is done.

use super::Engine;
use super::jobs::PAUSED;
use crate::leases::Closed;
use crate::model::Job;
use qmpbridge::JobId;

/// What stands in `state` of a job whose turn has not come.
const QUEUED: &str = "queued";

/// A point that was removed while another merge was at work: its turn comes.
pub(in crate::ops) struct Queued {
    /// Of the job that shows it, and that it becomes.
    pub(in crate::ops) job: JobId,
    /// The layer (`tree::layer_identity`): names of files change in a queue.
    pub(in crate::ops) identity: String,
    /// Where the point was listed, for the log.
    pub(in crate::ops) path: String,
    /// Bytes a second, if somebody said so.
    pub(in crate::ops) speed: Option<u64>,
    /// Keeps readers away until the merge itself does.
    pub(in crate::ops) _closed: Option<Closed>,
}

/// Whose turn it is. It stays in the queue, and its point hidden, until it is shown at work.
pub(in crate::ops) struct NextTurn {
    pub(in crate::ops) job: JobId,
    pub(in crate::ops) identity: String,
    pub(in crate::ops) path: String,
}

/// What a person wants of a queued job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Held {
    Paused,
    Queued,
}

impl Engine {
    /// Puts a point behind the merges that are at work: its name is gone from here on.
    pub(in crate::ops) fn enqueue(&self, disk: &str, queued: Queued, job: Job) {
        let state = self.state(disk);
        state.jobs.borrow_mut().push(Job {
            state: QUEUED.into(),
            ..job
        });
        state.queue.borrow_mut().push_back(queued);
        self.publish_jobs(disk);
    }

    /// The first whose turn may come. The others are held by a person.
    pub(in crate::ops) fn next_queued(&self, disk: &str) -> Option<NextTurn> {
        let state = self.state(disk);
        let (queue, jobs) = (state.queue.borrow(), state.jobs.borrow());
        let held = |queued: &&Queued| {
            jobs.iter()
                .any(|job| job.id == queued.job.as_str() && job.state == PAUSED)
        };
        queue
            .iter()
            .find(|queued| !held(queued))
            .map(|queued| NextTurn {
                job: queued.job.clone(),
                identity: queued.identity.clone(),
                path: queued.path.clone(),
            })
    }

    /// Whether a job waits for its turn.
    pub(in crate::ops) fn is_queued(&self, disk: &str, id: &str) -> bool {
        let state = self.state(disk);
        let queue = state.queue.borrow();
        queue.iter().any(|queued| queued.job.as_str() == id)
    }

    /// Whether anything waits for its turn.
    pub(in crate::ops) fn has_queue(&self, disk: &str) -> bool {
        !self.state(disk).queue.borrow().is_empty()
    }

    /// Takes a point out of the queue: its turn has come, or somebody thought better of it.
    pub(in crate::ops) fn take_queued(&self, disk: &str, id: &str) -> Option<Queued> {
        let state = self.state(disk);
        let mut queue = state.queue.borrow_mut();
        let at = queue.iter().position(|queued| queued.job.as_str() == id)?;
        queue.remove(at)
    }

    /// Takes a point out of the queue because somebody thought better of it: its name comes back.
    /// Where no merge is shown right now, the next one, or the queue's end, shows the name.
    pub(in crate::ops) fn drop_queued(&self, disk: &str, id: &str) {
        drop(self.take_queued(disk, id));
        self.end_job(disk, id, None);
    }

    /// Holds a queued point's job, or lets it have its turn.
    pub(in crate::ops) fn hold_queued(&self, disk: &str, id: &str, held: Held) {
        let state = self.state(disk);
        if let Some(job) = state.jobs.borrow_mut().iter_mut().find(|job| job.id == id) {
            job.state = match held {
                Held::Paused => PAUSED,
                Held::Queued => QUEUED,
            }
            .into();
        }
        self.publish_jobs(disk);
    }

    /// How fast a queued point's job will be.
    pub(in crate::ops) fn limit_queued(&self, disk: &str, id: &str, speed: u64) {
        let state = self.state(disk);
        if let Some(queued) = state
            .queue
            .borrow_mut()
            .iter_mut()
            .find(|queued| queued.job.as_str() == id)
        {
            queued.speed = Some(speed);
        }
        if let Some(job) = state.jobs.borrow_mut().iter_mut().find(|job| job.id == id) {
            job.limit = Some(speed).filter(|speed| *speed > 0);
        }
        self.publish_jobs(disk);
    }
}
