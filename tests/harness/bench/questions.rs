//! The questions that the bench asks after each verb.

use std::path::PathBuf;

use super::{Bench, SIZE, WRITERS};
use crate::faults::names;
use crate::model::{BLOCK, Model, describe, first_wrong};
use crate::oracle;

impl Bench {
    /// All questions.
    #[track_caller]
    pub fn verify(&mut self) {
        self.writer().progress(5);
        self.verify_points();
        self.verify_disk();
        self.verify_files();
    }

    /// Every point shows the bytes of its instant, and there is no other.
    #[track_caller]
    pub fn verify_points(&self) {
        let mut expected: Vec<_> = self.points.iter().map(|p| p.name.clone()).collect();
        expected.sort();
        assert_eq!(
            self.disk().list("snapshots"),
            expected,
            "the points in the mount"
        );
        for point in &self.points {
            oracle::assert_same(&self.point(&point.name).disk_raw(), &point.bytes);
        }
        if let Some(writer) = &self.writer {
            writer.check();
        }
    }

    /// The running disk holds every byte that was written.
    #[track_caller]
    pub fn verify_disk(&mut self) {
        let hands = self.hands.as_mut().expect("the disk runs");
        let mut block = vec![0; BLOCK];
        for offset in (0..WRITERS).step_by(BLOCK) {
            hands.read(offset, &mut block).expect("the guest can read");
            let wanted = self.model.at(offset);
            if let Some(at) = first_wrong(&block, offset, wanted) {
                panic!(
                    "byte {}: wanted write {wanted}, got {}",
                    offset + at as u64,
                    describe(&block, offset)
                );
            }
        }
        self.writer().check();
    }

    /// The chain in the headers is the points' files under the active path, and nothing else lies about.
    #[track_caller]
    pub fn verify_files(&self) {
        let sealed = self.points.iter().rev().map(|p| self.sealed(&p.name));
        let expected: Vec<PathBuf> = std::iter::once(self.active())
            .chain(sealed)
            .chain(self.below.iter().cloned())
            .collect();
        assert_eq!(
            oracle::chain(&self.active()),
            expected,
            "the chain on the disk"
        );

        let mut stray: Vec<String> = names(&self.dir);
        stray.retain(|name| !expected.contains(&self.dir.join(name)));
        let aliases = stray.iter().filter(|n| is_alias(n)).count();
        assert!(
            stray.len() == aliases && aliases <= 1,
            "stray files: {stray:?}"
        );
    }

    #[track_caller]
    pub(super) fn inspect_while_off(&self, written: &Model) {
        for image in oracle::chain(&self.active()) {
            oracle::check(&image);
        }
        let all = self.scratch.file("all.raw");
        oracle::convert(&self.active(), &all);
        self.model.assert_holds(&all, 0..WRITERS);
        written.assert_holds(&all, WRITERS..SIZE);
    }
}

/// `.web1.qcow2.<12 hex>`: the second name under which QEMU has the active layer open.
fn is_alias(name: &str) -> bool {
    let hex = name.strip_prefix(".web1.qcow2.");
    hex.is_some_and(|h| h.len() == 12 && h.bytes().all(|b| b.is_ascii_hexdigit()))
}
