//! How many readers there may be: each may take half a gigabyte, if its guest wants it to.
//! Invariant: who waits longer comes first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Readers at the same time, in all points of a mount.
const READERS: usize = 8;
/// How long one waits for a place: with turns of a second, and not alone, nearly five hundred can be read at once.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Slots {
    used: Mutex<Used>,
    changed: Condvar,
}

#[derive(Default)]
struct Used {
    taken: usize,
    last: u64,
    /// Those who wait, the first one in front.
    waiting: VecDeque<u64>,
}

/// A place; dropping it gives it back.
pub(super) struct Slot(Arc<Slots>);

impl Slots {
    /// A place, as soon as there is one; None after a while.
    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        self.take_within(PATIENCE)
    }

    fn take_within(self: &Arc<Self>, patience: Duration) -> Option<Slot> {
        let until = Instant::now() + patience;
        let mut used = self.used();
        used.last += 1;
        let ours = used.last;
        used.waiting.push_back(ours);
        let is_turn = |used: &Used| {
            used.taken < READERS && used.waiting.front().is_some_and(|it| *it == ours)
        };
        while !is_turn(&used) {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(used, rest);
            used = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let is_given = is_turn(&used);
        used.waiting.retain(|it| *it != ours);
        used.taken += usize::from(is_given);
        drop(used);
        // The next one may be in front now.
        self.changed.notify_all();
        is_given.then(|| Slot(Arc::clone(self)))
    }

    /// Whether somebody waits for a place.
    pub(super) fn are_wanted(&self) -> bool {
        !self.used().waiting.is_empty()
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used().taken -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::{READERS, Slots};
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    #[test]
    fn who_waits_longer_comes_first() {
        let slots = Arc::new(Slots::default());
        let mut taken: Vec<_> = (0..READERS).map(|_| slots.take()).collect();
        assert!(taken.iter().all(Option::is_some));
        assert!(slots.take_within(Duration::ZERO).is_none() && !slots.are_wanted());
        let (said, heard) = mpsc::channel();
        let threads = (0..3).map(|number| {
            let (waits, said) = (Arc::clone(&slots), said.clone());
            let thread = std::thread::spawn(move || {
                let slot = waits.take().expect("its turn comes");
                said.send(number).expect("somebody listens");
                drop(slot);
            });
            while slots.used().waiting.len() <= number {
                std::thread::yield_now();
            }
            thread
        });
        let threads: Vec<_> = threads.collect();
        assert!(slots.are_wanted());
        // One place, handed on from one to the next, and not to who gave it away.
        taken.pop();
        let order: Vec<usize> = (0..3).map(|_| heard.recv().expect("all come")).collect();
        assert_eq!(order, [0, 1, 2]);
        for thread in threads {
            thread.join().expect("it ends");
        }
        assert!(!slots.are_wanted() && slots.take().is_some());
    }
}
