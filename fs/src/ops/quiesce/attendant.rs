//! Who stands by while the guest is frozen: a thread of its own for each use of the agent, with its
//! own runtime, so that nothing that keeps the engine or the host's disk waiting keeps the guest
//! frozen. It thaws when it is told to, when whoever would tell it is gone, and when the time is up;
//! and it goes on trying.
//! Invariant: the note on the files is there from before the freeze until the guest was seen thawed.

use super::Agent;
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, FreezeNote};
use crate::model::AgentState;
use qmpbridge::{AgentError, FreezeStatus, GuestAgent};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::{sleep, timeout};

/// Over all steps up to an agent that can be told to freeze: the caller's mkdir waits for it.
const REACH_DEADLINE: Duration = Duration::from_secs(4);
/// Between reaching the agent and the freeze overlays are made. Longer, and the verb hangs.
const PREPARE_DEADLINE: Duration = Duration::from_secs(60);
/// From the word "freeze" to the word "thaw", whatever else happens. Some guests (Windows) end a
/// freeze by themselves after 10 s; ours has to have ended by then.
const FROZEN_MAX: Duration = Duration::from_secs(7);
/// From then on the guest is reported as still frozen.
const THAWED_BY: Duration = Duration::from_secs(10);
/// What an attempt has at least, when that time is up.
const THAW_LEAST: Duration = Duration::from_secs(2);
/// Between two attempts to thaw, as long as a verb waits for it.
const PAUSE: Duration = Duration::from_millis(100);
/// The same when a person has been told.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// A guest that cannot be thawed for so long is switched off or needs a person; the next mount, or
/// the VM's return, tries again.
const GIVE_UP: Duration = Duration::from_secs(600);

/// The other end of the thread.
pub(super) struct Attendant {
    freeze: Option<oneshot::Sender<Vec<PathBuf>>>,
    frozen: Option<oneshot::Receiver<Result<(), Failure>>>,
    thaw: Option<oneshot::Sender<()>>,
    thawed: oneshot::Receiver<Thawed>,
}

/// How a freeze ended.
#[derive(Debug)]
pub(super) struct Thawed {
    /// From the word "freeze" to the answer to "thaw".
    pub(super) after: Duration,
    /// We were told to thaw before the time was up.
    pub(super) in_time: bool,
    /// How many were still frozen then; None: nobody knows.
    pub(super) filesystems: Option<u64>,
}

/// The thread's ends of the same.
struct Orders {
    reached: oneshot::Sender<Result<(), Failure>>,
    freeze: oneshot::Receiver<Vec<PathBuf>>,
    frozen: oneshot::Sender<Result<(), Failure>>,
    thaw: oneshot::Receiver<()>,
    thawed: oneshot::Sender<Thawed>,
}

impl Attendant {
    /// Reaches the agent, and makes sure that it can freeze and that the guest is not frozen.
    pub(super) async fn reach(
        agent: &Arc<Agent>,
        turn: OwnedMutexGuard<()>,
    ) -> Result<Attendant, Failure> {
        let (reached, is_reached) = oneshot::channel();
        let (freeze, to_freeze) = oneshot::channel();
        let (frozen, is_frozen) = oneshot::channel();
        let (thaw, to_thaw) = oneshot::channel();
        let (thawed, is_thawed) = oneshot::channel();
        let orders = Orders {
            reached,
            freeze: to_freeze,
            frozen,
            thaw: to_thaw,
            thawed,
        };
        let own = Arc::clone(agent);
        on_a_thread(async move {
            attend(&own, orders).await;
            drop(turn);
        })?;
        is_reached.await.unwrap_or_else(|_| Err(died()))?;
        Ok(Attendant {
            freeze: Some(freeze),
            frozen: Some(is_frozen),
            thaw: Some(thaw),
            thawed: is_thawed,
        })
    }

    /// Freezes the guest.
    pub(super) async fn freeze(&mut self, actives: Vec<PathBuf>) -> Result<(), Failure> {
        let (Some(freeze), Some(frozen)) = (self.freeze.take(), self.frozen.take()) else {
            return Err(Failure::new(Errno::EBUSY, "the guest was frozen already"));
        };
        freeze.send(actives).map_err(|_| {
            Failure::new(
                Errno::ETIMEDOUT,
                "the preparations took longer than the guest agent is kept",
            )
        })?;
        frozen.await.unwrap_or_else(|_| Err(died()))
    }

