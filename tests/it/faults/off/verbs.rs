//! The verbs on the disk of a VM that is off: nobody writes meanwhile, so every byte is known.

use std::io;

use qmpfs_tests::off::Off;
use qmpfs_tests::wait;

use crate::faults::drive::{Round, Verb};
use crate::faults::queue::{self, Queue};
use crate::faults::rollback::Rollback;
use crate::faults::verbs::{self, Place, Remove, Seal};

impl Verb<Off> for Seal {
    fn prepare(&mut self, off: &mut Off) {
        self.next();
        // a new storage daemon
        off.vm_writes();
        if !self.first {
            off.seal(&self.below());
        }
    }

    fn act(&mut self, off: &mut Off) -> io::Result<()> {
        off.disk().snapshot(&self.name()).make()
    }

    fn judge(&mut self, off: &mut Off, round: &Round) {
        let name = self.name();
        let there = finished_or_undone(off, &name, round);
        assert!(
            round.answer.is_err() || there,
            "answered, and it is not there: {}",
            round.at
        );
        if there {
            off.hold(&name);
            off.verify(&round.at);
            off.remove(&name);
        }
        if !self.first {
            off.remove(&self.below());
        }
    }
}

impl Verb<Off> for Remove {
    fn prepare(&mut self, off: &mut Off) {
        self.next();
        let [below, victim, above] = self.names();
        if self.place != Place::Bottom {
            off.seal(&below);
            off.vm_writes();
        }
        off.seal(&victim);
        off.vm_writes();
        if self.place != Place::Top {
            off.seal(&above);
        }
    }

    fn act(&mut self, off: &mut Off) -> io::Result<()> {
        verbs::remove(&off.disk(), &self.victim())
    }

    fn judge(&mut self, off: &mut Off, round: &Round) {
        let [below, victim, above] = self.names();
        let there = finished_or_undone(off, &victim, round);
        assert!(
            round.answer.is_ok() || there || round.killed,
            "refused, and the point is gone: {}",
            round.at
        );
        if !there {
            off.forget(&victim);
        }
        off.verify(&round.at);
        if there {
            off.remove(&victim);
        }
        if self.place != Place::Top {
            off.remove(&above);
        }
        if self.place != Place::Bottom {
            off.remove(&below);
        }
    }
}

impl Verb<Off> for Queue {
    fn prepare(&mut self, off: &mut Off) {
        self.next();
        for name in self.names() {
            off.seal(&name);
            off.vm_writes();
        }
    }

    fn act(&mut self, off: &mut Off) -> io::Result<()> {
        queue::remove_all(&off.disk(), &self.names())
    }

    fn judge(&mut self, off: &mut Off, round: &Round) {
        let mut left = Vec::new();
        for name in self.names() {
            if finished_or_undone(off, &name, round) {
                left.push(name);
            } else {
                off.forget(&name);
            }
        }
        off.verify(&round.at);
        for name in left {
            off.remove(&name);
        }
    }
}

/// Past one point, to the one below it.
impl Verb<Off> for Rollback {
    fn prepare(&mut self, off: &mut Off) {
        self.next();
        off.seal(&self.name());
        off.vm_writes();
        off.seal(&self.passed());
        off.vm_writes();
    }

    fn act(&mut self, off: &mut Off) -> io::Result<()> {
        off.disk().roll_back(&self.name())
    }

    fn judge(&mut self, off: &mut Off, round: &Round) {
        let mut new = off.new_points();
        assert!(new.len() <= 1, "one point more: {new:?} {}", round.at);
        let present = new.pop();
        assert!(
            present.is_some() || round.answer.is_err(),
            "answered, and not done: {}",
            round.at
        );
        if let Some(present) = &present {
            assert!(present.starts_with("rolled-back-20"), "{present}");
            off.hold(present);
            off.went_back_to(&self.name());
        }
        off.verify(&round.at);
        // a branch goes from its end
        for name in present.into_iter().chain([self.passed(), self.name()]) {
            off.remove(&name);
        }
    }
}

/// Whether the point is there: its name, and its file.
fn finished_or_undone(off: &Off, name: &str, round: &Round) -> bool {
    let point = off.disk().snapshot(name);
    wait::until_true(&format!("finished or undone: {}", round.at), || {
        point.exists() == off.sealed(name).exists()
    });
    point.exists()
}
