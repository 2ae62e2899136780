//! One job of QEMU's on the state of the whole VM, from before its command is sent to the end.
//! The command is answered when the job is over, and until then QEMU answers nothing else: so the
//! caller is answered by the events that come before. Invariants: while it is at work QEMU is asked
//! nothing (`Engine::qemu_is_free`), and its disks are held.

use super::names;
use crate::errno::{Errno, Failure};
use crate::model::{Job, StateJob, StateVerb};
use crate::ops::Answer;
use crate::ops::engine::{DiskGuard, Engine};
use crate::ops::merge;
use qmpbridge::command::{Command, Empty};
use qmpbridge::{Event, EventKind, JobId, JobStatus};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::sleep;

/// A job that is at work for so long was not refused. Small VMs are saved by then.
const ACCEPT_GRACE: Duration = Duration::from_millis(300);
/// By then QEMU has begun, or hangs.
const BEGIN_DEADLINE: Duration = Duration::from_secs(10);

/// Ids of ours: `qmpfs-checkpoint-<hex>`.
const OP: &str = "checkpoint";

/// Whether a job is one of these, left by a daemon that died.
pub(in crate::ops) fn is_state_job(id: &JobId) -> bool {
    id.op() == Some(OP)
}

/// The id of a job to come.
pub(super) fn fresh() -> Result<JobId, Failure> {
    Ok(JobId::fresh(OP)?)
}

/// What is to be done, with the disks it is done to.
pub(super) struct StateWork {
    engine: Rc<Engine>,
    guards: Vec<DiskGuard>,
    id: JobId,
    verb: StateVerb,
    name: String,
}

impl StateWork {
    pub(super) fn new(
        engine: &Rc<Engine>,
        guards: Vec<DiskGuard>,
        verb: StateVerb,
        name: &str,
    ) -> Result<Self, Failure> {
        Ok(StateWork {
            engine: Rc::clone(engine),
            guards,
            id: fresh()?,
            verb,
            name: name.to_owned(),
        })
    }

    pub(super) fn id(&self) -> &JobId {
        &self.id
    }

    /// Sends the command and sees the job through. `answer` is called when QEMU is at work, or has
    /// refused, or is done.
    pub(super) async fn run<C: Command<Reply = Empty>>(self, command: C, answer: Answer<()>) {
        let id = self.id.clone();
        let work = async |work: &Self, waiting: &mut _| {
            let outcome = work.follow(&id, command, waiting).await;
            work.dismiss_after(&id, outcome).await
        };
        self.run_all(work, answer).await;
    }

    /// The same with more than one command.
    pub(super) async fn run_all(
        self,
        work: impl AsyncFnOnce(&Self, &mut Option<Answer<()>>) -> Result<(), Failure>,
        answer: Answer<()>,
    ) {
        let began = Instant::now();
        self.show();
        let mut waiting = Some(answer);
        let outcome = work(&self, &mut waiting).await;
        self.engine.end_state_job();
        let guards: Vec<&DiskGuard> = self.guards.iter().collect();
        if let Err(failure) = self.engine.refresh(&guards).await {
            tracing::debug!(%failure, "refresh after a checkpoint's job");
            self.engine.publish_state_job();
        }
        // who was told of the failure need not dismiss it
        let failed = outcome.as_ref().err().filter(|_| waiting.is_none());
        for disk in names(&self.guards) {
            self.engine.end_job(&disk, self.id.as_str(), failed);
        }
        self.write_down(&outcome, began.elapsed());
        if let Some(answer) = waiting {
            answer(outcome);
        }
        // removals that came meanwhile wait behind it
        for guard in self.guards {
            let engine = Rc::clone(&self.engine);
            tokio::task::spawn_local(async move { merge::go_on(&engine, &guard).await });
        }
    }

    fn show(&self) {
        for guard in &self.guards {
            let job = Job::new(&self.id, self.verb.word(), &self.name, "running");
            self.engine.announce(guard, job);
            self.engine.publish_jobs(guard.name());
        }
        self.engine.begin_state_job(StateJob {
            verb: self.verb,
            name: self.name.clone(),
            since: SystemTime::now(),
        });
    }

    /// To the job's end; takes the answer out of `waiting` if it was to be given before. How it ended is to be seen until
    /// it is dismissed.
    pub(super) async fn follow<C: Command<Reply = Empty>>(
        &self,
        id: &JobId,
        command: C,
        waiting: &mut Option<Answer<()>>,
    ) -> Result<(), Failure> {
        let bridge = self.engine.bridge()?;
        let mut events = bridge.events();
        let mut job = bridge.expect_job(id.clone());
        let command = bridge.run(command);
        tokio::pin!(command);
        let early = tokio::select! {
            answered = &mut command => Some(answered),
            at_work = at_work(&mut events, id) => {
                if let Some(answer) = waiting.take() {
                    answer(at_work);
                }
                None
            }
        };
        match early {
            Some(answered) => answered,
            None => command.await,
        }?;
        Ok(job.wait_concluded().await?)
    }

    /// What became of a job is written down, or tells nothing more.
    pub(super) async fn dismiss(&self, id: &JobId) -> Result<(), Failure> {
        Ok(self.engine.bridge()?.dismiss_job(id).await?)
    }

    /// The same of one whose end is all there is to know.
    pub(super) async fn dismiss_after(
        &self,
        id: &JobId,
        outcome: Result<(), Failure>,
    ) -> Result<(), Failure> {
        match &outcome {
            Err(failure) if !failure.outcome_known() => outcome,
            Ok(()) | Err(_) => {
                let dismissed = self.dismiss(id).await;
                outcome.and(dismissed)
            }
        }
    }

    fn write_down(&self, outcome: &Result<(), Failure>, took: Duration) {
        let (log, name, verb) = (&self.engine.log, &self.name, self.verb.word());
        match outcome {
            Ok(()) => log.note(&format!(
                "{verb} of the checkpoint '{name}' is done, after {} ms",
                took.as_millis()
            )),
            Err(failure) => log.note(&format!("{verb} of the checkpoint '{name}': {failure}")),
        }
        if !outcome.as_ref().err().is_none_or(Failure::outcome_known) {
            for disk in names(&self.guards) {
                self.engine.settle_later(&disk);
            }
        }
    }
}

/// Returns when the job has been at work for a moment, or does not begin.
async fn at_work(events: &mut Receiver<Event>, id: &JobId) -> Result<(), Failure> {
    let begins = async {
        loop {
            match events.recv().await {
                Ok(event) => match event.kind() {
                    EventKind::JobStatusChange {
                        id: of,
                        status: JobStatus::Running,
                    } if of == *id => return,
                    _ => {}
                },
                Err(RecvError::Lagged(_)) => {}
                // the command's own answer tells
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    if tokio::time::timeout(BEGIN_DEADLINE, begins).await.is_err() {
        return Err(
            Failure::new(Errno::ETIMEDOUT, "QEMU has not begun with it in time")
                .next("look whether QEMU hangs; it does it as soon as it answers: cat log"),
        );
    }
    sleep(ACCEPT_GRACE).await;
    Ok(())
}
