//! The engine's state: the bridge to QEMU, the published model, and who holds which disk.
//! Invariant: a disk is changed only by the holder of its [`DiskGuard`]; while it is held, others
//! see the disk as it was before (or as the holder shows it). Lives on the thread `qmp` alone.

use super::carried;
use super::nodes::Carried;
use super::observe;
use super::quiesce::Agent;
use super::{EngineConfig, recover};
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, Claim};
use crate::leases::Leases;
use crate::model::{ConnectionState, Disk, Job, MergePolicy, Model, Vm};
use crate::report::Log;
use crate::view::{LayerCache, Pin};
use qmpbridge::command::{Cont, QueryName, QueryStatus, Stop};
use qmpbridge::{Bridge, Connection, JobId, JobInfo, JobStatus};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

/// How long a verb waits for another verb on the same disk; a snapshot takes well under a second.
const DISK_DEADLINE: Duration = Duration::from_secs(10);
/// How long it waits for another mount: that one may run a merge, which takes hours.
const CLAIM_DEADLINE: Duration = Duration::from_secs(1);
/// Between two attempts.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);
/// Between two attempts to settle what a lost connection left open.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// How long a verb waits for another one that has stopped the guest, for milliseconds as a rule.
const STANDSTILL_DEADLINE: Duration = Duration::from_secs(5);
/// After so many attempts a person has to look.
const SETTLE_ATTEMPTS: u32 = 60;

/// See the module.
pub struct Engine {
    bridge: Option<Bridge>,
    pub(super) config: EngineConfig,
    pub(super) cache: Arc<LayerCache>,
    pub(super) leases: Arc<Leases>,
    pub(super) log: Arc<Log>,
    agent: Option<Arc<Agent>>,
    model: Arc<RwLock<Arc<Model>>>,
    disks: RefCell<HashMap<String, Rc<DiskState>>>,
    looked: Cell<Option<Instant>>,
    /// The connection since whose beginning all disks have been settled.
    settled: Cell<u64>,
    /// One look at a time, or an older one might be published after a newer.
    looking: Mutex<()>,
    /// One verb at a time stops the guest: another would let it go on too early.
    standing: Arc<Mutex<()>>,
    /// Counts changes of work: waiters look again at each.
    work: watch::Sender<u64>,
    unsettled: RefCell<BTreeSet<String>>,
    /// Lines of the log that were about one disk's trouble are not repeated at every look.
    reported: RefCell<BTreeSet<String>>,
}

#[derive(Default)]
struct DiskState {
    lock: Arc<Mutex<()>>,
    held: Cell<bool>,
    merging: Cell<bool>,
    cancelled: Cell<bool>,
    /// The guest may stand still for the pivot: the job must not be held up now.
    pivoting: Cell<bool>,
    /// Counts who has held the disk: a look that began before is old news.
    turns: Cell<u64>,
    jobs: RefCell<Vec<Job>>,
    frozen: RefCell<Option<Frozen>>,
}

/// What a disk looks like while a merge runs: as it was, read through the maps made before.
struct Frozen {
    disk: Disk,
    _pin: Pin,
}

/// The right to change one disk.
pub struct DiskGuard {
    name: String,
    state: Rc<DiskState>,
    _lock: OwnedMutexGuard<()>,
    _claim: Option<Claim>,
}

impl DiskGuard {
    /// The disk's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The guest does not run, if it ran, until [`Engine::go_on`] is called with this.
pub(super) struct Standstill {
    stopped: bool,
    _alone: Option<OwnedMutexGuard<()>>,
}

impl Standstill {
    /// Whether the guest was stopped for it.
    pub(super) fn is_still(&self) -> bool {
        self.stopped
    }

