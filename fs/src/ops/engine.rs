//! The engine's state: the bridge to QEMU, the published model, and who holds which disk.
//! Invariant: a disk is changed only by the holder of its [`DiskGuard`]; while it is held, others
//! see the disk as it was before (or as the holder shows it). Lives on the thread `qmp` alone.

mod backups;
mod jobs;
mod pace;
mod queue;
mod settling;
mod standstill;
mod state;
mod turns;

pub(super) use backups::Ending;
pub(super) use jobs::{Cancelled, Work};
pub(super) use queue::{Held, NextTurn, Queued};
pub(super) use settling::keep_settling;
pub(super) use standstill::{Alone, Standstill};
pub(super) use turns::{DiskGuard, Turn, at_work, patiently};

use super::EngineConfig;
use super::carried;
use super::command_line::CommandLine;
use super::digest::Digests;
use super::live;
use super::nodes::Carried;
use super::observe;
use super::published::Published;
use super::quiesce::Agent;
use super::served;
use super::shelf;
use super::sight::Sight;
use crate::backups::Listing;
use crate::errno::{Errno, Failure};
use crate::layer_file::Claim;
use crate::leases::Leases;
use crate::model::{
    Backup, ConnectionState, Contents, Disk, Job, Manager, MergePolicy, Model, StateJob, Vm,
};
use crate::report::Log;
use crate::view::{LayerCache, Pin};
use pace::Pace;
use qmpbridge::command::QueryStatus;
use qmpbridge::{Bridge, Connection, JobInfo, JobStatus};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify, watch};

/// See the module.
pub struct Engine {
    bridge: Option<Bridge>,
    pub(super) config: EngineConfig,
    pub(super) cache: Arc<LayerCache>,
    pub(super) leases: Arc<Leases>,
    pub(super) log: Arc<Log>,
    agent: Option<Arc<Agent>>,
    pub(super) lives: live::Book,
    /// Layers that others read for us.
    pub(super) served: served::Book,
    pub(super) digests: Digests,
    /// Of the disks that somebody holds, by their active paths.
    claims: RefCell<HashMap<PathBuf, Weak<Claim>>>,
    published: Arc<Published>,
    disks: RefCell<HashMap<String, Rc<DiskState>>>,
    /// What lies in the backup directory, by disk.
    listings: RefCell<HashMap<String, Listing>>,
    looked: Cell<Option<Instant>>,
    /// The connection since whose beginning all disks have been settled.
    settled: Cell<u64>,
    /// One look at a time, or an older one might be published after a newer.
    looking: Mutex<()>,
    /// One verb at a time stops the guest: another would let it go on too early.
    standing: Arc<Mutex<()>>,
    /// Counts changes of work: waiters look again at each.
    work: watch::Sender<u64>,
    /// Who else manages the VM, as of the last look.
    manager: Cell<Option<Manager>>,
    /// Since when the guest stands still for us.
    stopped: Cell<Option<Instant>>,
    /// Set while QEMU answers nobody.
    state_job: RefCell<Option<StateJob>>,
    unsettled: RefCell<BTreeSet<String>>,
    /// Wakes who settles.
    left_open: Notify,
    /// Lines of the log that were about one disk's trouble are not repeated at every look.
    reported: RefCell<BTreeSet<String>>,
    /// Jobs that were refused, and whose journal could not be taken back: they are not begun again.
    refused: RefCell<BTreeSet<String>>,
}

