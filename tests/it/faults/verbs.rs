//! The verbs, as the driver wants them.

use std::io;

use qmpfs_tests::agent::FakeAgent;
use qmpfs_tests::bench::{Bench, SIZE, WRITERS};
use qmpfs_tests::tree::DiskDir;
use qmpfs_tests::{oracle, wait};

use super::drive::{Round, Verb};

/// `mkdir snapshots/N`.
pub(super) struct Seal {
    pub(super) first: bool,
    round: u32,
}

impl Seal {
    /// `first`: the first since the VM's start.
    pub(super) fn new(first: bool) -> Self {
        Self { first, round: 0 }
    }

    pub(super) fn next(&mut self) {
        self.round += 1;
    }

    pub(super) fn name(&self) -> String {
        format!("n{}", self.round)
    }

    /// Another point, made before it.
    pub(super) fn below(&self) -> String {
        format!("m{}", self.round)
    }
}

impl Verb<Bench> for Seal {
    fn prepare(&mut self, bench: &mut Bench) {
        self.next();
        if self.first {
            bench.restart();
        }
        bench.write(4);
    }

    fn act(&mut self, bench: &mut Bench) -> io::Result<()> {
        bench.point(&self.name()).make()
    }

    fn judge(&mut self, bench: &mut Bench, round: &Round) {
        let name = self.name();
        let point = bench.point(&name);
        wait::until_true(&format!("finished or undone: {}", round.at), || {
            point.exists() == bench.sealed(&name).exists()
        });
        let after = bench.writer().sent();
        assert!(
            round.answer.is_err() || point.exists(),
            "answered, and it is not there: {}",
            round.at
        );
        if point.exists() {
            let bytes = bench.scratch().file("now.raw");
            oracle::convert(&bench.sealed(&name), &bytes);
            let lost = round.booted.then_some(&after);
            if lost.is_none() {
                round.before.assert_between(&after, &bytes, WRITERS..SIZE);
            }
            bench.hold(&name, &bytes);
            bench.verify();
            if round.booted {
                seal_once_more(bench, &name);
            } else {
                bench.remove(&name);
            }
        }
        assert!(!bench.sealed(&name).exists(), "its file is gone");
    }

    fn may_lose_the_last_writes(&self) -> bool {
        self.first
    }
}

/// The first snapshot since the VM's start, of a guest whose agent freezes it.
pub(super) struct Frozen {
    seal: Seal,
    agent: FakeAgent,
}

impl Frozen {
    pub(super) fn new(agent: FakeAgent) -> Self {
        Self {
            seal: Seal::new(true),
            agent,
        }
    }
}

impl Verb<Bench> for Frozen {
    fn prepare(&mut self, bench: &mut Bench) {
        self.seal.prepare(bench);
    }

    fn act(&mut self, bench: &mut Bench) -> io::Result<()> {
        self.seal.act(bench)
    }

    fn judge(&mut self, bench: &mut Bench, round: &Round) {
        wait::until_true(&format!("the guest is thawed: {}", round.at), || {
            !self.agent.frozen()
        });
        self.seal.judge(bench, round);
    }

    fn may_lose_the_last_writes(&self) -> bool {
        Verb::<Bench>::may_lose_the_last_writes(&self.seal)
    }
}

/// After a restart only a new snapshot makes commits possible: `name` goes below one, and then that one.
fn seal_once_more(bench: &mut Bench, name: &str) {
    let above = format!("{name}-again");
    bench.seal(&above);
    bench.remove(name);
    bench.remove(&above);
}

/// Where in the chain the point is that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Bottom,
    Middle,
    Top,
}

/// `rmdir snapshots/N`, by the merge that the mount was told to use.
pub(super) struct Remove {
    pub(super) place: Place,
    round: u32,
    bulk: Bulk,
}

/// How much is in the point that goes.
enum Bulk {
    With,
    Without,
}

