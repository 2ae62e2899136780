//! The guest's filesystems, frozen by its agent for the instant of a point: reach the agent before
//! anything is prepared, freeze right before the instant, thaw right after it. What may go wrong
//! here never costs a point (`quiesce=try`), or costs nothing but the point (`require`).
//! It knows what was asked for and what came of it; the freeze itself is the attendant's.
//! Invariant: whoever drops a [`Quiescing`] has the guest thawed.

mod attendant;

use super::engine::Engine;
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, FreezeNote};
use crate::model::{self, AgentState, Disk, InternalRecord, PointRecord, Quiesce};
use crate::report::Log;
use attendant::{Attendant, Thawed};
use qmpbridge::Address;
use qmpbridge::command::QueryStatus;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;

/// How long a point waits for another one that has the guest frozen: longer than any may.
const TURN_DEADLINE: Duration = Duration::from_secs(12);
/// How long a mount waits for the end of a freeze that another one left.
const LEFTOVER_DEADLINE: Duration = Duration::from_secs(4);
/// The reason in point.json: an extended attribute has little room.
const REASON_MAX: usize = 120;

/// The guest agent of a mount.
pub(super) struct Agent {
    address: Address,
    state: Mutex<AgentState>,
    /// One use at a time: the agent serves one client, and one freeze.
    turn: Arc<tokio::sync::Mutex<()>>,
    log: Arc<Log>,
}

impl Agent {
    pub(super) fn new(address: Address, log: Arc<Log>) -> Self {
        Agent {
            address,
            state: Mutex::default(),
            turn: Arc::default(),
            log,
        }
    }

