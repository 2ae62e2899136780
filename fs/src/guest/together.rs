//! What the disks of one instant hold together: the logical volumes that lie on several of them.

use super::disks::Home;
use super::survey::{self, Survey, Whole};
use super::{Described, Guests, Volume, described};
use crate::errno::Failure;
use crate::tree::{GroupKey, group_points};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Groups that are remembered; beyond it they are looked at anew.
const WHOLES_MAX: usize = 1024;

impl Guests {
    /// The home of what the points of a group hold together; None where it is gone.
    pub fn home(&self, group: &GroupKey) -> Option<Home> {
        let points = group_points(&self.engine.model(), group);
        (!points.is_empty()).then(|| Home::Group(group.clone(), points))
    }

    /// What the points of a group hold together, if that is known.
    pub fn known_whole(&self, home: &Home) -> Option<Arc<Whole>> {
        self.wholes().get(home).cloned()
    }

    /// The filesystems that the points of a group hold together; None where nobody has looked.
    pub fn described_together(&self, group: &GroupKey) -> Option<Vec<Described>> {
        let home = self.home(group)?;
        let whole = self.known_whole(&home)?;
        let said = |volume: &Volume| self.said(&home, volume);
        Some(described::described(whole.logical.iter(), said))
    }

    /// Finds out what the points of a group hold together.
    pub fn whole(
        &self,
        home: Home,
        done: impl FnOnce(Result<Arc<Whole>, Failure>) + Send + 'static,
    ) {
        if let Some(known) = self.known_whole(&home) {
            return done(Ok(known));
        }
        let count = home.points().len();
        let gathered = Arc::new(Mutex::new((vec![None; count], Some((done, home.clone())))));
        for (index, point) in home.points().iter().enumerate() {
            let (guests, gathered) = (self.clone(), Arc::clone(&gathered));
            self.survey(point, move |survey| {
                let mut all = gathered.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(place) = all.0.get_mut(index) {
                    *place = Some(survey);
                }
                if all.0.iter().any(Option::is_none) {
                    return;
                }
                let surveys: Result<Vec<Arc<Survey>>, Failure> =
                    all.0.drain(..).flatten().collect();
                let Some((done, home)) = all.1.take() else {
                    return;
                };
                drop(all);
                match surveys {
                    Ok(surveys) => guests.look_together(home, surveys, done),
                    Err(failure) => done(Err(failure)),
                }
            });
        }
    }

    /// On a thread of its own: disks are opened and read.
    fn look_together(
        self,
        home: Home,
        surveys: Vec<Arc<Survey>>,
        done: impl FnOnce(Result<Arc<Whole>, Failure>) + Send + 'static,
    ) {
        let look = move || {
            let whole = survey::whole(&self.engine, &home, &surveys).map(Arc::new);
            // While it was read a point may have been removed, and its file be written to.
            if !home.is_there(&self.engine.model()) {
                return done(Err(super::gone()));
            }
            if let Ok(whole) = &whole {
                let mut wholes = self.wholes();
                if wholes.len() >= WHOLES_MAX {
                    wholes.clear();
                }
                wholes.insert(home, Arc::clone(whole));
            }
            done(whole);
        };
        // Where there is no thread, the dropped reply is an error.
        if let Err(error) = std::thread::Builder::new()
            .name("together".into())
            .spawn(look)
        {
            tracing::warn!(%error, "what several disks hold needs a thread");
        }
    }

    fn wholes(&self) -> MutexGuard<'_, HashMap<Home, Arc<Whole>>> {
        self.wholes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
