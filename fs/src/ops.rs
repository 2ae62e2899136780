//! The engine: the one place that asks QEMU to do something. It lives on the thread `qmp`,
//! takes [`Request`]s from the FUSE workers through a bounded queue, and publishes a new
//! [`Model`] when QEMU's graph has changed. One verb a file: snapshot, internal, merge; recover
//! finishes or undoes what a killed daemon left.

mod blocking;
mod branch;
mod carried;
mod control;
mod durable;
mod embedded;
mod engine;
mod group;
mod internal;
pub mod merge;
mod nodes;
mod observe;
mod open;
mod overlay;
mod quiesce;
mod recover;
mod rollback;
mod settle;
mod snapshot;
mod watch;

use crate::errno::{Errno, Failure};
use crate::intent::{self, Intent, Verbs};
pub use crate::model::MergePolicy;
use crate::model::{Format, Model, Quiesce};
use crate::report::Log;
use crate::tree::PointKey;
use crate::view::{LayerCache, View};
use embedded::StorageDaemon;
use engine::{DiskGuard, Engine, Work};
pub use observe::name_internals;
use qmpbridge::{Address, Bridge};
use qmpfs_qcow2::CacheBytes;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Requests waiting for the engine: more callers than that at once are told EBUSY.
const REQUESTS: usize = 1024;
/// A listing is at most this old.
const FRESH: Duration = Duration::from_millis(50);
/// How long a listing waits for QEMU.
const REFRESH_DEADLINE: Duration = Duration::from_secs(1);
/// How long the reader of a job's files waits for QEMU.
const PROGRESS_DEADLINE: Duration = Duration::from_millis(300);
/// How long a waiting read stays in the kernel before a signal can be seen.
const WAIT_SLICE: Duration = Duration::from_millis(500);

/// How an answer finds its way back: called exactly once, from any thread.
pub type Answer<T> = Box<dyn FnOnce(Result<T, Failure>) + Send>;

/// What a FUSE worker asks of the engine.
pub enum Request {
    /// Do a verb. Answered when the contract says the call returns.
    Do {
        /// What to do.
        intent: Intent,
        /// Who asked, for the log.
        pid: u32,
        /// The system call's answer.
        answer: Answer<()>,
    },
    /// Look at QEMU again if the model is older than a moment, then answer (at the latest after
    /// a short deadline, with what is known).
    Refresh {
        /// Answered with the newest model.
        answer: Answer<Arc<Model>>,
    },
    /// Look at a job's progress if that was not just done, then answer (at the latest after a
    /// short deadline, with what is known).
    Progress {
        /// The disk's name.
        disk: String,
        /// QEMU's job id.
        id: String,
        /// Answered with the newest model.
        answer: Answer<Arc<Model>>,
    },
    /// Open a view of a point: its files, locked and in the right order.
    Open {
        /// Which point.
        point: PointKey,
        /// Who asked, for the lease.
        pid: u32,
        /// The view holds its lease until it is dropped.
        answer: Answer<Arc<View>>,
    },
    /// Wait until all work in a scope has ended. Answers EINTR every half second while it has
    /// not: read(2) loops retry on it, and a signal is noticed in between.
    Wait {
        /// Whose work.
        scope: WaitScope,
        /// The text to read once it has ended, or EIO.
        answer: Answer<String>,
    },
}

/// Whose work a `wait` file waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WaitScope {
    /// All of the mount.
    Mount,
    /// One disk.
    Disk(String),
    /// One job of one disk.
    Job(String, String),
}

/// The FUSE side's handle on the engine: cheap to clone, never blocks.
#[derive(Clone)]
pub struct EngineHandle {
    requests: mpsc::Sender<Request>,
    model: Arc<RwLock<Arc<Model>>>,
    cache: Arc<LayerCache>,
    log: Arc<Log>,
}