    /// As vm.json shows it.
    pub(super) fn seen(&self) -> model::Agent {
        model::Agent {
            address: self.address.to_string(),
            state: self.state().clone(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, AgentState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saw(&self, state: AgentState) {
        *self.state() = state;
    }

    async fn turn(&self, deadline: Duration) -> Result<OwnedMutexGuard<()>, Failure> {
        tokio::time::timeout(deadline, Arc::clone(&self.turn).lock_owned())
            .await
            .map_err(|_| {
                Failure::new(Errno::EBUSY, "an earlier freeze of the guest has not ended")
                    .next("the log says why; try again when the guest is thawed")
            })
    }

    /// Returns when no freeze is under way, or when that takes too long: called before the process
    /// ends.
    pub(super) async fn idle(&self) {
        if let Err(failure) = self.turn(TURN_DEADLINE).await {
            tracing::error!(%failure, "the guest may be frozen");
        }
    }

    /// What a person does when we cannot.
    fn by_hand(&self) -> String {
        let socat = match &self.address {
            Address::Unix(path) => format!("UNIX-CONNECT:{}", path.display()),
            Address::Tcp(endpoint) => format!("TCP:{endpoint}"),
        };
        format!("echo '{{\"execute\":\"guest-fsfreeze-thaw\"}}' | socat -t3 - {socat}")
    }
}

/// A point's way through freeze and thaw.
pub(super) struct Quiescing {
    mode: Quiesce,
    stage: Stage,
}

enum Stage {
    NotAsked,
    /// Nobody is frozen, and why.
    GivenUp(Failure),
    Reached(Attendant),
    Frozen(Attendant),
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Quiesced {
    frozen_ms: Option<u64>,
    /// None: frozen for all of the instant, or not asked to be.
    error: Option<String>,
}

impl Quiesced {
    /// Writes down what kind of instant it was.
    pub(super) fn tell(&self, record: &mut PointRecord) {
        record.consistency = self.consistency().into();
        record.frozen_ms = self.frozen_ms;
        record.quiesce_error.clone_from(&self.error);
    }

    /// The same for an internal snapshot.
    pub(super) fn of_internal(&self, id: String, time: u64) -> InternalRecord {
        InternalRecord {
            id,
            time,
            consistency: self.consistency().into(),
            frozen_ms: self.frozen_ms,
            quiesce_error: self.error.clone(),
        }
    }

    fn consistency(&self) -> &'static str {
        if self.frozen_ms.is_some() && self.error.is_none() {
            "filesystem"
        } else {
            "crash"
        }
    }

    fn not(failure: &Failure, frozen_ms: Option<u64>) -> Self {
        let mut error = failure.message.clone();
        let mut ends = (0..=REASON_MAX).rev();
        let end = ends.find(|end| error.is_char_boundary(*end));
        error.truncate(end.unwrap_or(0));
        Quiesced {
            frozen_ms,
            error: Some(error),
        }
    }
}

impl Quiescing {
    /// Reaches the agent, if it is to be asked. Nothing is frozen yet.
    pub(super) async fn begin(engine: &Engine) -> Result<Quiescing, Failure> {
        let mode = engine.config.quiesce;
        let stage = match (mode, engine.agent()) {
            (Quiesce::Off, _) | (_, None) => Stage::NotAsked,
            (Quiesce::Try | Quiesce::Require, Some(agent)) => match reach(engine, agent).await {
                Ok(attendant) => Stage::Reached(attendant),
                Err(failure) => given_up(mode, failure)?,
            },
        };
        Ok(Quiescing { mode, stage })
    }

    /// Freezes the guest. `actives` are the files whose instant it is: a note on them outlives this
    /// process.
    pub(super) async fn freeze(&mut self, actives: Vec<PathBuf>) -> Result<(), Failure> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::NotAsked) {
            Stage::Reached(mut attendant) => match attendant.freeze(actives).await {
                Ok(()) => Stage::Frozen(attendant),
                // without the attendant: it thaws what may have been frozen
                Err(failure) => given_up(self.mode, failure)?,
            },
            as_it_was @ (Stage::NotAsked | Stage::GivenUp(_) | Stage::Frozen(_)) => as_it_was,
        };
        Ok(())
    }

    /// Thaws the guest, and says in the log what kind of instant `what` is.
    pub(super) async fn thaw(&mut self, engine: &Engine, what: &str) -> Quiesced {
        let (frozen_ms, failure) = match std::mem::replace(&mut self.stage, Stage::NotAsked) {
            Stage::NotAsked => return Quiesced::default(),
            Stage::GivenUp(failure) => (None, failure),
            Stage::Reached(_) => (None, not_running()),
            Stage::Frozen(attendant) => {
                let thawed = attendant.thaw().await;
                let ms = u64::try_from(thawed.after.as_millis()).unwrap_or(u64::MAX);
                match doubt(&thawed) {
                    Some(why) => (Some(ms), Failure::new(Errno::EIO, why)),
                    None => {
                        let words = format!("{what}: the guest was frozen for {ms} ms");
                        engine.log.note(&words);
                        return Quiesced {
                            frozen_ms: Some(ms),
                            error: None,
                        };
                    }
                }
            }
        };
        let words = format!("{what}: as after a power cut: {failure}");
        engine.log.note(&words);
        Quiesced::not(&failure, frozen_ms)
    }
}

fn given_up(mode: Quiesce, failure: Failure) -> Result<Stage, Failure> {
    match mode {
        Quiesce::Off => Ok(Stage::NotAsked),
        Quiesce::Try => Ok(Stage::GivenUp(failure)),
        Quiesce::Require => Err(Failure {
            message: format!("no point without a frozen guest: {}", failure.message),
            ..failure
        }
        .nothing_done()),
    }
}

/// Why it is not sure that the guest was frozen all through the instant; None when it is.
fn doubt(thawed: &Thawed) -> Option<&'static str> {
    match (thawed.in_time, thawed.filesystems) {
        (false, _) => Some("it took longer than a guest may be frozen"),
        (true, None) => {
            Some("the guest could not be thawed, so that nobody knows whether it was frozen")
        }
        (true, Some(0)) => Some("the guest was thawed by others before the instant had passed"),
        (true, Some(_)) => None,
    }
}

fn not_running() -> Failure {
    Failure::new(
        Errno::ENOTCONN,
        "the guest does not run, so its agent cannot answer",
    )
    .next("let it run (cont), or mount with -o quiesce=off")
}

async fn reach(engine: &Engine, agent: &Arc<Agent>) -> Result<Attendant, Failure> {
    let bridge = engine.bridge()?;
    // not in the middle of another verb's standstill
    let alone = engine.alone().await?;
    if bridge.supports("query-status") && !bridge.run(QueryStatus).await?.running {
        return Err(not_running());
    }
    drop(alone);
    let turn = agent.turn(TURN_DEADLINE).await?;
    Attendant::reach(agent, turn).await
}

