//! One filesystem of one point: its reader, what was learned of it, and the thread that asks.
//! The thread and the process begin with the first question and end when nobody has asked for a while.
//! Nothing that they hold keeps a point from being removed; an open file does.

use super::Volume;
use super::cache::Cache;
use super::disks::{Disks, Home};
use super::gone;
use super::places::{Places, Whence};
use super::slots::{Slot, Slots};
use super::wire::{Answer, Node, Question};
use super::worker::{Fault, Worker};
use crate::errno::{Errno, Failure};
use crate::ops::EngineHandle;
use crate::tree::path_of;
use qmpfs_guestfs::Journal;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Questions that may wait; one more is told that it is too busy.
const WAITING_MAX: usize = 4096;
/// How long a reader lives after the last question.
const IDLE: Duration = Duration::from_secs(5);
/// The same where others wait for a place.
const IDLE_SHORT: Duration = Duration::from_millis(200);
/// How long a reader is at work before it makes room for others who wait: what it has to read anew then takes far less.
const TURN: Duration = Duration::from_secs(1);
/// How often the thread looks whether it is wanted.
const TICK: Duration = Duration::from_millis(100);
/// A filesystem that could not be opened is not tried again before.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Readers that may be lost within a minute; after that it is given up for the rest of it.
const LOST_MAX: usize = 5;
const LOST_WITHIN: Duration = Duration::from_secs(60);

type Job = Box<dyn FnOnce(Result<&mut Desk, Failure>) + Send>;

/// One filesystem of one point.
pub struct Tree {
    /// Its number in the mount.
    pub number: u16,
    /// The point it is in, or the points.
    pub home: Home,
    /// The partition it is in.
    pub volume: Volume,
    engine: EngineHandle,
    slots: Arc<Slots>,
    state: Mutex<State>,
    cache: Cache,
    places: Places,
}

#[derive(Default)]
struct State {
    jobs: Option<SyncSender<Job>>,
    /// Why it cannot be opened, and since when that is known.
    trouble: Option<(Instant, Failure)>,
    opened: Option<(u64, Journal)>,
    lost: VecDeque<Instant>,
    files: Files,
}

/// What the kernel's pages of the tree's files were filled from.
#[derive(Default, Clone, Copy, PartialEq)]
enum Files {
    #[default]
    Nothing,
    /// These files, by their fingerprint.
    One(u64),
    /// The files were rewritten by others meanwhile: no page can be believed any more.
    Several,
}

/// What the thread works with.
pub struct Desk {
    tree: Arc<Tree>,
    disks: Arc<Disks>,
    // Before its place: who comes into that may start another.
    worker: Option<Worker>,
    slot: Option<Slot>,
}

impl Tree {
    pub(super) fn new(
        number: u16,
        home: Home,
        volume: Volume,
        engine: EngineHandle,
        slots: Arc<Slots>,
    ) -> Tree {
        Tree {
            number,
            home,
            volume,
            engine,
            slots,
            state: Mutex::default(),
            cache: Cache::default(),
            places: Places::default(),
        }
    }

    /// The root directory, and what became of the log, once it is open.
    pub fn opened(&self) -> Option<(u64, Journal)> {
        self.state().opened
    }

    /// Why it cannot be opened, if that was tried.
    pub fn trouble(&self) -> Option<String> {
        let state = self.state();
        let (_, failure) = state.trouble.as_ref()?;
        Some(failure.message.clone())
    }

    /// What was learned of a node.
    pub fn known(&self, node: u64) -> Option<Node> {
        self.cache.node(node)
    }

    /// What was learned of a name.
    pub fn known_name(&self, directory: u64, name: &[u8]) -> Option<Node> {
        self.cache.name(directory, name)
    }

    /// Whether a node is known to have no extended attributes.
    pub fn has_no_xattrs(&self, node: u64) -> bool {
        self.cache.has_no_xattrs(node)
    }