#[derive(Default)]
struct DiskState {
    lock: Arc<Mutex<()>>,
    held: Cell<bool>,
    /// A merge is at work, or one after another: nobody waits for the disk.
    merging: Cell<bool>,
    /// Whether the end of its job was asked for.
    cancelled: Cell<Cancelled>,
    /// What a person said of the job at work: bytes a second, and that it is to wait.
    asked_speed: Cell<Option<u64>>,
    asked_to_wait: Cell<bool>,
    /// The guest may stand still for the pivot: the job must not be held up now.
    pivoting: Cell<bool>,
    /// Counts who has held the disk: a look that began before is old news.
    turns: Cell<u64>,
    jobs: RefCell<Vec<Job>>,
    /// Backups that are made, or have failed, each as long as its job is there.
    making: RefCell<Vec<Backup>>,
    /// Backups that are merged away.
    removals: backups::Removals,
    /// Points that were removed while another merge was at work, in their order.
    queue: RefCell<VecDeque<Queued>>,
    frozen: RefCell<Option<Frozen>>,
    pace: RefCell<Pace>,
    /// How mirrors of all disks end.
    ending: RefCell<Ending>,
}

/// What a disk looks like while a merge runs: as it was, read through the maps made before.
struct Frozen {
    disk: Disk,
    _pin: Pin,
}

impl Engine {
    pub(super) fn new(
        bridge: Option<Bridge>,
        config: EngineConfig,
        published: Arc<Published>,
        cache: Arc<LayerCache>,
    ) -> Self {
        Engine {
            bridge,
            cache,
            leases: Arc::new(Leases::default()),
            log: Arc::clone(&config.log),
            agent: config
                .guest_agent
                .clone()
                .map(|address| Arc::new(Agent::new(address, Arc::clone(&config.log)))),
            config,
            lives: live::Book::default(),
            served: served::Book::default(),
            digests: Digests::default(),
            claims: RefCell::default(),
            published,
            disks: RefCell::default(),
            listings: RefCell::default(),
            looked: Cell::new(None),
            settled: Cell::new(0),
            looking: Mutex::default(),
            standing: Arc::default(),
            work: watch::Sender::new(0),
            manager: Cell::new(None),
            stopped: Cell::new(None),
            state_job: RefCell::default(),
            unsettled: RefCell::default(),
            left_open: Notify::new(),
            reported: RefCell::default(),
            refused: RefCell::default(),
        }
    }

    /// QEMU, when there is one.
    pub fn bridge(&self) -> Result<&Bridge, Failure> {
        self.bridge.as_ref().ok_or_else(|| {
            Failure::new(Errno::EROFS, "mounted without a QEMU (-o ro)").next("mount without -o ro")
        })
    }

    /// The guest agent, when one was named.
    pub(super) fn agent(&self) -> Option<&Arc<Agent>> {
        self.agent.as_ref()
    }

    pub(super) fn merge_policy(&self) -> MergePolicy {
        self.config.merge
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
        let jobs = bridge.jobs().await?;
        let mut disks = observe::disks(&graph, &self.sight(bridge));
        for disk in &mut disks {
            disk.jobs = observe::jobs_of_others(&graph, disk, &jobs);
        }
        self.manager.set(observe::manager(&graph));
        Ok(disks)
    }

    /// Refuses to change disks that have a live instant, of this mount or another, or that a job of another monitor is at work on.
    pub(super) async fn free_of_others(&self, wanted: &BTreeSet<String>) -> Result<(), Failure> {
        self.lives.refuse(wanted)?;
        let Ok(bridge) = self.bridge() else {
            return Ok(());
        };
        let jobs = bridge.jobs().await?;
        live::refuse_those_of_other_mounts(self, bridge, wanted, &jobs).await?;
        let at_work = |job: &JobInfo| !job.id.is_ours() && job.status != JobStatus::Concluded;
        if !jobs.iter().any(at_work) {
            return Ok(());
        }
        let disks = self.observe().await?;
        let shown = disks.iter().filter(|disk| wanted.contains(&disk.name));
        for (disk, job) in shown.flat_map(|disk| disk.jobs.iter().map(|job| (&disk.name, job))) {
            if !job.ended() {
                return Err(Failure::new(
                    Errno::EBUSY,
                    format!(
                        "another monitor has a {} job, {}, at work on disk '{disk}'",
                        job.verb, job.id
                    ),
                )
                .next(format!(
                    "wait for it: cat disks/{disk}/wait; or end it where it was begun"
                )));
            }
        }
        Ok(())
    }