impl EngineHandle {
    /// What exists, as last seen.
    pub fn model(&self) -> Arc<Model> {
        Arc::clone(&self.model.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The log of this mount.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// What the caches of the views hold.
    pub fn cache_sizes(&self) -> CacheBytes {
        self.cache.sizes()
    }

    /// What rmdir of a point would do, in words. Looks at files; asks QEMU nothing.
    pub fn plan_text(&self, point: &PointKey) -> String {
        merge::plan_text(&self.model(), point)
    }

    /// Hands a request over. A full queue answers EBUSY, an engine that has stopped ENOTCONN.
    pub fn send(&self, request: Request) {
        if let Err(error) = self.requests.try_send(request) {
            let failure = match &error {
                mpsc::error::TrySendError::Full(_) => {
                    Failure::new(Errno::EBUSY, "too many requests at once")
                        .next("look whether QEMU hangs, and try again when it answers")
                }
                mpsc::error::TrySendError::Closed(_) => {
                    Failure::new(Errno::ENOTCONN, "qmpfs is stopping").next("mount again")
                }
            };
            error.into_inner().fail(failure);
        }
    }
}

impl Request {
    fn fail(self, failure: Failure) {
        match self {
            Request::Do { answer, .. } => answer(Err(failure)),
            Request::Refresh { answer } | Request::Progress { answer, .. } => answer(Err(failure)),
            Request::Open { answer, .. } => answer(Err(failure)),
            Request::Wait { answer, .. } => answer(Err(failure)),
        }
    }
}

/// Where the disks come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A running QEMU or qemu-storage-daemon.
    Qmp(Address),
    /// The images of a VM that is off.
    Images {
        /// The active layer of each disk.
        paths: Vec<PathBuf>,
        /// `-o format=`
        format: Option<Format>,
    },
}

impl Source {
    /// What the VM is called when neither it nor the user says: the first file's name without
    /// its extension, or the address.
    fn name(&self) -> String {
        let path = match self {
            Source::Qmp(Address::Unix(path)) => Some(path),
            Source::Qmp(Address::Tcp(_)) => None,
            Source::Images { paths, .. } => paths.first(),
        };
        match (path.and_then(|path| path.file_stem()), self) {
            (Some(stem), _) => stem.to_string_lossy().into_owned(),
            (None, Source::Qmp(address)) => address.to_string(),
            (None, Source::Images { .. }) => "vm".to_owned(),
        }
    }
}

/// What the engine is started with.
#[derive(Clone)]
pub struct EngineConfig {
    /// Where the disks come from.
    pub source: Source,
    /// The same as the user wrote it.
    pub source_text: String,
    /// Which verbs there are.
    pub verbs: Verbs,
    /// `-o merge=`
    pub merge: MergePolicy,
    /// `guest_agent=`
    pub guest_agent: Option<Address>,
    /// `quiesce=`
    pub quiesce: Quiesce,
    /// `-o name=`
    pub vm_name: Option<String>,
    /// What happened, for the `log` file.
    pub log: Arc<Log>,
    /// Disks of our own storage daemon: active path and name. Filled in by the engine.
    pub embedded_disks: Vec<(PathBuf, String)>,
}

/// The running engine; it ends when this is stopped or dropped.
pub struct EngineThread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl EngineThread {
    /// Ends the engine and, if it started one, the storage daemon.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            // an engine that has ended by itself is what we want
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine panicked");
        }
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts the engine and returns when the first model is there.
pub fn start(config: EngineConfig) -> Result<(EngineHandle, EngineThread), Failure> {
    let mut first = Model::default();
    first.vm.name = config
        .vm_name
        .clone()
        .unwrap_or_else(|| config.source.name());
    let model = Arc::new(RwLock::new(Arc::new(first)));
    let (requests, queue) = mpsc::channel(REQUESTS);
    let cache = Arc::new(LayerCache::default());
    let handle = EngineHandle {
        requests,
        model: Arc::clone(&model),
        cache: Arc::clone(&cache),
        log: Arc::clone(&config.log),
    };
    let (stop, stopped) = oneshot::channel();
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("qmp".into())
        .spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = ready.send(Err(Failure::io("start the runtime", &error)));
                    return;
                }
            };
            let tasks = tokio::task::LocalSet::new();
            tasks.block_on(
                &runtime,
                serve(config, (model, cache), queue, stopped, ready),
            );
        })
        .map_err(|error| Failure::io("start a thread", &error))?;
    let thread = EngineThread {
        stop: Some(stop),
        thread: Some(thread),
    };
    match is_ready.recv() {
        Ok(Ok(())) => Ok((handle, thread)),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::new(Errno::EIO, "the engine died at its start")
            .next("start it again with -f to see what it says, and report it")),
    }
}