    /// Nobody was stopped.
    pub(super) fn not_needed() -> Self {
        Standstill {
            stopped: false,
            _alone: None,
        }
    }
}

impl Drop for DiskGuard {
    fn drop(&mut self) {
        self.state.held.set(false);
    }
}

impl Engine {
    pub(super) fn new(
        bridge: Option<Bridge>,
        config: EngineConfig,
        model: Arc<RwLock<Arc<Model>>>,
    ) -> Self {
        Engine {
            bridge,
            cache: Arc::new(LayerCache::default()),
            leases: Arc::new(Leases::default()),
            log: Arc::clone(&config.log),
            agent: config
                .guest_agent
                .clone()
                .map(|address| Arc::new(Agent::new(address, Arc::clone(&config.log)))),
            config,
            model,
            disks: RefCell::default(),
            looked: Cell::new(None),
            settled: Cell::new(0),
            looking: Mutex::default(),
            standing: Arc::default(),
            work: watch::Sender::new(0),
            unsettled: RefCell::default(),
            reported: RefCell::default(),
        }
    }

    /// QEMU, when there is one.
    pub fn bridge(&self) -> Result<&Bridge, Failure> {
        self.bridge
            .as_ref()
            .ok_or_else(|| Failure::new(Errno::EROFS, "mounted without a QEMU (-o ro)"))
    }

    /// The guest agent, when one was named.
    pub(super) fn agent(&self) -> Option<&Arc<Agent>> {
        self.agent.as_ref()
    }

    pub(super) fn merge_policy(&self) -> MergePolicy {
        self.config.merge
    }

    /// Takes the right to change a disk.
    pub(super) async fn hold(&self, disk: &str) -> Result<DiskGuard, Failure> {
        self.hold_until(disk, tokio::time::Instant::now() + DISK_DEADLINE)
            .await
    }

    /// Takes the right to change several disks. Always in the order of their names: two who want
    /// them all, or one and all, never wait for each other.
    pub(super) async fn hold_all(
        &self,
        disks: &BTreeSet<String>,
    ) -> Result<Vec<DiskGuard>, Failure> {
        let deadline = tokio::time::Instant::now() + DISK_DEADLINE;
        // one that is busy for long is told before anybody waits for another
        if let Some(busy) = disks.iter().find(|disk| self.state(disk).merging.get()) {
            return Err(at_work(busy));
        }
        let mut guards = Vec::new();
        for disk in disks {
            guards.push(self.hold_until(disk, deadline).await?);
        }
        Ok(guards)
    }

    async fn hold_until(
        &self,
        disk: &str,
        deadline: tokio::time::Instant,
    ) -> Result<DiskGuard, Failure> {
        let state = self.state(disk);
        if state.merging.get() {
            return Err(at_work(disk));
        }
        let lock = tokio::time::timeout_at(deadline, Arc::clone(&state.lock).lock_owned())
            .await
            .map_err(|_| at_work(disk))?;
        let claim = self.claim(disk).await?;
        state.held.set(true);
        state.turns.set(state.turns.get().wrapping_add(1));
        let guard = DiskGuard {
            name: disk.to_owned(),
            state,
            _lock: lock,
            _claim: claim,
        };
        if self.unsettled.borrow().contains(disk) {
            recover::files_and_graph(self, &guard).await?;
        }
        Ok(guard)
    }

    /// Keeps other mounts of the same VM from changing the disk.
    async fn claim(&self, disk: &str) -> Result<Option<Claim>, Failure> {
        let Some(active) = self
            .current()
            .disk(disk)
            .map(|disk| disk.active_path.clone())
        else {
            return Ok(None);
        };
        let began = Instant::now();
        loop {
            match layer_file::claim(&active) {
                Err(failure)
                    if failure.errno == Errno::EBUSY && began.elapsed() < CLAIM_DEADLINE =>
                {
                    tokio::time::sleep(CLAIM_PAUSE).await;
                }
                claimed => return claimed.map(Some),
            }
        }
    }

    fn state(&self, disk: &str) -> Rc<DiskState> {
        Rc::clone(self.disks.borrow_mut().entry(disk.to_owned()).or_default())
    }

    /// The disk as QEMU has it now.
    pub(super) async fn observe_disk(&self, guard: &DiskGuard) -> Result<Disk, Failure> {
        self.observe_again(guard.name()).await
    }

    pub(super) async fn observe_again(&self, name: &str) -> Result<Disk, Failure> {
        let disks = self.observe().await?;
        disks
            .into_iter()
            .find(|disk| disk.name == name)
            .ok_or_else(|| no_disk(name))
    }

