//! Which views the kernel may go on reading from its page cache. Points never change, but files
//! under them may be rewritten by others while the VM is off: pages filled from a file as it was
//! are kept only while all files of the view are as they were.

use crate::tree::PointKey;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Points remembered; beyond it all are forgotten and their next open reads anew.
const KNOWN_MAX: usize = 8192;

/// What the kernel's pages of each point were filled from.
#[derive(Default)]
pub(super) struct Pages(Mutex<HashMap<PointKey, u64>>);

impl Pages {
    /// Whether the pages of a point were filled from files like these; from now on they are.
    pub(super) fn are_of(&self, point: &PointKey, files: u64) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(point.clone(), files) == Some(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::PointKind;

    #[test]
    fn pages_are_kept_only_while_the_files_are_the_same() {
        let (pages, point) = (
            Pages::default(),
            PointKey {
                disk: "vda".into(),
                kind: PointKind::External,
                identity: "1".into(),
            },
        );
        assert!(!pages.are_of(&point, 7), "nothing is known at first");
        assert!(pages.are_of(&point, 7));
        assert!(!pages.are_of(&point, 8), "a file was rewritten");
        assert!(pages.are_of(&point, 8));
    }
}
