//! Recursive deletes, recognised. `find -delete`, `rsync --delete` and their kin first try the
//! files inside a point, are refused, and go on to rmdir the point, which would be a real
//! deletion that nobody meant. Who was refused inside a directory is remembered for a while,
//! and its rmdir of that directory is refused too. It knows processes and keys, no FUSE.

use crate::tree::NodeKey;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a refused unlink is held against its process: such tools come back within
/// milliseconds, a person's script may mean its rmdir a minute later.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Directories remembered: they come back to each before they go on to the next.
const SWEEPS_MAX: usize = 1024;

/// Who tried to remove something inside which directory.
#[derive(Default)]
pub(super) struct Sweeps {
    tried: Mutex<VecDeque<Tried>>,
}

struct Tried {
    at: Instant,
    process: u32,
    directory: NodeKey,
}

impl Sweeps {
    /// Remembers a refused unlink in `directory`. True when it is the first of this process there.
    pub(super) fn remember(&self, process: u32, directory: &NodeKey, now: Instant) -> bool {
        let mut tried = self.current(now);
        let known = tried
            .iter()
            .position(|one| one.process == process && one.directory == *directory);
        if let Some(known) = known {
            tried.remove(known);
        } else if tried.len() == SWEEPS_MAX {
            tried.pop_front();
        }
        tried.push_back(Tried {
            at: now,
            process,
            directory: directory.clone(),
        });
        known.is_none()
    }

    /// Whether this process tried to remove something inside `directory` a short while ago.
    pub(super) fn tried(&self, process: u32, directory: &NodeKey, now: Instant) -> bool {
        self.current(now)
            .iter()
            .any(|one| one.process == process && one.directory == *directory)
    }

    fn current(&self, now: Instant) -> MutexGuard<'_, VecDeque<Tried>> {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        while tried
            .front()
            .is_some_and(|oldest| now.saturating_duration_since(oldest.at) >= REMEMBERED)
        {
            tried.pop_front();
        }
        tried
    }
}

#[cfg(test)]
mod tests {
    use super::{REMEMBERED, SWEEPS_MAX, Sweeps};
    use crate::tree::NodeKey;
    use std::time::{Duration, Instant};

    fn job(id: &str) -> NodeKey {
        NodeKey::Job("vda".into(), id.into())
    }

    #[test]
    fn the_same_process_in_the_same_directory_for_a_minute() {
        let sweeps = Sweeps::default();
        let start = Instant::now();
        assert!(sweeps.remember(7, &job("a"), start));
        assert!(!sweeps.remember(7, &job("a"), start));
        assert!(sweeps.tried(7, &job("a"), start));
        assert!(!sweeps.tried(8, &job("a"), start));
        assert!(!sweeps.tried(7, &job("b"), start));
        let almost = start + REMEMBERED - Duration::from_millis(1);
        assert!(sweeps.tried(7, &job("a"), almost));
        assert!(!sweeps.tried(7, &job("a"), start + REMEMBERED));
        assert!(sweeps.remember(7, &job("a"), start + REMEMBERED));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_oldest() {
        let sweeps = Sweeps::default();
        let now = Instant::now();
        for index in 0..=SWEEPS_MAX {
            sweeps.remember(1, &job(&index.to_string()), now);
        }
        assert!(!sweeps.tried(1, &job("0"), now));
        assert!(sweeps.tried(1, &job("1"), now));
        assert!(sweeps.tried(1, &job(&SWEEPS_MAX.to_string()), now));
    }
}