async fn serve(
    mut config: EngineConfig,
    shared: (Arc<RwLock<Arc<Model>>>, Arc<LayerCache>),
    mut queue: mpsc::Receiver<Request>,
    mut stopped: oneshot::Receiver<()>,
    ready: std::sync::mpsc::SyncSender<Result<(), Failure>>,
) {
    let (engine, daemon) = match begin(&mut config, shared).await {
        Ok(begun) => begun,
        Err(failure) => {
            let _ = ready.send(Err(failure));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let keepers = [
        tokio::task::spawn_local(watch::keep(Rc::clone(&engine))),
        tokio::task::spawn_local(watch::report_events(Rc::clone(&engine))),
        tokio::task::spawn_local(engine::keep_settling(Rc::clone(&engine))),
    ];
    watch::look_at_agent(&engine);
    loop {
        tokio::select! {
            request = queue.recv() => match request {
                Some(request) => { tokio::task::spawn_local(serve_one(Rc::clone(&engine), request)); }
                None => break,
            },
            _ = &mut stopped => break,
        }
    }
    // what goes from here on is meant to go
    keepers.iter().for_each(|keeper| keeper.abort());
    if let Some(agent) = engine.agent() {
        agent.idle().await;
    }
    if let Some(daemon) = daemon {
        daemon.stop().await;
    }
}

async fn begin(
    config: &mut EngineConfig,
    (model, cache): (Arc<RwLock<Arc<Model>>>, Arc<LayerCache>),
) -> Result<(Rc<Engine>, Option<StorageDaemon>), Failure> {
    let mut daemon = None;
    let bridge = match &config.source {
        Source::Qmp(address) => Some(Bridge::connect(address.clone()).await?),
        Source::Images { paths, format } if config.verbs.read_only => {
            let mut offline = crate::offline::model(paths, format.clone(), &config.source_text)?;
            let mut model = model.write().unwrap_or_else(PoisonError::into_inner);
            offline.vm.name = model.vm.name.clone();
            *model = Arc::new(offline);
            None
        }
        Source::Images { paths, format } => {
            let started = StorageDaemon::start(paths, format.clone()).await?;
            config.embedded_disks = started.disks().to_vec();
            let bridge = started.bridge().clone();
            daemon = Some(started);
            Some(bridge)
        }
    };
    if let Some(bridge) = &bridge {
        for needed in ["query-named-block-nodes", "x-debug-query-block-graph"] {
            if !bridge.supports(needed) {
                return Err(qmpbridge::Error::TooOld { needs: needed }.into());
            }
        }
    }
    let engine = Rc::new(Engine::new(bridge, config.clone(), model, cache));
    if engine.bridge().is_ok() {
        watch::recover_all(&engine).await;
        // a QEMU that cannot be looked at is told here, on the terminal
        engine.refresh(&[]).await?;
    }
    Ok((engine, daemon))
}

async fn serve_one(engine: Rc<Engine>, request: Request) {
    match request {
        Request::Do {
            intent,
            pid,
            answer,
        } => verb(engine, intent, pid, answer).await,
        Request::Refresh { answer } => {
            // what is known is better than an `ls` that hangs
            let looked =
                tokio::time::timeout(REFRESH_DEADLINE, engine.refresh_if_older(FRESH)).await;
            if !matches!(looked, Ok(Ok(()))) {
                tracing::debug!("answering with the last look");
            }
            answer(Ok(engine.current()));
        }
        Request::Progress { disk, id, answer } => {
            let look = engine.show_progress_if_older(&disk, &id);
            if tokio::time::timeout(PROGRESS_DEADLINE, look).await.is_err() {
                tracing::debug!("answering with the last look");
            }
            answer(Ok(engine.current()));
        }
        Request::Open { point, pid, answer } => answer(open::open(&engine, &point, pid).await),
        Request::Wait { scope, answer } => wait(&engine, &scope, answer).await,
    }
}

async fn verb(engine: Rc<Engine>, intent: Intent, pid: u32, answer: Answer<()>) {
    let started = Instant::now();
    let (word, path) = intent.describe();
    let log = Arc::clone(&engine.log);
    log.begun(word, &path, pid);
    let logged: Answer<()> = Box::new(move |outcome| {
        log.record(word, &path, pid, &outcome, started.elapsed());
        answer(outcome);
    });
    if let Err(failure) = intent::suits_the_manager(&engine.current(), engine.config.verbs, &intent)
    {
        return logged(Err(failure));
    }
    match intent {
        Intent::TakeGroup { name } => logged(group::take(&engine, &name).await),
        Intent::DeleteGroup { id, .. } => group::delete(engine, &id, logged).await,
        Intent::TakeExternal { disk, name } => {
            let take =
                async |guard: &DiskGuard| snapshot::take_external(&engine, guard, &name).await;
            let outcome = held(&engine, &disk, take).await;
            if outcome.is_ok() {
                watch::resume_merges(&engine, &disk);
            }
            logged(outcome);
        }
        Intent::TakeInternal { disk, name } => {
            let take = async |guard: &DiskGuard| internal::take(&engine, guard, &name).await;
            logged(held(&engine, &disk, take).await);
        }
        Intent::DeleteInternal { disk, name } => {
            let delete = async |guard: &DiskGuard| internal::delete(&engine, guard, &name).await;
            logged(held(&engine, &disk, delete).await);
        }
        Intent::Rollback { disk, point, .. } => {
            let back = async |guard: &DiskGuard| rollback::to(&engine, guard, &point).await;
            logged(held(&engine, &disk, back).await);
        }
        Intent::DeleteBranch { disk, name } => {
            let delete = async |guard: &DiskGuard| branch::delete(&engine, guard, &name).await;
            logged(held(&engine, &disk, delete).await);
        }
        Intent::DeleteExternal { disk, name } => {
            merge::remove(engine, &disk, merge::Which::Point(name), logged).await;
        }
        Intent::ReleaseLayer { disk, identity, .. } => {
            merge::remove(engine, &disk, merge::Which::Layer(identity), logged).await;
        }
        Intent::CancelJob { disk, id } => {
            let outcome = control::cancel(&engine, &disk, &id).await;
            logged(outcome);
        }
        Intent::ControlJob { disk, id, command } => {
            logged(control::job(&engine, &disk, &id, command).await);
        }
    }
}

/// Does one thing to a disk while nobody else does anything to it, and looks at what came of it.
async fn held(
    engine: &Engine,
    disk: &str,
    op: impl AsyncFnOnce(&DiskGuard) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let guard = engine.hold(disk).await?;
    let outcome = op(&guard).await;
    seen(engine, &[&guard], &outcome).await;
    outcome
}

/// The new model is published before the call returns: the name is there, or gone, at once.
/// A QEMU that has just kept us waiting is not waited for once more: the caller's directory is
/// locked until it gets its answer.
async fn seen(engine: &Engine, guards: &[&DiskGuard], outcome: &Result<(), Failure>) {
    if matches!(outcome, Err(failure) if failure.errno == Errno::ETIMEDOUT && !failure.outcome_known())
    {
        return;
    }
    if let Err(failure) = engine.refresh(guards).await {
        tracing::debug!(%failure, "refresh after a verb");
    }
}

async fn wait(engine: &Engine, scope: &WaitScope, answer: Answer<String>) {
    let (disk, job) = match scope {
        WaitScope::Mount => (None, None),
        WaitScope::Disk(disk) => (Some(disk.as_str()), None),
        WaitScope::Job(disk, job) => (Some(disk.as_str()), Some(job.as_str())),
    };
    let mut changes = engine.work_changes();
    let deadline = tokio::time::Instant::now() + WAIT_SLICE;
    loop {
        match engine.work_in(disk, job) {
            Work::Done => return answer(Ok("done\n".into())),
            Work::Failed(error) => return answer(Err(Failure::new(Errno::EIO, error))),
            Work::UnderWay => {}
        }
        if !matches!(
            tokio::time::timeout_at(deadline, changes.changed()).await,
            Ok(Ok(()))
        ) {
            return answer(Err(Failure::new(Errno::EINTR, "still at work")));
        }
    }
}