    pub(super) fn sight(&self, bridge: &Bridge) -> Sight {
        Sight::of(
            bridge,
            &self.config.embedded_disks,
            self.config.verbs.read_only,
        )
    }

    /// Looks at QEMU and publishes what it sees. Disks that somebody is changing stay as they are
    /// shown, but for `own`, whose holders ask.
    pub(super) async fn refresh(&self, own: &[&DiskGuard]) -> Result<(), Failure> {
        let Some(bridge) = &self.bridge else {
            return match shelf::root(self) {
                Some(root) => {
                    let _one = self.looking.lock().await;
                    self.looked.set(Some(Instant::now()));
                    shelf::refresh(self, root).await
                }
                None => Ok(()),
            };
        };
        if let Connection::Down { reason, .. } = &*bridge.connection().borrow() {
            self.publish_connection(ConnectionState::Down(reason.clone()));
            return Err(qmpbridge::Error::Disconnected.into());
        }
        if own.is_empty() && self.is_settling() {
            // in the middle of a merge that QEMU's end cut short a point may be in no chain for a
            // moment: first the repairs, then the look
            return Err(
                Failure::new(Errno::EBUSY, "QEMU is back and its disks are being settled")
                    .next("try again in a moment"),
            );
        }
        self.qemu_is_free()?;
        let _one = self.looking.lock().await;
        let turns = self.turns();
        let mut disks = self.observe().await?;
        let run_state = if bridge.supports("query-status") {
            Some(bridge.run(QueryStatus).await?.status)
        } else {
            None
        };
        let name = self.vm_name().await?;
        self.look_at_backups(&name, &disks).await;
        // from here to the end nothing waits: what is published is of one piece
        let old = self.current();
        for disk in &mut disks {
            let state = self.state(&disk.name);
            let others = std::mem::take(&mut disk.jobs);
            let bitmaps = std::mem::take(&mut disk.bitmaps);
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
            disk.jobs = others;
            disk.bitmaps = bitmaps;
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
        disks.iter_mut().for_each(|disk| self.dress(disk));
        let vm = Vm {
            name,
            run_state,
            switched_off: self.switched_off(),
            qemu_version: bridge.version().to_string(),
            source: self.config.source_text.clone(),
            connection: ConnectionState::Up,
            capabilities: super::capabilities::of(self, bridge),
            merge: self.config.merge,
            quiesce: self.config.quiesce,
            agent: self.agent().map(|agent| agent.seen()),
            manager: self.manager(),
            state_job: self.state_job.borrow().clone(),
            contents: Contents::Machine,
        };
        self.looked.set(Some(Instant::now()));
        self.publish(Model { vm, disks });
        Ok(())
    }

    /// Who else manages the VM, as of the last look.
    pub(super) fn manager(&self) -> Option<Manager> {
        self.manager.get()
    }

    /// Whether the disks are in our own storage daemon, and nobody's VM is on.
    pub(super) fn switched_off(&self) -> bool {
        !self.config.embedded_disks.is_empty()
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

    /// Whether QEMU is back, and what it shows is not shown yet: first its disks are settled.
    pub(super) fn is_settling(&self) -> bool {
        self.generation()
            .is_some_and(|generation| generation != self.settled.get())
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
        self.published.current()
    }

    pub(super) fn publish(&self, model: Model) {
        self.log.published(&self.current(), &model);
        self.leases
            .shown(|disk, file| model.disk(disk).is_some_and(|disk| disk.has(file)));
        self.published.replace(model);
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
        let line = CommandLine::of(self.bridge.as_ref().and_then(Bridge::peer_pid));
        carried::for_disk(disk, line.as_ref()).0
    }
}

fn no_disk(name: &str) -> Failure {
    Failure::new(Errno::ENOENT, format!("QEMU has no disk '{name}' any more"))
        .next("see which there are: ls disks")
}
