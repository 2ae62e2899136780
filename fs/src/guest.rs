//! What is inside points: the partitions of their disks, and the guests' own filesystems.
//! It knows views and `qmpfs-guestfs`; it knows no FUSE and no QMP. Whatever it answers, it answers
//! from a thread of its own: bytes that a guest wrote keep nobody else waiting.

mod note;
mod source;
mod survey;

pub use note::note;
pub use survey::{Survey, Volume};

use crate::errno::{Errno, Failure};
use crate::leases::MEASURING;
use crate::ops::{EngineHandle, Request};
use crate::tree::{PointKey, has_inside};
use crate::view::View;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Points whose partitions are remembered; beyond it they are read anew.
const SURVEYS_MAX: usize = 4096;
/// A disk that could not be looked at is not tried again before.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Gets what is on a disk, from another thread.
type Waiter = Box<dyn FnOnce(Result<Arc<Survey>, Failure>) + Send>;

/// What is known of a point's disk.
enum Known {
    Surveyed(Arc<Survey>),
    Failed(Instant, Failure),
    /// Being looked at, for these.
    Waiting(Vec<Waiter>),
}

/// The insides of all points of a mount. A clone is another handle on the same.
#[derive(Clone)]
pub struct Guests {
    engine: EngineHandle,
    surveys: Arc<Mutex<HashMap<PointKey, Known>>>,
}

impl Guests {
    /// Nothing is known yet.
    pub fn new(engine: EngineHandle) -> Guests {
        Guests {
            engine,
            surveys: Arc::default(),
        }
    }

    /// What is on the disk of a point, if that is known already.
    pub fn known(&self, point: &PointKey) -> Option<Arc<Survey>> {
        match self.surveys().get(point)? {
            Known::Surveyed(survey) => Some(Arc::clone(survey)),
            Known::Failed(..) | Known::Waiting(_) => None,
        }
    }

    /// Finds out what is on the disk of a point.
    pub fn survey(
        &self,
        point: &PointKey,
        done: impl FnOnce(Result<Arc<Survey>, Failure>) + Send + 'static,
    ) {
        let mut surveys = self.surveys();
        let known = match surveys.get_mut(point) {
            Some(Known::Waiting(waiters)) => return waiters.push(Box::new(done)),
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
        let waiters: Vec<Waiter> = vec![Box::new(done)];
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
        if let Err(failure) = &result {
            let model = self.engine.model();
            let place = crate::tree::path_of(&model, &crate::tree::NodeKey::Point(point.clone()));
            let errno = failure.errno;
            let line = format!("look into {place} {errno}: {failure}");
            self.engine.log().note(&line);
        }
        let known = match &result {
            Ok(survey) => Known::Surveyed(Arc::clone(survey)),
            Err(failure) => Known::Failed(Instant::now(), failure.clone()),
        };
        let before = self.surveys().insert(point.clone(), known);
        if let Some(Known::Waiting(waiters)) = before {
            waiters
                .into_iter()
                .for_each(|waiter| waiter(result.clone()));
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
