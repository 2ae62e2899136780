//! Jobs, in QEMU's words.
//!
//! Knows the states a job goes through and how to wait for one although events get lost.
//! Does not know what a job is for.
//! Invariant: an event only says "look now"; what the job is, `query-jobs` says.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;

use crate::bridge::Bridge;
use crate::command::Job;
use crate::error::Error;
use crate::event::{Event, EventKind};
use crate::names::JobId;
use crate::session::Connection;

/// How often a job is looked at when no event tells: bounds what a lost event costs.
const POLL: Duration = Duration::from_secs(1);
/// What `query-jobs` calls a `block-stream`.
pub(crate) const STREAM: &str = "stream";

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

    /// QEMU's word for it.
    pub fn word(self) -> &'static str {
        match self {
            JobStatus::Undefined => "undefined",
            JobStatus::Created => "created",
            JobStatus::Running => "running",
            JobStatus::Paused => "paused",
            JobStatus::Ready => "ready",
            JobStatus::Standby => "standby",
            JobStatus::Waiting => "waiting",
            JobStatus::Pending => "pending",
            JobStatus::Aborting => "aborting",
            JobStatus::Concluded => "concluded",
            JobStatus::Null => "null",
            JobStatus::Unknown => "unknown",
        }
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

impl JobInfo {
    /// Whether it is a `block-stream`.
    pub fn is_stream(&self) -> bool {
        self.kind == STREAM
    }
}

/// What a waiter was woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStage {
    /// Wants `job-complete` or a cancel.
    Ready,
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

/// What events said of a job.
#[derive(Default)]
struct News {
    /// How many of them were worth looking at.
    count: u64,
    /// How it ended, for the job that dismisses itself.
    outcome: Option<Result<(), String>>,
}

/// Which jobs are waited for.
#[derive(Default)]
pub(crate) struct JobTable(Mutex<HashMap<JobId, watch::Sender<News>>>);

impl JobTable {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, watch::Sender<News>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn heard(&self, event: &Event) {
        let (id, outcome) = match event.kind() {
            EventKind::JobStatusChange { id, status } if status.is_news() => (id, None),
            EventKind::BlockJob { id, outcome } => (id, outcome),
            _ => return,
        };
        if let Some(news) = self.lock().get(&id) {
            news.send_modify(|news| {
                news.count += 1;
                news.outcome = outcome.or(news.outcome.take());
            });
        }
    }

    fn register(&self, id: &JobId) -> watch::Receiver<News> {
        let mut table = self.lock();
        table.entry(id.clone()).or_default().subscribe()
    }

    fn unregister(&self, id: &JobId) {
        let mut table = self.lock();
        // The receiver that is being dropped still counts.
        if table.get(id).is_some_and(|news| news.receiver_count() <= 1) {
            table.remove(id);
        }
    }
}

/// Ended jobs that QEMU was told to forget, without an answer that says that it did.
#[derive(Default)]
pub(crate) struct Undismissed(Mutex<BTreeSet<JobId>>);

impl Undismissed {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<JobId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn remember(&self, id: &JobId) {
        self.lock().insert(id.clone());
    }

    pub(crate) fn forget(&self, id: &JobId) {
        self.lock().remove(id);
    }

    pub(crate) fn all(&self) -> Vec<JobId> {
        self.lock().iter().cloned().collect()
    }
}

/// A job that is waited for. Dropping it changes nothing at QEMU.
pub struct JobHandle {
    id: JobId,
    bridge: Bridge,
    news: watch::Receiver<News>,
    connection: watch::Receiver<Connection>,
    /// Whether it is ours to finalize.
    ours: bool,
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
    pub(crate) fn register(bridge: &Bridge, id: JobId, ours: bool) -> Self {
        let news = bridge.job_table().register(&id);
        JobHandle {
            news,
            connection: bridge.connection(),
            bridge: bridge.clone(),
            id,
            ours,
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

    /// Waits until the job is ready or over. A stream of ours that is pending is finalized. An error of the job is
    /// [`Error::JobFailed`]; a lost connection is [`Error::Disconnected`] at once, and the job may go on: see
    /// [`Bridge::attach_job`].
    pub async fn wait_ready_or_concluded(&mut self) -> Result<JobStage, Error> {
        let ready = |status| matches!(status, JobStatus::Ready | JobStatus::Standby);
        let last = self.wait(ready).await?;
        Ok(if ready(last) {
            JobStage::Ready
        } else {
            JobStage::Concluded
        })
    }

    /// Waits until the job is over. A stream of ours that is pending is finalized.
    pub async fn wait_concluded(&mut self) -> Result<(), Error> {
        self.wait(|_| false).await.map(drop)
    }

    /// The same for a job that takes no time where QEMU is well: [`Error::JobAtWork`] when it is not over by then, and
    /// it may go on.
    pub async fn wait_concluded_within(&mut self, limit: Duration) -> Result<(), Error> {
        let ended = tokio::time::timeout(limit, self.wait_concluded()).await;
        ended.unwrap_or_else(|_| {
            Err(Error::JobAtWork {
                job: self.id.clone(),
            })
        })
    }

    /// Waits until a job that was told not to finalize itself, as all streams are, has done its work and changed
    /// nothing else yet (`Pending`), or is over (`Concluded`).
    pub async fn wait_pending_or_concluded(&mut self) -> Result<JobStatus, Error> {
        self.wait(|status| status == JobStatus::Pending).await
    }

    async fn wait(&mut self, enough: impl Fn(JobStatus) -> bool) -> Result<JobStatus, Error> {
        loop {
            // Marked as seen before the question: news that come after it wake us again.
            self.news.borrow_and_update();
            if matches!(
                *self.connection.borrow_and_update(),
                Connection::Down { .. }
            ) {
                return Err(Error::Disconnected);
            }
            match self.bridge.query_job(&self.id).await {
                Ok(None) => return self.ended(),
                Ok(Some(Job {
                    status: JobStatus::Concluded,
                    error,
                    ..
                })) => return self.over(error),
                Ok(Some(job)) if enough(job.status) => return Ok(job.status),
                Ok(Some(job))
                    if job.status == JobStatus::Pending && self.ours && job.r#type == STREAM =>
                {
                    if self.finalize().await? {
                        continue;
                    }
                }
                // Or QEMU is busy, not gone: ask again.
                Ok(Some(_)) | Err(Error::TimedOut { .. }) => {}
                Err(e) => return Err(e),
            }
            tokio::select! {
                _ = self.news.changed() => {}
                _ = self.connection.changed() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Whether it is worth looking again at once.
    async fn finalize(&self) -> Result<bool, Error> {
        match self.bridge.finalize_job(&self.id).await {
            Ok(()) => Ok(true),
            // Somebody was faster, or QEMU is slow: a later look tells.
            Err(Error::Refused { .. } | Error::TimedOut { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// QEMU does not know the job any more: only an event can have told how it ended. It precedes the answer that
    /// the job is gone.
    fn ended(&self) -> Result<JobStatus, Error> {
        match self.news.borrow().outcome.clone() {
            Some(outcome) => self.over(outcome.err()),
            None => Err(Error::JobVanished {
                job: self.id.clone(),
            }),
        }
    }

    fn over(&self, error: Option<String>) -> Result<JobStatus, Error> {
        match error {
            Some(error) => Err(Error::JobFailed {
                job: self.id.clone(),
                error,
            }),
            None => Ok(JobStatus::Concluded),
        }
    }
}