    /// Thaws it. Answers within the time that a guest may be frozen.
    pub(super) async fn thaw(mut self) -> Thawed {
        // one that is gone has thawed
        let _ = self.thaw.take().map(|thaw| thaw.send(()));
        self.thawed.await.unwrap_or(Thawed {
            after: Duration::ZERO,
            in_time: false,
            filesystems: None,
        })
    }
}

fn died() -> Failure {
    Failure::new(Errno::EIO, "the thread that talks to the guest agent died")
}

fn on_a_thread(work: impl Future<Output = ()> + Send + 'static) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("start a runtime", &error))?;
    std::thread::Builder::new()
        .name("agent".into())
        .spawn(move || runtime.block_on(work))
        .map(drop)
        .map_err(|error| Failure::io("start a thread", &error))
}

async fn attend(agent: &Agent, orders: Orders) {
    let reached = timeout(REACH_DEADLINE, reach(agent)).await;
    let slow = Err(AgentError::TimedOut {
        command: "guest-info",
    }
    .into());
    let mut link = match reached.unwrap_or(slow) {
        Ok((link, version)) => {
            agent.saw(AgentState::Answers { version });
            // whoever asked may have gone; then so is the order to freeze
            let _ = orders.reached.send(Ok(()));
            link
        }
        Err(failure) => {
            agent.saw(AgentState::Silent(failure.message.clone()));
            let _ = orders.reached.send(Err(failure));
            return;
        }
    };
    let Ok(Ok(actives)) = timeout(PREPARE_DEADLINE, orders.freeze).await else {
        return;
    };
    let notes = match note(agent, &actives) {
        Ok(notes) => notes,
        Err(failure) => {
            let _ = orders.frozen.send(Err(failure));
            return;
        }
    };
    let began = Instant::now();
    let frozen = match link.freeze().await {
        Ok(0) => Err(
            Failure::new(Errno::EIO, "the guest agent has frozen no filesystem")
                .next("look in the guest whether it has one mounted that can be frozen"),
        ),
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::from(error)),
    };
    if let Err(failure) = &frozen {
        agent.saw(AgentState::Silent(failure.message.clone()));
    }
    let is_frozen = frozen.is_ok();
    let heard = orders.frozen.send(frozen).is_ok();
    let mut in_time = true;
    if is_frozen && heard {
        let left = FROZEN_MAX.saturating_sub(began.elapsed());
        in_time = timeout(left, orders.thaw).await.is_ok();
        if !in_time {
            agent.log.note(&format!(
                "the guest is thawed after {} s, though the instant of the point has not passed",
                FROZEN_MAX.as_secs()
            ));
        }
    }
    let ending = Ending {
        began,
        in_time,
        told: Some(orders.thawed),
    };
    ending.thaw(agent, Some(link), notes).await;
}

/// An agent in step, which can freeze, of a guest that is not frozen.
async fn reach(agent: &Agent) -> Result<(GuestAgent, String), Failure> {
    let mut link = GuestAgent::connect(&agent.address).await?;
    if link.freeze_status().await? == FreezeStatus::Frozen {
        return Err(
            Failure::new(Errno::EBUSY, "the guest is frozen already, and not by us")
                .next(format!("if nobody needs it so: {}", agent.by_hand())),
        );
    }
    let version = link.version().await?;
    Ok((link, version))
}

fn note(agent: &Agent, actives: &[PathBuf]) -> Result<Vec<FreezeNote>, Failure> {
    let (address, now) = (agent.address.to_string(), crate::render::now());
    let mut notes = Vec::new();
    for active in actives {
        match layer_file::write_freeze(active, &address, &now) {
            Ok(note) => notes.push(note),
            Err(failure) => {
                forget(notes);
                return Err(failure);
            }
        }
    }
    Ok(notes)
}

fn forget(notes: Vec<FreezeNote>) {
    for failure in notes.into_iter().filter_map(|note| note.clear().err()) {
        // the next mount finds a guest that is not frozen, and tries again
        tracing::warn!(%failure, "a note of a freeze stays behind");
    }
}