    /// The kernel is about to be told of a directory; an error where it knows it by another name.
    pub fn hold(&self, node: u64, whence: Whence) -> Result<(), Failure> {
        match self.places.hold(node, whence) {
            true => Ok(()),
            false => Err(Failure::new(
                Errno::EUCLEAN,
                "damaged: this directory has another name as well",
            )),
        }
    }

    /// The kernel lets go of a node so many times.
    pub fn forget(&self, node: u64, times: u64) {
        self.places.forget(node, times);
    }

    /// Whether pages that the kernel has of a file here may be kept, as it is opened from `files`.
    pub fn pages_may_stay(&self, files: u64) -> bool {
        let mut state = self.state();
        state.files = match state.files {
            Files::Nothing => Files::One(files),
            Files::One(before) if before == files => Files::One(files),
            Files::One(_) | Files::Several => Files::Several,
        };
        state.files == Files::One(files)
    }

    /// Whether the point is still there.
    pub fn is_there(&self) -> bool {
        self.home.is_there(&self.engine.model())
    }

    /// Asks the reader; `done` is called from the tree's thread.
    pub fn ask(
        self: &Arc<Self>,
        question: Question,
        done: impl FnOnce(Result<Answer, Failure>) + Send + 'static,
    ) {
        self.work(move |desk| done(desk.and_then(|desk| desk.ask(&question))));
    }

    /// Lets `job` work on the tree's thread, with the reader and the disk.
    pub fn work(self: &Arc<Self>, job: impl FnOnce(Result<&mut Desk, Failure>) + Send + 'static) {
        let mut state = self.state();
        if let Some((at, failure)) = &state.trouble
            && at.elapsed() < RETRY_AFTER
        {
            let failure = failure.clone();
            drop(state);
            return job(Err(failure));
        }
        let jobs = match &state.jobs {
            Some(jobs) => jobs.clone(),
            None => {
                let (jobs, queue) = sync_channel(WAITING_MAX);
                let tree = Arc::clone(self);
                let thread = std::thread::Builder::new().name("guest".into());
                if let Err(error) = thread.spawn(move || tree.run(&queue)) {
                    drop(state);
                    return job(Err(Failure::io("start a thread", &error)));
                }
                state.jobs.insert(jobs).clone()
            }
        };
        // Sent while the state is held: the thread ends only when it has seen an empty queue under it.
        let sent = jobs.try_send(Box::new(job));
        if matches!(sent, Err(TrySendError::Disconnected(_))) {
            // The thread has panicked, which is our bug; the next question gets another.
            state.jobs = None;
        }
        drop(state);
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = sent {
            job(Err(Failure::new(
                Errno::EBUSY,
                "too many questions at once",
            )
            .next("try again when the others have been answered")));
        }
    }

    fn run(self: Arc<Self>, queue: &Receiver<Job>) {
        let served = self.slot().and_then(|slot| {
            let mut desk = self.open(slot)?;
            self.state().trouble = None;
            self.serve(&mut desk, queue)
        });
        if let Err(failure) = served {
            self.note(&failure);
            self.cache.forget();
            self.state().trouble = Some((Instant::now(), failure.clone()));
            self.refuse(queue, &failure);
        }
    }

    fn slot(&self) -> Result<Slot, Failure> {
        let busy = || {
            Failure::new(Errno::EBUSY, "too many filesystems are read at once")
                .next("try again when the others are done")
        };
        self.slots.take().ok_or_else(busy)
    }

