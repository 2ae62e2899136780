//! Which views the kernel reads through its page cache, and which pages it may keep.
//!
//! A view is read past the cache: the kernel then copies each byte once, from the layer's own
//! pages, and keeps none of them twice. A program that makes many small reads is better off with
//! the cache's read-ahead: what it opens next goes through the cache.
//! Points never change, but files under them may be rewritten by others while the VM is off: pages
//! filled from a file as it was are kept only while all files of the view are as they were.

use crate::tree::PointKey;
use fuser::FopenFlags;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Points remembered; beyond it all that are not open are forgotten, and read anew when opened.
const KNOWN_MAX: usize = 8192;
/// Below this a read costs more in asking than in copying. `sha256sum` and its kin read 32 KiB at once.
const SMALL: u32 = 64 << 10;
/// Small reads of one open file until they are its habit, and not how a program looks at a header.
const MANY: u32 = 1024;
/// How often a point is opened for small reads after somebody made many.
const OPENS: u32 = 16;

/// What the kernel has of each point, and how it is read.
pub(super) struct Pages {
    always_cached: bool,
    points: Mutex<HashMap<PointKey, Known>>,
}

#[derive(Default)]
struct Known {
    /// What the kernel's pages were filled from, if that is one state of the files.
    files: Option<u64>,
    /// Open files, by what they read.
    open: HashMap<u64, u32>,
    /// Opens that are still for small reads.
    small_reads: u32,
}

/// What an open file has read so far.
#[derive(Default)]
pub(super) struct Habit {
    small: AtomicU32,
    large: AtomicU32,
}

impl Pages {
    /// Nothing is known yet. `always_cached`: every view is read through the cache.
    pub(super) fn new(always_cached: bool) -> Pages {
        Pages {
            always_cached,
            points: Mutex::default(),
        }
    }

    /// How a point is opened whose files are these now. Goes with one `close`.
    pub(super) fn open(&self, point: &PointKey, files: u64) -> FopenFlags {
        let mut points = self.points();
        if points.len() >= KNOWN_MAX {
            points.retain(|_, known| !known.open.is_empty());
        }
        let known = points.entry(point.clone()).or_default();
        // Who has it open as it was before fills the pages with what was there.
        let mixed = known.open.keys().any(|open| *open != files);
        let keep = !mixed && known.files == Some(files);
        let cached = !mixed && (self.always_cached || known.small_reads > 0);
        known.files = (!mixed).then_some(files);
        known.small_reads = known.small_reads.saturating_sub(1);
        *known.open.entry(files).or_default() += 1;
        let mut flags = FopenFlags::empty();
        flags.set(FopenFlags::FOPEN_KEEP_CACHE, keep);
        flags.set(FopenFlags::FOPEN_DIRECT_IO, !cached);
        flags
    }

    /// An open file is closed.
    pub(super) fn close(&self, point: &PointKey, files: u64) {
        let mut points = self.points();
        let Some(known) = points.get_mut(point) else {
            return;
        };
        if let Some(count) = known.open.get_mut(&files) {
            *count -= 1;
            if *count == 0 {
                known.open.remove(&files);
            }
        }
    }

    /// Takes note of a read: who makes many small ones is better off with the cache.
    pub(super) fn read(&self, point: &PointKey, habit: &Habit, size: u32) {
        if size >= SMALL {
            habit.large.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let small = habit.small.fetch_add(1, Ordering::Relaxed);
        if small == MANY && habit.large.load(Ordering::Relaxed) < MANY / 8 {
            let mut points = self.points();
            if let Some(known) = points.get_mut(point) {
                known.small_reads = OPENS;
            }
        }
    }

    fn points(&self) -> MutexGuard<'_, HashMap<PointKey, Known>> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::PointKind;

    fn point() -> PointKey {
        PointKey {
            disk: "vda".into(),
            kind: PointKind::External,
            identity: "1".into(),
        }
    }

    fn opened(pages: &Pages, files: u64) -> FopenFlags {
        pages.open(&point(), files)
    }

    #[test]
    fn pages_are_kept_only_while_the_files_are_the_same() {
        let pages = Pages::new(false);
        let keeps = |files| {
            let flags = opened(&pages, files);
            pages.close(&point(), files);
            flags.contains(FopenFlags::FOPEN_KEEP_CACHE)
        };
        assert!(!keeps(7), "nothing is known at first");
        assert!(keeps(7));
        assert!(!keeps(8), "a file was rewritten");
        assert!(keeps(8));
    }

    #[test]
    fn nothing_is_cached_while_two_states_are_read() {
        let pages = Pages::new(true);
        let (cached, direct) = (FopenFlags::empty(), FopenFlags::FOPEN_DIRECT_IO);
        assert_eq!(opened(&pages, 7), cached);
        assert_eq!(opened(&pages, 8), direct);
        assert_eq!(opened(&pages, 8), direct);
        pages.close(&point(), 7);
        assert_eq!(opened(&pages, 8), cached, "filled anew");
        assert_eq!(opened(&pages, 8), FopenFlags::FOPEN_KEEP_CACHE);
    }

    #[test]
    fn small_reads_go_through_the_cache_the_next_times() {
        let pages = Pages::new(false);
        let direct = |flags: FopenFlags| flags.contains(FopenFlags::FOPEN_DIRECT_IO);
        assert!(direct(opened(&pages, 7)));
        let (small, mixed) = (Habit::default(), Habit::default());
        for _ in 0..=MANY {
            pages.read(&point(), &mixed, SMALL);
            pages.read(&point(), &mixed, SMALL - 1);
        }
        assert!(direct(opened(&pages, 7)));
        (0..=MANY).for_each(|_| pages.read(&point(), &small, 512));
        assert!((0..OPENS).all(|_| !direct(opened(&pages, 7))));
        assert!(direct(opened(&pages, 7)), "it is forgotten again");
    }
}