impl Remove {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            round: 0,
            bulk: Bulk::Without,
        }
    }

    /// Of a point with so much in it that its merge is met at work.
    pub(super) fn of_bulk(place: Place) -> Self {
        Self {
            bulk: Bulk::With,
            ..Self::new(place)
        }
    }

    pub(super) fn next(&mut self) {
        self.round += 1;
    }

    /// A point below, the one that goes, and one above.
    pub(super) fn names(&self) -> [String; 3] {
        ["a", "b", "c"].map(|name| format!("{name}{}", self.round))
    }

    /// The point that goes.
    pub(super) fn victim(&self) -> String {
        let [_, victim, _] = self.names();
        victim
    }
}

/// `rmdir`, and the work that it began.
pub(super) fn remove(disk: &DiskDir, name: &str) -> io::Result<()> {
    disk.snapshot(name).delete()?;
    let _ = disk.wait();
    Ok(())
}

impl Verb<Bench> for Remove {
    fn prepare(&mut self, bench: &mut Bench) {
        self.next();
        let [below, victim, above] = self.names();
        if self.place != Place::Bottom {
            bench.seal(&below);
            bench.write(5);
        }
        match self.bulk {
            Bulk::Without => {}
            Bulk::With => bench.write_bulk(),
        }
        bench.seal(&victim);
        bench.write(5);
        if self.place != Place::Top {
            bench.seal(&above);
            bench.write(5);
        }
    }

    fn act(&mut self, bench: &mut Bench) -> io::Result<()> {
        remove(&bench.disk(), &self.victim())
    }

    fn judge(&mut self, bench: &mut Bench, round: &Round) {
        let [below, victim, above] = self.names();
        wait::until_true(&format!("finished or undone: {}", round.at), || {
            bench.point(&victim).exists() || !bench.sealed(&victim).exists()
        });
        let there = bench.point(&victim).exists();
        if !there {
            bench.forget(&victim);
        }
        assert!(
            round.answer.is_ok() || there || round.killed,
            "refused, and the point is gone: {}",
            round.at
        );
        // a merge whose end was late hides the other points for a moment
        wait::until_true(&format!("every point is listed: {}", round.at), || {
            bench.lists_every_point()
        });
        bench.verify_points();
        let again = format!("again{}", self.round);
        if round.booted {
            bench.seal(&again);
        }
        if there {
            bench.remove(&victim);
        }
        assert!(
            !bench.sealed(&victim).exists(),
            "its file is gone: {}",
            round.at
        );
        bench.verify();
        if self.place != Place::Top {
            bench.remove(&above);
        }
        if self.place != Place::Bottom {
            bench.remove(&below);
        }
        if round.booted {
            bench.remove(&again);
        }
    }

    fn may_lose_the_last_writes(&self) -> bool {
        self.place == Place::Top
    }
}

/// `mkdir internal/N`, or `rmdir` of one.
pub(super) struct Internal {
    makes: bool,
    round: u32,
}

impl Internal {
    pub(super) fn made() -> Self {
        Self {
            makes: true,
            round: 0,
        }
    }

    pub(super) fn deleted() -> Self {
        Self {
            makes: false,
            round: 0,
        }
    }

    fn name(&self) -> String {
        format!("i{}", self.round)
    }
}

impl Verb<Bench> for Internal {
    fn prepare(&mut self, bench: &mut Bench) {
        self.round += 1;
        bench.write(4);
        if !self.makes {
            let point = bench.disk().internal(&self.name());
            point.make().expect("mkdir internal");
        }
    }

    fn act(&mut self, bench: &mut Bench) -> io::Result<()> {
        let point = bench.disk().internal(&self.name());
        if self.makes {
            point.make()
        } else {
            point.delete()
        }
    }

    fn judge(&mut self, bench: &mut Bench, round: &Round) {
        let point = bench.disk().internal(&self.name());
        let (there, done) = (point.exists(), round.answer.is_ok());
        assert!(
            !done || there == self.makes,
            "answered, and not done: {}",
            round.at
        );
        if there {
            let bytes = bench.scratch().file("now.raw");
            oracle::convert_internal(&bench.active(), &self.name(), &bytes);
            oracle::assert_same(&point.disk_raw(), &bytes);
            if self.makes && !round.booted {
                let after = bench.writer().sent();
                round.before.assert_between(&after, &bytes, WRITERS..SIZE);
            }
            point.delete_when_closed();
        }
        assert!(bench.disk().list("internal").is_empty());
    }
}