    /// Works until nobody has asked for a while. An error is that there was no place for it any more.
    fn serve(self: &Arc<Self>, desk: &mut Desk, queue: &Receiver<Job>) -> Result<(), Failure> {
        let mut last = Instant::now();
        let mut turn = last;
        loop {
            match queue.recv_timeout(TICK) {
                Ok(job) => {
                    if turn.elapsed() > TURN && self.slots.are_wanted() {
                        // The question starts another, when it is its turn again.
                        desk.worker = None;
                        desk.slot = None;
                        match self.slot() {
                            Ok(slot) => desk.slot = Some(slot),
                            Err(failure) => {
                                job(Err(failure.clone()));
                                return Err(failure);
                            }
                        }
                        turn = Instant::now();
                    }
                    job(Ok(desk));
                    last = Instant::now();
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    let patience = match self.slots.are_wanted() {
                        true => IDLE_SHORT,
                        false => IDLE,
                    };
                    // Whoever finds what he wants without a question is at work with it as well.
                    if self.cache.was_used() && patience == IDLE {
                        last = Instant::now();
                    }
                    if last.elapsed() < patience && self.is_there() {
                        continue;
                    }
                    let mut state = self.state();
                    match queue.try_recv() {
                        Ok(job) => {
                            drop(state);
                            job(Ok(desk));
                            last = Instant::now();
                        }
                        Err(_) => {
                            state.jobs = None;
                            drop(state);
                            self.cache.forget();
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Tells all who wait that it came to nothing; who comes later begins anew.
    fn refuse(&self, queue: &Receiver<Job>, failure: &Failure) {
        self.state().jobs = None;
        while let Ok(job) = queue.try_recv() {
            job(Err(failure.clone()));
        }
    }

    fn open(self: &Arc<Self>, slot: Slot) -> Result<Desk, Failure> {
        let mut desk = Desk {
            tree: Arc::clone(self),
            disks: Arc::new(self.home.open(&self.engine)?),
            worker: None,
            slot: Some(slot),
        };
        self.places.are_in(desk.disks.fingerprint());
        desk.start()?;
        Ok(desk)
    }

    fn note(&self, failure: &Failure) {
        let model = self.engine.model();
        let place = path_of(&model, &self.home.files());
        let (name, errno) = (self.volume.directory(), failure.errno);
        let line = format!("read {place}/{name} {errno}: {failure}");
        self.engine.log().note(&line);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    /// The disks it is on. Whoever reads a file holds them by a lease of his own.
    pub fn disks(&self) -> &Disks {
        &self.disks
    }

    /// Asks the reader.
    pub fn ask(&mut self, question: &Question) -> Result<Answer, Failure> {
        if self.worker.is_none() {
            self.start()?;
        }
        let Some(worker) = &mut self.worker else {
            return Err(Failure::new(Errno::EIO, "there is no reader"));
        };
        let answer = match worker.ask(question) {
            Ok(answer) => answer,
            Err(Fault::Said(failure)) => return Err(failure),
            Err(Fault::Lost(why)) => return Err(self.lost(&why)),
        };
        // While it was read the point may have been removed, and its file be written to.
        if !self.tree.is_there() {
            return Err(gone());
        }
        self.tree.cache.learn(question, &answer);
        Ok(answer)
    }

    fn lost(&mut self, why: &str) -> Failure {
        self.worker = None;
        let failure = Failure::new(Errno::EIO, why)
            .next("the other files can be read; files/N.txt says what else may read this one");
        self.tree.state().lost.push_back(Instant::now());
        self.tree.note(&failure);
        failure
    }

    /// Starts a reader and has it open the filesystem.
    fn start(&mut self) -> Result<(), Failure> {
        {
            let mut state = self.tree.state();
            while state
                .lost
                .front()
                .is_some_and(|at| at.elapsed() > LOST_WITHIN)
            {
                state.lost.pop_front();
            }
            if state.lost.len() >= LOST_MAX {
                return Err(Failure::new(Errno::EIO, "its reader was lost too often")
                    .next("wait a minute; files/N.txt says what else may read it"));
            }
        }
        let volume = &self.tree.volume;
        let length = volume.partition.length;
        let worker = Worker::start(Arc::clone(&self.disks), volume.clone());
        let mut worker = worker.map_err(|error| Failure::io("start a reader", &error))?;
        let kind = volume.found.kind;
        match worker.ask(&Question::Open { kind, length }) {
            Ok(Answer::Opened { root, journal }) => {
                self.worker = Some(worker);
                self.tree.state().opened = Some((root, journal));
                Ok(())
            }
            Ok(_) => Err(self.lost("the reader answered another question")),
            Err(Fault::Said(failure)) => Err(failure),
            Err(Fault::Lost(why)) => Err(self.lost(&why)),
        }
    }
}
