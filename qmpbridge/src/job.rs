//! Jobs, in QEMU's words.
//!
//! Knows the states a job goes through and how to wait for one although events get lost.
//! Does not know what a job is for.
//! Invariant: an event only says "look now"; what the job is, `query-jobs` says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;

use crate::bridge::Bridge;
use crate::error::Error;
use crate::event::{Event, EventKind};
use crate::names::JobId;
use crate::session::Connection;

/// How often a job is looked at when no event tells: bounds what a lost event costs.
const POLL: Duration = Duration::from_secs(1);

/// The states of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Erroneous, never seen.
    Undefined,
    /// Made, not yet started.
    Created,
    /// At work.
    Running,
    /// Held, by a person or (for an instant) by QEMU itself: see [`JobInfo::paused`].
    Paused,
    /// All is copied and new writes follow: wants `job-complete` or a cancel.
    Ready,
    /// `Ready`, held.
    Standby,
    /// Done, waits for the other jobs of its transaction.
    Waiting,
    /// Waits for `job-finalize`.
    Pending,
    /// Fails or is cancelled, cleaning up.
    Aborting,
    /// Over; stays until `job-dismiss`.
    Concluded,
    /// Dismissed.
    Null,
    /// A word newer than this crate.
    #[serde(other)]
    Unknown,
}

impl JobStatus {
    pub(crate) fn from_json(value: &serde_json::Value) -> Self {
        JobStatus::deserialize(value).unwrap_or(JobStatus::Unknown)
    }

    /// Whether a waiter has something to decide.
    fn is_news(self) -> bool {
        use JobStatus::*;
        matches!(self, Ready | Standby | Pending | Concluded | Null)
    }
}

/// A job as `query-jobs` and `query-block-jobs` show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobInfo {
    /// Its id.
    pub id: JobId,
    /// `stream`, `commit`, `backup`, `mirror`, `create`, …
    pub kind: String,
    /// Where it is.
    pub status: JobStatus,
    /// Bytes done, for block jobs.
    pub current_progress: u64,
    /// Bytes to do; may grow.
    pub total_progress: u64,
    /// QEMU's words when it failed.
    pub error: Option<String>,
    /// Held by a person or an I/O error. `JobStatus::Paused` alone is not that.
    pub paused: bool,
    /// `ok`, `failed` or `nospace`; only of block jobs.
    pub io_status: Option<String>,
    /// Bytes a second, 0 for unlimited; only of block jobs.
    pub speed: Option<u64>,
    /// Whether it can be completed; only of block jobs.
    pub ready: bool,
    /// Whether it stays after its end until dismissed.
    pub auto_dismiss: Option<bool>,
    /// Whether it ends without `job-finalize`.
    pub auto_finalize: Option<bool>,
}

/// What a waiter was woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStage {
    /// Wants `job-complete` or a cancel.
    Ready,
    /// Wants `job-finalize`; only of jobs started with `auto_finalize: false`.
    Pending,
    /// Over, without error; wants `job-dismiss`.
    Concluded,
}

/// How to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// Stop and undo; the job fails with `Operation canceled`.
    Force,
    /// A mirror or an active commit that is ready ends well, without its pivot. Any other job as with `Force`.
    Soft,
}

/// Which jobs are waited for. An entry counts the events worth looking at.
#[derive(Clone, Default)]
pub(crate) struct JobTable(Arc<Mutex<HashMap<JobId, watch::Sender<u64>>>>);

impl JobTable {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, watch::Sender<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn heard(&self, event: &Event) {
        let id = match event.kind() {
            EventKind::JobStatusChange { id, status } if status.is_news() => id,
            EventKind::BlockJob { id, .. } => id,
            _ => return,
        };
        if let Some(news) = self.lock().get(&id) {
            news.send_modify(|count| *count += 1);
        }
    }

    fn register(&self, id: &JobId) -> watch::Receiver<u64> {
        let mut table = self.lock();
        table
            .entry(id.clone())
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
    }

    fn unregister(&self, id: &JobId) {
        let mut table = self.lock();
        // The receiver that is being dropped still counts.
        if table.get(id).is_some_and(|news| news.receiver_count() <= 1) {
            table.remove(id);
        }
    }
}

/// A job that is waited for. Dropping it changes nothing at QEMU.
pub struct JobHandle {
    id: JobId,
    bridge: Bridge,
    news: watch::Receiver<u64>,
    connection: watch::Receiver<Connection>,
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.bridge.job_table().unregister(&self.id);
    }
}

impl std::fmt::Debug for JobHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobHandle")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl JobHandle {
    pub(crate) fn register(bridge: &Bridge, id: JobId) -> Self {
        let news = bridge.job_table().register(&id);
        JobHandle {
            news,
            connection: bridge.connection(),
            bridge: bridge.clone(),
            id,
        }
    }

    /// The job's id.
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// What QEMU says of the job now.
    pub async fn info(&self) -> Result<JobInfo, Error> {
        self.bridge.job(&self.id).await
    }

    /// Waits until the job is ready (or pending) or over. An error of the job is [`Error::JobFailed`]; a lost
    /// connection is [`Error::Disconnected`] at once, and the job may go on: see [`Bridge::attach_job`].
    pub async fn wait_ready_or_concluded(&mut self) -> Result<JobStage, Error> {
        self.wait(&[JobStage::Ready, JobStage::Pending, JobStage::Concluded])
            .await
    }

    /// Waits until the job is over.
    pub async fn wait_concluded(&mut self) -> Result<(), Error> {
        self.wait(&[JobStage::Concluded]).await.map(drop)
    }

    async fn wait(&mut self, stages: &[JobStage]) -> Result<JobStage, Error> {
        loop {
            // Marked as seen before the question: news that come after it wake us again.
            self.news.borrow_and_update();
            if matches!(
                *self.connection.borrow_and_update(),
                Connection::Down { .. }
            ) {
                return Err(Error::Disconnected);
            }
            match self.bridge.job_status(&self.id).await {
                Ok((status, error)) => {
                    if let Some(stage) = self.stage(status, error)?
                        && stages.contains(&stage)
                    {
                        return Ok(stage);
                    }
                }
                // QEMU is busy, not gone: ask again.
                Err(Error::TimedOut { .. }) => {}
                Err(e) => return Err(e),
            }
            tokio::select! {
                _ = self.news.changed() => {}
                _ = self.connection.changed() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    fn stage(&self, status: JobStatus, error: Option<String>) -> Result<Option<JobStage>, Error> {
        match (status, error) {
            (JobStatus::Concluded, Some(error)) => Err(Error::JobFailed {
                job: self.id.clone(),
                error,
            }),
            (JobStatus::Concluded, None) => Ok(Some(JobStage::Concluded)),
            (JobStatus::Ready | JobStatus::Standby, _) => Ok(Some(JobStage::Ready)),
            (JobStatus::Pending, _) => Ok(Some(JobStage::Pending)),
            (JobStatus::Null, _) => Err(Error::JobVanished {
                job: self.id.clone(),
            }),
            _ => Ok(None),
        }
    }
}