    pub(super) async fn observe(&self) -> Result<Vec<Disk>, Failure> {
        let bridge = self.bridge()?;
        let graph = bridge.graph().await?;
        Ok(observe::disks(&graph, &self.sight(bridge)))
    }

    pub(super) fn sight(&self, bridge: &Bridge) -> observe::Sight {
        observe::Sight::of(
            bridge.peer_pid(),
            &self.config.embedded_disks,
            self.config.verbs.read_only,
        )
    }

    /// Looks at QEMU and publishes what it sees. Disks that somebody is changing stay as they are
    /// shown, but for `own`, whose holders ask.
    pub(super) async fn refresh(&self, own: &[&DiskGuard]) -> Result<(), Failure> {
        let Some(bridge) = &self.bridge else {
            return Ok(());
        };
        if let Connection::Down { reason, .. } = &*bridge.connection().borrow() {
            self.publish_connection(ConnectionState::Down(reason.clone()));
            return Err(qmpbridge::Error::Disconnected.into());
        }
        if own.is_empty() && self.generation() != Some(self.settled.get()) {
            // in the middle of a merge that QEMU's end cut short a point may be in no chain for a
            // moment: first the repairs, then the look
            return Err(Failure::new(
                Errno::EBUSY,
                "QEMU is back and its disks are being settled",
            ));
        }
        let _one = self.looking.lock().await;
        let turns = self.turns();
        let mut disks = self.observe().await?;
        let run_state = if bridge.supports("query-status") {
            Some(bridge.run(QueryStatus).await?.status)
        } else {
            None
        };
        let name = match &self.config.vm_name {
            Some(name) => Some(name.clone()),
            None if bridge.supports("query-name") => bridge.run(QueryName).await?.name,
            None => None,
        };
        // from here to the end nothing waits: what is published is of one piece
        let old = self.current();
        for disk in &mut disks {
            let state = self.state(&disk.name);
            let mine = own.iter().any(|guard| guard.name() == disk.name);
            if mine {
                // the new chain and the new maps come into force together
                *state.frozen.borrow_mut() = None;
            }
            let stale = state.held.get()
                || turns
                    .get(&disk.name)
                    .is_some_and(|turn| *turn != state.turns.get());
            if !mine && stale {
                let frozen = state
                    .frozen
                    .borrow()
                    .as_ref()
                    .map(|frozen| frozen.disk.clone());
                if let Some(shown) = frozen.or_else(|| old.disk(&disk.name).cloned()) {
                    *disk = shown;
                }
            }
            disk.jobs = state.jobs.borrow().clone();
        }
        for (name, state) in self.disks.borrow().iter() {
            // a disk that is out of sight in the middle of a merge is not gone
            if let Some(frozen) = &*state.frozen.borrow()
                && !disks.iter().any(|disk| &disk.name == name)
            {
                disks.push(frozen.disk.clone());
            }
        }
        disks.sort_by(|a, b| a.name.cmp(&b.name));
        let vm = Vm {
            name: name
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| old.vm.name.clone()),
            run_state,
            qemu_version: bridge.version().to_string(),
            source: self.config.source_text.clone(),
            connection: ConnectionState::Up,
            capabilities: observe::capabilities(bridge, self.config.verbs),
            merge: self.config.merge,
            quiesce: self.config.quiesce,
            agent: self.agent().map(|agent| agent.seen()),
        };
        self.looked.set(Some(Instant::now()));
        self.publish(Model { vm, disks });
        Ok(())
    }

    /// Whether somebody is changing the disk.
    pub(super) fn is_held(&self, disk: &str) -> bool {
        self.state(disk).held.get()
    }

    fn turns(&self) -> HashMap<String, u64> {
        self.disks
            .borrow()
            .iter()
            .map(|(name, state)| (name.clone(), state.turns.get()))
            .collect()
    }

    /// The number of the connection to QEMU, while there is one.
    fn generation(&self) -> Option<u64> {
        match *self.bridge.as_ref()?.connection().borrow() {
            Connection::Up { generation } => Some(generation),
            Connection::Down { .. } => None,
        }
    }

