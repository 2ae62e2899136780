//! What is inside points: the partitions of their disks, and the guests' own filesystems.
//! It knows views and `qmpfs-guestfs`; it knows no FUSE and no QMP. Whatever it answers, it answers
//! from a thread of its own: bytes that a guest wrote keep nobody else waiting.

mod cache;
mod described;
mod disks;
mod links;
mod logical;
mod note;
mod number;
mod places;
mod remote;
mod serve;
mod slots;
mod source;
mod survey;
mod together;
mod tree;
mod wire;
mod worker;

pub use described::{Described, readable};
pub use disks::{Disks, Home, Piece};
pub use links::{Links, depends_on_depth, shown};
pub use logical::Partly;
pub use note::{note, partly as note_of_partly};
pub use number::Number;
pub use places::Whence;
pub use serve::serve;
pub use survey::{Survey, Volume, Whole};
pub use tree::{Desk, Tree};
pub use wire::{Answer, Named, Node, Question};
pub use worker::COMMAND;

use crate::errno::{Errno, Failure};
use crate::leases::MEASURING;
use crate::ops::{EngineHandle, Request};
use crate::tree::{PointKey, has_inside};
use crate::view::View;
use slots::Slots;
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Points whose partitions are remembered; beyond it they are read anew.
const SURVEYS_MAX: usize = 4096;
/// A disk that could not be looked at is not tried again before.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Gets what is on a disk, from another thread.
type Waiter = Box<dyn FnOnce(Result<Arc<Survey>, Failure>) + Send>;

/// Why a disk is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Purpose {
    /// Somebody wants what is inside, and the log tells why it cannot be had.
    Inside,
    /// It is only described: what cannot be had now is left out.
    Describing,
}

/// What is known of a point's disk.
enum Known {
    Surveyed(Arc<Survey>),
    Failed(Instant, Failure),
    /// Being looked at, for these.
    Waiting(Vec<(Purpose, Waiter)>),
}

/// The insides of all points of a mount. A clone is another handle on the same.
#[derive(Clone)]
pub struct Guests {
    engine: EngineHandle,
    links: Links,
    surveys: Arc<Mutex<HashMap<PointKey, Known>>>,
    wholes: Arc<Mutex<HashMap<Home, Arc<Whole>>>>,
    trees: Arc<Mutex<Trees>>,
    slots: Arc<Slots>,
}

/// The filesystems that somebody has looked into.
#[derive(Default)]
struct Trees {
    all: Vec<Arc<Tree>>,
    /// By point and partition, the index of the newest.
    places: HashMap<(Home, u32), usize>,
}

impl Guests {
    /// Nothing is known yet.
    pub fn new(engine: EngineHandle, links: Links) -> Guests {
        Guests {
            engine,
            links,
            surveys: Arc::default(),
            wholes: Arc::default(),
            trees: Arc::default(),
            slots: Arc::default(),
        }
    }

    /// How symbolic links are shown.
    pub fn links(&self) -> Links {
        self.links
    }

    /// The filesystem in a partition of a point. It is opened when it is asked something.
    pub fn tree(&self, home: &Home, volume: &Volume) -> Result<Arc<Tree>, Failure> {
        let mut trees = self.trees();
        let place = (home.clone(), volume.partition.number);
        let known = trees
            .places
            .get(&place)
            .and_then(|index| trees.all.get(*index));
        if let Some(tree) = known {
            return Ok(Arc::clone(tree));
        }
        let index = trees.all.len();
        let number = u16::try_from(index).ok();
        let number = number.filter(|number| u64::from(*number) < number::TREES_MAX);
        let number = number.ok_or_else(|| {
            let words = "more filesystems were read than can be numbered";
            Failure::new(Errno::EOPNOTSUPP, words).next("mount again")
        })?;
        let (engine, slots) = (self.engine.clone(), Arc::clone(&self.slots));
        let tree = Tree::new(number, home.clone(), volume.clone(), engine, slots);
        let tree = Arc::new(tree);
        trees.all.push(Arc::clone(&tree));
        trees.places.insert(place, index);
        Ok(tree)
    }

    /// The tree of a number.
    pub fn numbered(&self, number: u16) -> Option<Arc<Tree>> {
        self.trees().all.get(usize::from(number)).cloned()
    }

    /// The kernel lets go of a file so many times.
    pub fn forget(&self, number: Number, times: u64) {
        if let Some(tree) = self.numbered(number.tree) {
            tree.forget(number.node, times);
        }
    }

    /// Why the files of a partition cannot be shown, if that was tried.
    pub fn trouble(&self, point: &PointKey, number: u32) -> Option<String> {
        let home = Home::Point(point.clone());
        self.looked_into(&home, number)?.trouble()
    }

    /// The filesystem in a partition, if somebody has looked into it.
    pub fn looked_into(&self, home: &Home, number: u32) -> Option<Arc<Tree>> {
        let trees = self.trees();
        let index = trees.places.get(&(home.clone(), number))?;
        trees.all.get(*index).cloned()
    }

