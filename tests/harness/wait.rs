//! Waiting: for a condition, with a deadline, and with words for the failure. The only place that sleeps.

use std::time::{Duration, Instant};

/// Long enough for a busy two-core machine, on whose disk one flush has taken a minute; reached only when something is
/// broken.
pub const PATIENCE: Duration = Duration::from_secs(120);

const POLL: Duration = Duration::from_millis(5);

/// Polls `condition` until it gives something.
pub fn poll<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = condition() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// Polls until `condition` gives something; panics with `what` at the deadline.
#[track_caller]
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    match poll(PATIENCE, condition) {
        Some(found) => found,
        None => panic!("still waiting after {PATIENCE:?}: {what}"),
    }
}

/// Polls until `condition` is true; panics with `what` at the deadline.
#[track_caller]
pub fn until_true(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, || condition().then_some(()));
}
