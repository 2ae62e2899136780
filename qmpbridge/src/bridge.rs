//! The facade: what others do with QEMU, they do through a [`Bridge`].
//!
//! Knows how commands are put together to answers. Does not know what a snapshot is for.
//! Every wait here has a deadline, except the waits for jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::address::Address;
use crate::command::{
    BlockJobCancel, BlockJobSetSpeed, Command, CompletionMode, Job, JobCancel, JobComplete,
    JobDismiss, JobFinalize, JobPause, JobResume, QueryBlock, QueryBlockExports, QueryBlockJobs,
    QueryJobs, QueryNamedBlockNodes, Transaction, TransactionAction, TransactionProperties,
    XDebugQueryBlockGraph,
};
use crate::connection::{self, QemuVersion};
use crate::error::Error;
use crate::event::Event;
use crate::graph::{BlockGraph, Parts};
use crate::job::{Cancel, JobHandle, JobInfo, JobStatus, JobTable, STREAM};
use crate::names::JobId;
use crate::session::{self, Answer, Connection, Request, Shared};
use crate::wire;

/// How often the graph is read again when it changed in between. A job's start or end changes it a few times
/// within milliseconds.
const GRAPH_ATTEMPTS: u32 = 8;
const GRAPH_PAUSE: Duration = Duration::from_millis(10);
/// The handshake uses the ids below.
const FIRST_ID: u64 = 100;

/// A handle on QEMU. Cheap to clone; the connection lives as long as one of them.
#[derive(Clone)]
pub struct Bridge {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    next_id: Arc<AtomicU64>,
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bridge")
            .field("connection", &*self.shared.connection.borrow())
            .finish_non_exhaustive()
    }
}

impl Bridge {
    /// Connects, and from then on keeps the connection: when it is lost, it is made again as soon as QEMU is back.
    /// Must be called on a tokio runtime.
    pub async fn connect(address: Address) -> Result<Bridge, Error> {
        let established = connection::establish(&address).await?;
        let shared = Arc::new(Shared::new(established.peer));
        let (requests, queue) = session::queue();
        tokio::spawn(session::keep(
            address,
            established.link,
            queue,
            Arc::clone(&shared),
        ));
        Ok(Bridge {
            requests,
            shared,
            next_id: Arc::new(AtomicU64::new(FIRST_ID)),
        })
    }

