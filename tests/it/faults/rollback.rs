//! `echo N > rollback` of a running machine, which must be quiet for it: its memory is lost, and so is what it writes.

use std::io;
use std::path::PathBuf;

use qmpfs_tests::bench::Bench;
use qmpfs_tests::faults::names;
use qmpfs_tests::wait;

use super::drive::{Round, Verb};

/// Back to the only point there is.
pub(super) struct Rollback {
    round: u32,
    /// The disk's bytes before.
    active: PathBuf,
}

impl Rollback {
    pub(super) fn new() -> Self {
        Self {
            round: 0,
            active: PathBuf::new(),
        }
    }

    pub(super) fn next(&mut self) {
        self.round += 1;
    }

    pub(super) fn name(&self) -> String {
        format!("p{}", self.round)
    }

    /// A point above it, which is passed.
    pub(super) fn passed(&self) -> String {
        format!("q{}", self.round)
    }
}

impl Verb<Bench> for Rollback {
    fn prepare(&mut self, bench: &mut Bench) {
        self.next();
        bench.seal(&self.name());
        bench.write(5);
        self.active = bench.begin_rollback();
    }

    fn act(&mut self, bench: &mut Bench) -> io::Result<()> {
        bench.disk().roll_back(&self.name())
    }

    fn judge(&mut self, bench: &mut Bench, round: &Round) {
        let listed = |bench: &Bench| {
            let points = bench.disk().list("snapshots");
            points.iter().any(|name| name.starts_with("rolled-back-"))
        };
        wait::until_true(&format!("finished or undone: {}", round.at), || {
            let files = names(bench.dir());
            let kept = files
                .iter()
                .any(|name| name.starts_with("web1.rolled-back-"));
            kept == listed(bench)
        });
        let done = listed(bench);
        assert!(
            done || round.answer.is_err(),
            "answered, and not done: {}",
            round.at
        );
        if done {
            let present = bench.rolled_back(&self.name(), &self.active);
            bench.remove(&present);
        } else {
            bench.go_on(&self.active);
        }
        bench.remove(&self.name());
    }
}
