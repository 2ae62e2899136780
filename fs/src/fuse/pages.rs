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
use std::sync::{Mutex, PoisonError};

/// Points remembered; beyond it all are forgotten and their next open reads anew.
const KNOWN_MAX: usize = 8192;
/// Below this a read costs more in asking than in copying.
pub(super) const SMALL_READ: u32 = 32 << 10;
/// Small reads of one open file until they are its habit, and not how a program looks at a header.
pub(super) const MANY_SMALL_READS: u32 = 1024;

/// What the kernel has of each point, and how it is read.
pub(super) struct Pages {
    always_cached: bool,
    points: Mutex<HashMap<PointKey, Known>>,
}

struct Known {
    /// What the kernel's pages were filled from.
    files: u64,
    small_reads: bool,
}

impl Pages {
    /// Nothing is known yet. `always_cached`: every view is read through the cache.
    pub(super) fn new(always_cached: bool) -> Pages {
        Pages {
            always_cached,
            points: Mutex::default(),
        }
    }

    /// How a point is opened whose files are these now.
    pub(super) fn open(&self, point: &PointKey, files: u64) -> FopenFlags {
        let mut points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        if points.len() >= KNOWN_MAX {
            points.clear();
        }
        let (mut keep, mut small_reads) = (false, false);
        if let Some(known) = points.get(point) {
            (keep, small_reads) = (known.files == files, known.small_reads);
        }
        points.insert(point.clone(), Known { files, small_reads });
        let mut flags = FopenFlags::empty();
        flags.set(FopenFlags::FOPEN_KEEP_CACHE, keep);
        flags.set(
            FopenFlags::FOPEN_DIRECT_IO,
            !small_reads && !self.always_cached,
        );
        flags
    }

    /// From now on the point is opened for small reads.
    pub(super) fn expect_small_reads(&self, point: &PointKey) {
        let mut points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = points.get_mut(point) {
            known.small_reads = true;
        }
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

    #[test]
    fn pages_are_kept_only_while_the_files_are_the_same() {
        let (pages, point) = (Pages::new(false), point());
        let keeps = |files| {
            pages
                .open(&point, files)
                .contains(FopenFlags::FOPEN_KEEP_CACHE)
        };
        assert!(!keeps(7), "nothing is known at first");
        assert!(keeps(7));
        assert!(!keeps(8), "a file was rewritten");
        assert!(keeps(8));
    }

    #[test]
    fn small_reads_go_through_the_cache_the_next_time() {
        let (pages, point) = (Pages::new(false), point());
        let direct = |pages: &Pages| pages.open(&point, 7).contains(FopenFlags::FOPEN_DIRECT_IO);
        assert!(direct(&pages));
        assert!(direct(&pages));
        pages.expect_small_reads(&point);
        assert!(!direct(&pages));
        assert!(!direct(&Pages::new(true)));
    }
}
