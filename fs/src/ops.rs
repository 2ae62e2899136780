//! The engine: the one place that asks QEMU to do something. It lives on the thread `qmp`,
//! takes [`Request`]s from the FUSE workers through a bounded queue, and publishes a new
//! [`Model`] when QEMU's graph has changed. One verb a file: snapshot, internal, merge; recover
//! finishes or undoes what a killed daemon left.

mod backup;
mod blocking;
mod branch;
mod capabilities;
mod carried;
mod check;
mod checkpoint;
mod command_line;
mod control;
mod digest;
mod durable;
mod embedded;
mod engine;
mod examine;
mod group;
mod identity;
mod internal;
mod live;
pub mod merge;
mod migration;
mod nodes;
mod observe;
mod open;
mod overlay;
mod published;
mod quiesce;
mod recover;
mod rollback;
mod scratch;
mod serve;
mod served;
mod settle;
mod shelf;
mod sight;
mod snapshot;
mod socket_directory;
mod unplug;
mod watch;

use crate::errno::{Errno, Failure};
use crate::intent::{Intent, Verbs};
pub use crate::model::MergePolicy;
use crate::model::{Format, Model, Quiesce};
use crate::report::Log;
use crate::tree::PointKey;
use crate::view::{LayerCache, View};
pub use examine::{Examined, examine};
use published::Published;
use qmpbridge::Address;
use qmpfs_qcow2::CacheBytes;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Requests waiting for the engine: more callers than that at once are told EBUSY.
const REQUESTS: usize = 1024;

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
    published: Arc<Published>,
    cache: Arc<LayerCache>,
    log: Arc<Log>,
}

impl EngineHandle {
    /// What exists, as last seen.
    pub fn model(&self) -> Arc<Model> {
        self.published.current()
    }

    /// Calls `listener` whenever another model was published, on the engine's thread: it must not wait.
    pub fn on_publish(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.published.listen(listener);
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
    /// A directory of backups, without the VMs.
    Backups(PathBuf),
}

impl Source {
    /// The first file that it names, if it names any.
    fn path(&self) -> Option<&PathBuf> {
        match self {
            Source::Qmp(Address::Unix(path)) => Some(path),
            Source::Qmp(Address::Tcp(_)) => None,
            Source::Images { paths, .. } => paths.first(),
            Source::Backups(root) => Some(root),
        }
    }

    /// From where it is mounted, in words that are the same from every directory.
    fn whence(&self) -> String {
        match (self.path(), self) {
            (Some(path), _) => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                path.display().to_string()
            }
            (None, Source::Qmp(address)) => address.to_string(),
            (None, Source::Images { .. } | Source::Backups(_)) => String::new(),
        }
    }

    /// What the VM is called when neither it nor the user says: the first file's name without
    /// its extension, or the address.
    fn name(&self) -> String {
        match (self.path().and_then(|path| path.file_stem()), self) {
            (Some(stem), _) => stem.to_string_lossy().into_owned(),
            (None, Source::Qmp(address)) => address.to_string(),
            (None, Source::Images { .. } | Source::Backups(_)) => "vm".to_owned(),
        }
    }
}

/// How instants of running disks are kept and read.
#[derive(Debug, Clone, Default)]
pub struct LiveSettings {
    /// Where the old bytes go; without it beside the disk's own file.
    pub scratch_dir: Option<PathBuf>,
    /// How much room one instant may take there.
    pub scratch_limit: Option<u64>,
    /// The socket of the NBD server that QEMU has already; without it qmpfs has one started.
    pub nbd_server: Option<PathBuf>,
}

/// Where backups go, and how they are made, in QEMU's own words.
#[derive(Debug, Clone, Default)]
pub struct BackupConfig {
    /// `--backup-dir`
    pub directory: Option<PathBuf>,
    /// `compress`: the files are written compressed.
    pub compress: bool,
    /// `speed=`: bytes a second.
    pub speed: Option<u64>,
    /// `max-workers=`: copies under way at the same time.
    pub max_workers: Option<u64>,
    /// `fleecing`: what the guest writes over waits in a scratch file, and the guest for no backup directory.
    pub fleecing: bool,
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
    /// `scratch_dir=`, `scratch_limit=`, `nbd_server=`
    pub live: LiveSettings,
    /// `-o name=`
    pub vm_name: Option<String>,
    /// `--backup-dir`, and how backups are made.
    pub backup: BackupConfig,
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
    let published = Arc::new(Published::new(first));
    let (requests, queue) = mpsc::channel(REQUESTS);
    let cache = Arc::new(LayerCache::default());
    let handle = EngineHandle {
        requests,
        published: Arc::clone(&published),
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
                serve::serve(config, (published, cache), queue, stopped, ready),
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