    /// Whether QEMU can be talked to, and when that changes.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.shared.connection.subscribe()
    }

    /// The version of the QEMU last connected to.
    pub fn version(&self) -> QemuVersion {
        self.shared.peer().version.clone()
    }

    /// Whether the QEMU last connected to has a command.
    pub fn supports(&self, command: &str) -> bool {
        self.shared.peer().commands.contains(command)
    }

    /// The process that listens on a unix socket. Not QEMU when the socket was handed to it.
    pub fn peer_pid(&self) -> Option<i32> {
        self.shared.peer().place.pid
    }

    /// Whether QEMU is on another machine, as far as its socket tells: its files are not ours then, whatever their names.
    pub fn is_elsewhere(&self) -> bool {
        self.shared.peer().place.elsewhere
    }

    /// Which connection this is, counted from 1; None while there is none. Another one may be to another QEMU.
    pub fn generation(&self) -> Option<u64> {
        match *self.shared.connection.borrow() {
            Connection::Up { generation } => Some(generation),
            Connection::Down { .. } => None,
        }
    }

    /// QEMU's events from now on. A receiver that is slow loses some; all are lost while disconnected.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Runs a command.
    pub async fn run<C: Command>(&self, command: C) -> Result<C::Reply, Error> {
        let generation = self.generation().ok_or(Error::Disconnected)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let line = wire::encode(id, C::NAME, &command)
            .map_err(|e| Error::Protocol(format!("{} cannot be sent: {e}", C::NAME)))?;
        drop(command);
        tracing::debug!(id, command = C::NAME, "run");
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let request = Request {
                id,
                generation,
                line,
                reply,
            };
            self.requests
                .send(request)
                .await
                .map_err(|_| Error::Disconnected)?;
            answer.await.map_err(|_| Error::Disconnected)
        };
        match timeout(C::DEADLINE, exchange).await {
            Err(_) => Err(Error::TimedOut { command: C::NAME }),
            Ok(Err(e)) => Err(e),
            Ok(Ok(Answer::Error { class, desc })) => Err(Error::Refused {
                command: C::NAME,
                class,
                desc,
            }),
            Ok(Ok(Answer::Return(value))) => serde_json::from_str(value.get())
                .map_err(|e| Error::Protocol(format!("reply to {}: {e}", C::NAME))),
        }
    }

    /// Runs actions at one instant, all or none.
    pub async fn transaction(&self, actions: Vec<TransactionAction>) -> Result<(), Error> {
        self.run(Transaction {
            actions,
            properties: None,
        })
        .await
        .map(drop)
    }

    /// The same, and the jobs that it starts end well together or not at all.
    pub async fn grouped_transaction(&self, actions: Vec<TransactionAction>) -> Result<(), Error> {
        let completion_mode = CompletionMode::Grouped;
        self.run(Transaction {
            actions,
            properties: Some(TransactionProperties { completion_mode }),
        })
        .await
        .map(drop)
    }

    /// The block graph of now.
    pub async fn graph(&self) -> Result<BlockGraph, Error> {
        let mut attempt = 1;
        loop {
            let trouble = match self.deadly_stream().await? {
                Some(job) => format!(
                    "job {job} is a concluded stream that nobody dismissed, and this QEMU dies when its nodes are listed"
                ),
                None => match BlockGraph::build(self.graph_parts().await?) {
                    Ok(graph) => return Ok(graph),
                    Err(e) => e.to_string(),
                },
            };
            if attempt >= GRAPH_ATTEMPTS {
                return Err(Error::Protocol(trouble));
            }
            tracing::debug!(attempt, %trouble, "reading the graph again");
            tokio::time::sleep(GRAPH_PAUSE * attempt).await;
            attempt += 1;
        }
    }

    /// A job beside which `query-named-block-nodes` ends QEMU with SIGSEGV (10.0.2). Ours never come to that, see
    /// [`crate::command::BlockStream`]; another monitor's may be there until it is dismissed.
    async fn deadly_stream(&self) -> Result<Option<JobId>, Error> {
        let jobs = self.run(QueryJobs).await?;
        let deadly = |job: &Job| job.r#type == STREAM && job.status == JobStatus::Concluded;
        Ok(jobs.into_iter().find(deadly).map(|job| job.id))
    }

    async fn graph_parts(&self) -> Result<Parts, Error> {
        let devices = async {
            match self.supports(QueryBlock::NAME) {
                true => self.run(QueryBlock).await,
                false => Ok(Vec::new()),
            }
        };
        let exports = async {
            match self.supports(QueryBlockExports::NAME) {
                true => self.run(QueryBlockExports).await,
                false => Ok(Vec::new()),
            }
        };
        // Sent in one go: the less time between the answers, the better they fit.
        let nodes = self.run(QueryNamedBlockNodes { flat: true });
        let (graph, nodes, devices, exports) =
            tokio::try_join!(self.run(XDebugQueryBlockGraph), nodes, devices, exports)?;
        Ok(Parts {
            graph,
            nodes,
            devices,
            exports,
        })
    }

    /// All jobs.
    pub async fn jobs(&self) -> Result<Vec<JobInfo>, Error> {
        let (jobs, block_jobs) = tokio::try_join!(self.run(QueryJobs), self.run(QueryBlockJobs))?;
        let merge = |job: Job| {
            let block = block_jobs.iter().find(|b| b.device == job.id);
            JobInfo {
                kind: job.r#type,
                status: job.status,
                current_progress: job.current_progress,
                total_progress: job.total_progress,
                error: job.error,
                paused: block.is_some_and(|b| b.paused),
                io_status: block.and_then(|b| b.io_status.clone()),
                speed: block.map(|b| b.speed),
                ready: block.is_some_and(|b| b.ready),
                auto_dismiss: block.and_then(|b| b.auto_dismiss),
                auto_finalize: block.and_then(|b| b.auto_finalize),
                id: job.id,
            }
        };
        Ok(jobs.into_iter().map(merge).collect())
    }

    /// One job; [`Error::JobVanished`] if QEMU does not know it.
    pub async fn job(&self, id: &JobId) -> Result<JobInfo, Error> {
        let found = self.jobs().await?.into_iter().find(|job| job.id == *id);
        found.ok_or_else(|| Error::JobVanished { job: id.clone() })
    }

    pub(crate) async fn query_job(&self, id: &JobId) -> Result<Option<Job>, Error> {
        Ok(self
            .run(QueryJobs)
            .await?
            .into_iter()
            .find(|job| job.id == *id))
    }

    pub(crate) fn job_table(&self) -> &JobTable {
        &self.shared.jobs
    }

    /// Sends the command that starts a job, with the job watched from before its first event.
    /// The command must carry that id and, where it has a choice, `auto_dismiss: false`, or the end of the job may
    /// go unseen.
    pub async fn start_job<C: Command>(
        &self,
        job_id: JobId,
        command: C,
    ) -> Result<JobHandle, Error> {
        let handle = JobHandle::register(self, job_id, true);
        self.run(command).await?;
        Ok(handle)
    }

    /// Watches a job that is about to be started by other means (a transaction). Wait only after that.
    pub fn expect_job(&self, job_id: JobId) -> JobHandle {
        JobHandle::register(self, job_id, true)
    }

    /// Watches a job that was found, after a reconnect or a restart.
    pub async fn attach_job(&self, job_id: JobId) -> Result<JobHandle, Error> {
        let ours = job_id.is_ours();
        let handle = JobHandle::register(self, job_id, ours);
        match self.query_job(handle.id()).await? {
            Some(_) => Ok(handle),
            None => Err(Error::JobVanished {
                job: handle.id().clone(),
            }),
        }
    }

    /// Pivots a job that is ready.
    pub async fn complete_job(&self, id: &JobId) -> Result<(), Error> {
        self.run(JobComplete { id: id.clone() }).await.map(drop)
    }

    /// Ends a job that is pending.
    pub async fn finalize_job(&self, id: &JobId) -> Result<(), Error> {
        self.run(JobFinalize { id: id.clone() }).await.map(drop)
    }

    /// Cancels a job; it is over when it is concluded.
    pub async fn cancel_job(&self, id: &JobId, how: Cancel) -> Result<(), Error> {
        match how {
            Cancel::Force => self.run(JobCancel { id: id.clone() }).await.map(drop),
            Cancel::Soft => self
                .run(BlockJobCancel {
                    device: id.clone(),
                    force: false,
                })
                .await
                .map(drop),
        }
    }

    /// Holds a job.
    pub async fn pause_job(&self, id: &JobId) -> Result<(), Error> {
        self.run(JobPause { id: id.clone() }).await.map(drop)
    }

    /// Lets a held job go on; also one that stopped at an I/O error.
    pub async fn resume_job(&self, id: &JobId) -> Result<(), Error> {
        self.run(JobResume { id: id.clone() }).await.map(drop)
    }

    /// Limits a block job, in bytes a second; 0 is no limit.
    pub async fn set_job_speed(&self, id: &JobId, speed: u64) -> Result<(), Error> {
        self.run(BlockJobSetSpeed {
            device: id.clone(),
            speed,
        })
        .await
        .map(drop)
    }

    /// Forgets a concluded job. A job that is gone already, as a stream is at its end, is no error.
    /// A refusal is not taken at its first word: until it is dismissed, a job keeps its nodes.
    pub async fn dismiss_job(&self, id: &JobId) -> Result<(), Error> {
        let dismissed = match self.run(JobDismiss { id: id.clone() }).await {
            Err(Error::Refused { .. }) => match self.query_job(id).await {
                Ok(None) => Ok(()),
                Ok(Some(_)) => self.run(JobDismiss { id: id.clone() }).await.map(drop),
                Err(error) => Err(error),
            },
            dismissed => dismissed.map(drop),
        };
        match &dismissed {
            Ok(()) => self.shared.undismissed.forget(id),
            Err(_) => self.shared.undismissed.remember(id),
        }
        dismissed
    }

    /// Jobs of which [`Self::dismiss_job`] gave an error: they may be there still.
    pub fn undismissed(&self) -> Vec<JobId> {
        self.shared.undismissed.all()
    }

    /// Forgets one of those, now that QEMU may answer. One that is gone, or not over, is nobody's to forget.
    pub async fn dismiss_late(&self, id: &JobId) -> Result<(), Error> {
        match self.query_job(id).await? {
            Some(job) if job.status == JobStatus::Concluded => self.dismiss_job(id).await,
            Some(_) | None => {
                self.shared.undismissed.forget(id);
                Ok(())
            }
        }
    }
}