/// Finds out whether the agent answers: for vm.json, and so that a person is told before a point is
/// made without it.
pub(super) async fn look(engine: &Engine) {
    let Some(agent) = engine.agent() else { return };
    match reach(engine, agent).await {
        Ok(_) => {
            if let AgentState::Answers { version } = &*agent.state() {
                engine.report_once(&format!("the guest agent answers (version {version})"));
            }
        }
        Err(failure) => {
            engine.report_once(&format!("the guest cannot be frozen now: {failure}"));
        }
    }
    engine.publish_agent();
}

/// Ends a freeze that a killed mount left: its note is on a file of this disk. Trouble with it is
/// told, and keeps nothing else from being settled.
pub(super) async fn thaw_leftover(engine: &Engine, disk: &Disk) {
    let mut notes: Vec<FreezeNote> = Vec::new();
    for layer in disk.chain().filter(|layer| layer.file.is_some()) {
        match (layer_file::read_freeze(&layer.path), engine.agent()) {
            (Ok(None), _) => {}
            (Ok(Some((note, _))), Some(_)) => notes.push(note),
            (Ok(Some((_, mark))), None) => engine.report_once(&format!(
                "disk '{}': a mount that was killed may have left the guest frozen at {} through {} (next: mount with -o guest_agent=SOCKET, which thaws it)",
                disk.name, mark.since, mark.agent
            )),
            (Err(failure), _) => {
                engine.report_once(&format!("disk '{}': {failure}", disk.name));
            }
        }
    }
    let Some(agent) = engine.agent().filter(|_| !notes.is_empty()) else {
        return;
    };
    // whoever has the turn in this process is about to thaw, too
    let Ok(turn) = agent.turn(LEFTOVER_DEADLINE).await else {
        return;
    };
    let ended = attendant::end_leftover(agent, turn, notes, LEFTOVER_DEADLINE).await;
    if let Err(failure) = ended {
        engine.report_once(&format!("the guest may be frozen: {failure}"));
    }
}

#[cfg(test)]
mod tests {
    use super::{Errno, Failure, Quiesced, REASON_MAX, Thawed, doubt};
    use crate::model::PointRecord;
    use std::time::Duration;

    fn thawed(in_time: bool, filesystems: Option<u64>) -> Thawed {
        Thawed {
            after: Duration::from_millis(12),
            in_time,
            filesystems,
        }
    }

    #[test]
    fn only_a_guest_that_was_frozen_to_the_end_is_called_so() {
        assert_eq!(doubt(&thawed(true, Some(2))), None);
        for bad in [
            thawed(false, Some(2)),
            thawed(true, Some(0)),
            thawed(true, None),
            thawed(false, None),
        ] {
            assert!(doubt(&bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn the_record_says_what_came_of_it() {
        let mut record = PointRecord {
            id: String::new(),
            name: "a".into(),
            time: String::new(),
            consistency: "crash".into(),
            frozen_ms: None,
            quiesce_error: None,
            inode: 1,
            group: None,
        };
        let not_asked = record.clone();
        Quiesced::default().tell(&mut record);
        assert_eq!(record, not_asked);
        let frozen = Quiesced {
            frozen_ms: Some(12),
            error: None,
        };
        frozen.tell(&mut record);
        assert_eq!(record.consistency, "filesystem");
        assert_eq!(record.frozen_ms, Some(12));
        let long = Failure::new(Errno::EIO, "ä".repeat(REASON_MAX));
        Quiesced::not(&long, Some(12)).tell(&mut record);
        assert_eq!(record.consistency, "crash");
        let told = record.quiesce_error.expect("a reason");
        assert!(told.len() <= REASON_MAX && told.starts_with('ä'));
    }

    #[test]
    fn an_old_record_is_read_and_a_new_one_by_an_old_reader() {
        let old = r#"{"id":"1","name":"a","time":"","consistency":"crash","inode":1}"#;
        let record: PointRecord = serde_json::from_str(old).expect("readable");
        assert_eq!((record.frozen_ms, &record.quiesce_error), (None, &None));
        let written = serde_json::to_string(&record).expect("writable");
        assert_eq!(written, old);
    }
}