/// Ends a freeze of which only the notes are known.
pub(super) async fn end_leftover(
    agent: &Arc<Agent>,
    turn: OwnedMutexGuard<()>,
    notes: Vec<FreezeNote>,
    deadline: Duration,
) -> Result<(), Failure> {
    let (told, ended) = oneshot::channel();
    let own = Arc::clone(agent);
    on_a_thread(async move {
        let ending = Ending {
            began: Instant::now(),
            in_time: false,
            told: Some(told),
        };
        ending.thaw(&own, None, notes).await;
        drop(turn);
    })?;
    match timeout(deadline, ended).await {
        Ok(Ok(thawed)) if thawed.filesystems > Some(0) => agent
            .log
            .note("a mount that was killed had left the guest frozen; it is thawed"),
        Ok(_) => tracing::debug!("a freeze that was noted had ended"),
        Err(_) => agent.log.note(&format!(
            "a mount that was killed may have left the guest frozen, and its agent does not answer; trying on (next: {})",
            agent.by_hand()
        )),
    }
    Ok(())
}

/// The end of a freeze, for which whoever waits is told once.
struct Ending {
    began: Instant,
    in_time: bool,
    told: Option<oneshot::Sender<Thawed>>,
}

impl Ending {
    async fn thaw(mut self, agent: &Agent, mut link: Option<GuestAgent>, notes: Vec<FreezeNote>) {
        loop {
            let left = THAWED_BY.saturating_sub(self.began.elapsed());
            match attempt(agent, &mut link, left.max(THAW_LEAST)).await {
                Ok(filesystems) => {
                    if self.told.is_none() {
                        agent.log.note(&format!(
                            "the guest is thawed at last, after {} s",
                            self.began.elapsed().as_secs()
                        ));
                    }
                    forget(notes);
                    self.tell(Some(filesystems));
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "thaw");
                    self.failed(agent, &error.into());
                }
            }
            if self.began.elapsed() > GIVE_UP {
                agent.log.note(&format!(
                    "the guest could not be thawed; trying again at the next mount (next: {})",
                    agent.by_hand()
                ));
                return;
            }
            sleep(if self.told.is_some() {
                PAUSE
            } else {
                LONG_PAUSE
            })
            .await;
        }
    }

    fn tell(&mut self, filesystems: Option<u64>) {
        if let Some(told) = self.told.take() {
            let thawed = Thawed {
                after: self.began.elapsed(),
                in_time: self.in_time,
                filesystems,
            };
            // a verb that failed does not wait
            let _ = told.send(thawed);
        }
    }

    fn failed(&mut self, agent: &Agent, failure: &Failure) {
        if self.told.is_some() && self.began.elapsed() >= THAWED_BY {
            agent.log.note(&format!(
                "THE GUEST MAY STILL BE FROZEN: {}; trying on (next: {})",
                failure.message,
                agent.by_hand()
            ));
            agent.saw(AgentState::Silent(failure.message.clone()));
            self.tell(None);
        }
    }
}

/// Thaws once; gives how many filesystems were still frozen.
async fn attempt(
    agent: &Agent,
    link: &mut Option<GuestAgent>,
    deadline: Duration,
) -> Result<u64, AgentError> {
    let (connected, fresh) = match link.take() {
        Some(connected) => (connected, Fresh::No),
        None => (GuestAgent::connect(&agent.address).await?, Fresh::Yes),
    };
    let connected = link.insert(connected);
    if let Fresh::Yes = fresh
        && connected.freeze_status().await? == FreezeStatus::Thawed
    {
        return Ok(0);
    }
    match connected.thaw(deadline).await {
        Err(AgentError::Closed) => {
            *link = None;
            Err(AgentError::Closed)
        }
        // it may say no because there was nothing left to thaw
        Err(refused @ AgentError::Refused { .. }) => match connected.freeze_status().await {
            Ok(FreezeStatus::Thawed) => Ok(0),
            Ok(FreezeStatus::Frozen) | Err(_) => Err(refused),
        },
        thawed => thawed,
    }
}

enum Fresh {
    Yes,
    No,
}