    /// From now on what QEMU shows is shown: its disks are settled.
    pub(super) fn settled(&self) {
        if let Some(generation) = self.generation() {
            self.settled.set(generation);
        }
    }

    /// Like `refresh`, unless that was just done.
    pub(super) async fn refresh_if_older(&self, than: Duration) -> Result<(), Failure> {
        match self.looked.get() {
            Some(looked) if looked.elapsed() < than => Ok(()),
            Some(_) | None => self.refresh(&[]).await,
        }
    }

    pub(super) fn current(&self) -> Arc<Model> {
        Arc::clone(&self.model.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn publish(&self, model: Model) {
        *self.model.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(model);
        self.work
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(super) fn publish_connection(&self, connection: ConnectionState) {
        let mut model = Model::clone(&self.current());
        if model.vm.connection != connection {
            model.vm.run_state = None;
            model.vm.connection = connection;
            self.publish(model);
        }
    }

    /// Shows what is known of the guest agent.
    pub(super) fn publish_agent(&self) {
        let mut model = Model::clone(&self.current());
        let seen = self.agent().map(|agent| agent.seen());
        if model.vm.agent != seen {
            model.vm.agent = seen;
            self.publish(model);
        }
    }

    /// Options that nodes in the place of the disk's own must have.
    pub(super) fn carried(&self, disk: &Disk) -> Carried {
        carried::for_disk(disk, self.bridge.as_ref().and_then(Bridge::peer_pid)).0
    }

    /// Whether a guest runs. A storage daemon has none that could be stopped.
    pub(super) async fn running(&self) -> Result<bool, Failure> {
        let bridge = self.bridge()?;
        if !bridge.supports("stop") {
            return Ok(false);
        }
        Ok(bridge.run(QueryStatus).await?.running)
    }

    /// Whether the guest stands still because it was told to stop, by us or by a person: not for
    /// an I/O error, nor because it never ran.
    pub(super) async fn paused(&self) -> Result<bool, Failure> {
        let bridge = self.bridge()?;
        if !bridge.supports("stop") {
            return Ok(false);
        }
        Ok(bridge.run(QueryStatus).await?.status == "paused")
    }

    /// Stops the guest, if it runs, after `note` has written down that it is to be resumed.
    pub(super) async fn stand_still(
        &self,
        note: impl AsyncFnOnce() -> Result<(), Failure>,
    ) -> Result<Standstill, Failure> {
        let alone = self.alone().await?;
        let stopped = self.running().await?;
        if stopped {
            note().await?;
            self.stop_guest().await?;
        }
        Ok(Standstill {
            stopped,
            _alone: Some(alone),
        })
    }

    /// Lets the guest go on, if it was stopped for this.
    pub(super) async fn go_on(&self, standstill: Standstill) -> Result<(), Failure> {
        if standstill.stopped {
            self.resume_guest().await?;
        }
        Ok(())
    }

    /// The right to stop the guest, and to let it go on.
    pub(super) async fn alone(&self) -> Result<OwnedMutexGuard<()>, Failure> {
        let standing = Arc::clone(&self.standing);
        tokio::time::timeout(STANDSTILL_DEADLINE, standing.lock_owned())
            .await
            .map_err(|_| {
                Failure::new(Errno::ETIMEDOUT, "another verb has stopped the guest")
                    .next("try again when it has ended: cat wait")
            })
    }

    pub(super) async fn stop_guest(&self) -> Result<(), Failure> {
        self.bridge()?.run(Stop).await?;
        Ok(())
    }

    pub(super) async fn resume_guest(&self) -> Result<(), Failure> {
        self.bridge()?.run(Cont).await?;
        Ok(())
    }

    /// Shows a job from before its first step on: who looks, or waits, finds it at work.
    pub(super) fn announce(&self, guard: &DiskGuard, job: Job) {
        let state = &guard.state;
        state.merging.set(true);
        state.cancelled.set(false);
        state.pivoting.set(false);
        // what failed before is history once new work was accepted
        let mut jobs = state.jobs.borrow_mut();
        jobs.retain(|known| !known.ended() && known.id != job.id);
        jobs.push(job);
    }

    /// Shows the disk as it was, without the point that leaves, for as long as the job runs.
    pub(super) fn freeze(
        &self,
        guard: &DiskGuard,
        disk: &Disk,
        leaving: usize,
        job: Job,
        pin: Pin,
    ) {
        let mut shown = disk.clone();
        shown.layers[leaving].leaving = true;
        self.announce(guard, job);
        *guard.state.frozen.borrow_mut() = Some(Frozen {
            disk: shown,
            _pin: pin,
        });
        self.publish_jobs(guard.name());
    }

    fn publish_jobs(&self, disk: &str) {
        let state = self.state(disk);
        let mut model = Model::clone(&self.current());
        if let Some(shown) = model.disks.iter_mut().find(|shown| shown.name == disk) {
            if let Some(frozen) = &*state.frozen.borrow() {
                *shown = frozen.disk.clone();
            }
            shown.jobs = state.jobs.borrow().clone();
        }
        self.publish(model);
    }

    /// Brings a job's progress up to date.
    pub(super) async fn show_progress(&self, disk: &str, id: &str) {
        let Ok(bridge) = self.bridge() else { return };
        let Ok(jobs) = bridge.jobs().await else {
            return;
        };
        let Some(seen) = jobs.into_iter().find(|job| job.id.as_str() == id) else {
            return;
        };
        if let Some(job) = self
            .state(disk)
            .jobs
            .borrow_mut()
            .iter_mut()
            .find(|job| job.id == id && !job.ended())
        {
            job.state = word(&seen);
            job.progress = (seen.current_progress, seen.total_progress);
        }
        self.publish_jobs(disk);
    }

    /// A job as it is shown.
    pub(super) fn job(&self, disk: &str, id: &str) -> Option<Job> {
        let state = self.state(disk);
        let jobs = state.jobs.borrow();
        jobs.iter().find(|job| job.id == id).cloned()
    }

    /// The job has ended: shows the disk as it is now, and the failure as long as nobody dismisses it.
    pub(super) async fn thaw(&self, guard: &DiskGuard, id: &str, failed: Option<Failure>) {
        let state = &guard.state;
        if let Err(failure) = self.refresh(&[guard]).await {
            // what is shown stays as it was until QEMU can be asked
            tracing::debug!(%failure, "refresh after a merge");
            *state.frozen.borrow_mut() = None;
        }
        // only now: who waits for the job finds the tree as it is after it
        {
            let mut jobs = state.jobs.borrow_mut();
            match failed.filter(|_| !state.cancelled.get()) {
                None => jobs.retain(|job| job.id != id),
                Some(failure) => {
                    if let Some(job) = jobs.iter_mut().find(|job| job.id == id) {
                        job.state = "concluded".into();
                        job.error = Some(failure.to_string());
                    }
                }
            }
        }
        state.merging.set(false);
        self.publish_jobs(guard.name());
    }

    /// `rmdir jobs/ID`.
    pub(super) async fn cancel(&self, disk: &str, id: &str) -> Result<(), Failure> {
        let state = self.state(disk);
        let job = state.jobs.borrow().iter().find(|job| job.id == id).cloned();
        let job =
            job.ok_or_else(|| Failure::new(Errno::ENOENT, format!("there is no job '{id}'")))?;
        if job.ended() {
            state.jobs.borrow_mut().retain(|job| job.id != id);
            self.publish_jobs(disk);
            return Ok(());
        }
        if job.verb != "stream" {
            return Err(Failure::new(
                Errno::EPERM,
                "a commit has begun to change the layer below and cannot be taken back",
            )
            .next(format!("let it end: cat disks/{disk}/wait")));
        }
        let id = qmpbridge::JobId::new(id)
            .map_err(|error| Failure::new(Errno::EINVAL, error.to_string()))?;
        let bridge = self.bridge()?;
        // before QEMU is told: the job's end may be seen before the answer is
        state.cancelled.set(true);
        let Err(error) = bridge.cancel_job(&id, qmpbridge::Cancel::Force).await else {
            return Ok(());
        };
        state.cancelled.set(false);
        if bridge
            .jobs()
            .await
            .is_ok_and(|jobs| jobs.iter().all(|job| job.id != id))
        {
            return Err(Failure::new(
                Errno::ENOENT,
                format!("the job '{id}' has ended"),
            ));
        }
        Err(error.into())
    }

    /// From now on the disk's job is not paused; false if it is. Who wants to pause it looks at
    /// [`Engine::pivots`] right before QEMU is told, so one of the two sees the other.
    pub(super) async fn begin_pivot(&self, disk: &str, id: &JobId) -> Result<bool, Failure> {
        let state = self.state(disk);
        state.pivoting.set(true);
        let jobs = self.bridge()?.jobs().await?;
        let paused = jobs.iter().any(|job| job.id == *id && job.paused);
        state.pivoting.set(!paused);
        Ok(!paused)
    }

    /// Whether the disk's job is at its pivot.
    pub(super) fn pivots(&self, disk: &str) -> bool {
        self.state(disk).pivoting.get()
    }

    /// Whether work is under way in a scope, or how the last of it ended.
    pub(super) fn work_in(&self, disk: Option<&str>, id: Option<&str>) -> Work {
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

    pub(super) fn work_changes(&self) -> watch::Receiver<u64> {
        self.work.subscribe()
    }

    /// A verb ended without knowing what QEMU did: finds out as soon as QEMU (or its files) can tell.
    pub(super) fn settle_later(&self, disk: &str) {
        if self.unsettled.borrow_mut().insert(disk.to_owned()) {
            self.log.note(&format!(
                "disk '{disk}': the outcome is not known yet and is settled as soon as QEMU answers"
            ));
        }
    }

    pub(super) fn report_once(&self, text: &str) {
        if self.reported.borrow_mut().insert(text.to_owned()) {
            self.log.note(text);
        }
    }

    pub(super) fn unsettled(&self) -> Vec<String> {
        self.unsettled.borrow().iter().cloned().collect()
    }
}

/// The state of a job in QEMU's words, without the pauses that are QEMU's own for an instant.
fn word(job: &JobInfo) -> String {
    match (job.status, job.paused) {
        (JobStatus::Paused, false) => "running".into(),
        (JobStatus::Standby, false) => "ready".into(),
        (_, true) => "paused".into(),
        (status, false) => format!("{status:?}").to_lowercase(),
    }
}

fn at_work(disk: &str) -> Failure {
    Failure::new(Errno::EBUSY, format!("a job is at work on disk '{disk}'"))
        .next(format!("wait for it: cat disks/{disk}/wait"))
}

fn no_disk(name: &str) -> Failure {
    Failure::new(Errno::ENOENT, format!("QEMU has no disk '{name}' any more"))
}

/// What `wait` waits for.
pub(super) enum Work {
    UnderWay,
    Failed(String),
    Done,
}

/// Tries again and again to settle what was left open, until it is.
pub(super) async fn keep_settling(engine: Rc<Engine>) {
    let mut attempts: HashMap<String, u32> = HashMap::new();
    loop {
        tokio::time::sleep(SETTLE_EVERY).await;
        for disk in engine.unsettled() {
            let tries = attempts.entry(disk.clone()).or_default();
            if *tries >= SETTLE_ATTEMPTS {
                continue;
            }
            *tries += 1;
            // holding the disk settles it first; a merge that still runs is followed again
            let settled = match engine.hold(&disk).await {
                Ok(guard) => recover::disk(Rc::clone(&engine), guard).await,
                Err(failure) => Err(failure),
            };
            match settled {
                Ok(()) => {
                    engine.unsettled.borrow_mut().remove(&disk);
                    attempts.remove(&disk);
                    engine.log.note(&format!("disk '{disk}': settled"));
                    if let Err(failure) = engine.refresh(&[]).await {
                        tracing::debug!(%failure, "refresh");
                    }
                }
                Err(failure) => {
                    engine.report_once(&format!("disk '{disk}': not settled yet: {failure}"))
                }
            }
        }
    }
}