    fn trees(&self) -> MutexGuard<'_, Trees> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is on the disk of a point, if that is known already.
    pub fn known(&self, point: &PointKey) -> Option<Arc<Survey>> {
        match self.surveys().get(point)? {
            Known::Surveyed(survey) => Some(Arc::clone(survey)),
            Known::Failed(..) | Known::Waiting(_) => None,
        }
    }

    /// What is known of the partitions of a point; None where nobody has looked.
    pub fn described(&self, point: &PointKey) -> Option<Vec<Described>> {
        let survey = self.known(point)?;
        let home = Home::Point(point.clone());
        let volumes = survey.volumes.iter().chain(&survey.logical);
        Some(described::described(volumes, |volume| {
            self.said(&home, volume)
        }))
    }

    /// What the reader of a filesystem has said, if there was one.
    fn said(&self, home: &Home, volume: &Volume) -> described::Read {
        let tree = self.looked_into(home, volume.partition.number);
        tree.map_or_else(described::Read::default, |tree| described::Read {
            journal: tree.opened().map(|(_, journal)| journal),
            trouble: tree.trouble(),
        })
    }

    /// Finds out what is on the disk of a point.
    pub fn survey(
        &self,
        point: &PointKey,
        done: impl FnOnce(Result<Arc<Survey>, Failure>) + Send + 'static,
    ) {
        self.look(point, Purpose::Inside, Box::new(done));
    }

    /// The same for a description. None where it is known already, or cannot be known now; else
    /// something comes when it is.
    pub fn glance(&self, point: &PointKey) -> Option<Receiver<()>> {
        if self.known(point).is_some() || !has_inside(&self.engine.model(), point) {
            return None;
        }
        let (done, known) = sync_channel(1);
        let done = Box::new(move |_| {
            // Nobody waits that long.
            let _late = done.try_send(());
        });
        self.look(point, Purpose::Describing, done);
        Some(known)
    }

    fn look(&self, point: &PointKey, purpose: Purpose, done: Waiter) {
        let mut surveys = self.surveys();
        let known = match surveys.get_mut(point) {
            Some(Known::Waiting(waiters)) => return waiters.push((purpose, done)),
            Some(Known::Surveyed(survey)) => Some(Ok(Arc::clone(survey))),
            Some(Known::Failed(at, failure)) if at.elapsed() < RETRY_AFTER => {
                Some(Err(failure.clone()))
            }
            Some(Known::Failed(..)) | None => None,
        };
        if let Some(known) = known {
            drop(surveys);
            return done(known);
        }
        if surveys.len() >= SURVEYS_MAX {
            surveys.retain(|_, known| matches!(known, Known::Waiting(_)));
        }
        let waiters = vec![(purpose, done)];
        surveys.insert(point.clone(), Known::Waiting(waiters));
        drop(surveys);
        let (guests, key) = (self.clone(), point.clone());
        let answer = Box::new(move |opened: Result<Arc<View>, Failure>| match opened {
            Ok(view) => guests.look_at(key, view),
            Err(failure) => guests.surveyed(&key, Err(failure)),
        });
        self.engine.send(Request::Open {
            point: point.clone(),
            // it keeps nobody from removing the point
            pid: MEASURING,
            answer,
        });
    }

    fn look_at(self, point: PointKey, view: Arc<View>) {
        let (guests, key) = (self.clone(), point.clone());
        let look = move || {
            let looked = survey::survey(&view);
            drop(view);
            // While it was read the point may have been removed, and its file be written to.
            let there = has_inside(&self.engine.model(), &point);
            self.surveyed(&point, if there { looked } else { Err(gone()) });
        };
        let started = std::thread::Builder::new()
            .name("survey".into())
            .spawn(look);
        if let Err(error) = started {
            guests.surveyed(&key, Err(Failure::io("start a thread", &error)));
        }
    }

    fn surveyed(&self, point: &PointKey, result: Result<Survey, Failure>) {
        let result = result.map(Arc::new);
        let known = match &result {
            Ok(survey) => Known::Surveyed(Arc::clone(survey)),
            Err(failure) => Known::Failed(Instant::now(), failure.clone()),
        };
        let before = self.surveys().insert(point.clone(), known);
        let Some(Known::Waiting(waiters)) = before else {
            return;
        };
        let wanted = waiters.iter().any(|(why, _)| *why == Purpose::Inside);
        if let (Err(failure), true) = (&result, wanted) {
            let model = self.engine.model();
            let place = crate::tree::path_of(&model, &crate::tree::NodeKey::Point(point.clone()));
            let errno = failure.errno;
            let line = format!("look into {place} {errno}: {failure}");
            self.engine.log().note(&line);
        }
        for (_, waiter) in waiters {
            waiter(result.clone());
        }
    }

    fn surveys(&self) -> MutexGuard<'_, HashMap<PointKey, Known>> {
        self.surveys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The point is no more.
pub fn gone() -> Failure {
    Failure::new(Errno::ESTALE, "this point is gone")
        .next("see which there are: ls the directory again")
}
