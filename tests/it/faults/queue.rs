//! Three removals at once: one at work, two that wait behind it.

use std::io;
use std::thread;

use qmpfs_tests::bench::Bench;
use qmpfs_tests::tree::DiskDir;
use qmpfs_tests::wait;

use super::drive::{Round, Verb};

/// `rmdir snapshots/A snapshots/B snapshots/C`, by streams.
pub(super) struct Queue {
    round: u32,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { round: 0 }
    }

    pub(super) fn next(&mut self) {
        self.round += 1;
    }

    pub(super) fn names(&self) -> [String; 3] {
        ["a", "b", "c"].map(|name| format!("{name}{}", self.round))
    }
}

/// All at once, and the work that it began.
pub(super) fn remove_all(disk: &DiskDir, names: &[String]) -> io::Result<()> {
    let answers: Vec<io::Result<()>> = thread::scope(|scope| {
        let callers: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(|| disk.snapshot(name).delete()))
            .collect();
        let ended = callers.into_iter().map(|caller| caller.join());
        ended.map(|answer| answer.expect("no panic")).collect()
    });
    let _ = disk.wait();
    answers.into_iter().collect()
}

impl Verb<Bench> for Queue {
    fn prepare(&mut self, bench: &mut Bench) {
        self.next();
        for name in self.names() {
            bench.seal(&name);
            bench.write(5);
        }
    }

    fn act(&mut self, bench: &mut Bench) -> io::Result<()> {
        remove_all(&bench.disk(), &self.names())
    }

    fn judge(&mut self, bench: &mut Bench, round: &Round) {
        for name in self.names() {
            wait::until_true(&format!("finished or undone: {}", round.at), || {
                bench.point(&name).exists() || !bench.sealed(&name).exists()
            });
        }
        let (there, gone): (Vec<_>, Vec<_>) = self
            .names()
            .into_iter()
            .partition(|name| bench.point(name).exists());
        for name in &gone {
            bench.forget(name);
        }
        wait::until_true(&format!("every point is listed: {}", round.at), || {
            bench.lists_every_point()
        });
        bench.verify_points();
        for name in &there {
            bench.remove(name);
        }
        for name in self.names() {
            assert!(
                !bench.sealed(&name).exists(),
                "its file is gone: {}",
                round.at
            );
        }
    }
}
