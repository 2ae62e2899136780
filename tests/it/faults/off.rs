//! `echo N > rollback` of a VM that is off, by the storage daemon that qmpfs has started itself: who kills one of the two
//! has killed the verb, and the next mount begins with a new daemon and the files alone.

use std::fs;
use std::io;

use qmpfs_tests::embedded::Embedded;
use qmpfs_tests::faults::names;
use qmpfs_tests::model::Dice;
use qmpfs_tests::sample::Share;
use qmpfs_tests::steps::{Deed, Steps};
use qmpfs_tests::{oracle, wait};

use super::rounds::{Fault, Rounds, Whom};
use crate::rollback::Off;

/// The disk, and the way to its storage daemon.
pub(super) struct OffDriver {
    off: Off,
    daemon: Embedded,
    steps: Steps,
    dice: Dice,
}

impl OffDriver {
    pub(super) fn new(name: &str) -> Self {
        let mut off = Off::with_options(name, &["-o", "merge=stream"]);
        let steps = Steps::new(&off.scratch);
        let daemon = Embedded::new(&off.scratch, &steps);
        let mut environment = steps.environment(&off.scratch.dir("images"));
        environment.push(daemon.environment());
        off.mount.unmount();
        off.mount.set_environment(environment);
        off.mount.mount_again();
        let seed = Share::asked_for().seed();
        println!("QMPFS_FAULTS_SEED={seed}");
        let dice = Dice::new(seed);
        Self {
            off,
            daemon,
            steps,
            dice,
        }
    }

    /// A new mount, where somebody or something was killed or cut off.
    fn recover(&mut self, fault: Fault) {
        match fault.whom {
            Whom::Nobody if !fault.is_unheard() => return,
            Whom::Nobody | Whom::Qemu => self.off.mount.unmount(),
            Whom::Qmpfs | Whom::Host => self.off.mount.kill9(),
        }
        self.wait_for_the_end();
        if self.dice.below(3) == 0 {
            // and while it puts things right it dies once more
            let number = usize::try_from(self.dice.below(12)).expect("small");
            let deed = [Deed::KillBefore, Deed::KillAfter][number % 2];
            self.off.mount.mount_to_die(&self.steps, number, deed);
            let (again, seen) = self.steps.disarm();
            if again {
                println!(
                    "  and {deed:?} at step {number} of the recovery: {:?}",
                    seen.last()
                );
            }
            self.off.mount.kill9();
            self.wait_for_the_end();
        }
        self.off.mount.mount_again();
    }

    /// The daemon ends with its mount, and gives the images back.
    fn wait_for_the_end(&self) {
        wait::until_true("the storage daemon has ended", || !self.daemon.runs());
    }

    /// Every point and the disk hold what they must; with nobody at it the directory holds their files and no more. Gives the
    /// point that was active before, if the rollback was done.
    fn judge(&mut self, known: &[String], answer: &io::Result<()>, at: &str) -> Option<String> {
        let off = &mut self.off;
        let mut new = off.disk().list("snapshots");
        new.retain(|name| !known.contains(name));
        assert!(new.len() <= 1, "one point more: {new:?} {at}");
        let new = new.pop();
        assert!(
            new.is_some() || answer.is_err(),
            "answered, and not done: {at}"
        );
        let active = off.scratch.file("active.raw");
        let boots = match &new {
            None => active,
            Some(name) => {
                assert!(name.starts_with("rolled-back-20"), "{name}: {at}");
                fs::rename(active, off.bytes(name)).expect("its bytes");
                off.bytes("one")
            }
        };
        off.all_points_are_right();
        let mut expected: Vec<String> = off.disk().list("snapshots");
        for name in &mut expected {
            *name = format!("web1.{name}.qcow2");
        }
        expected.push("web1.qcow2".to_owned());
        expected.sort();
        off.mount.unmount();
        let dir = off.scratch.dir("images");
        assert_eq!(names(&dir), expected, "{at}");
        for name in names(&dir) {
            let mut marks = oracle::marks(&dir.join(&name));
            marks.retain(|mark| mark != "point" || name == "web1.qcow2");
            assert!(marks.is_empty(), "{name} is marked {marks:?}: {at}");
        }
        let now = off.scratch.file("now.raw");
        oracle::convert(&off.image, &now);
        oracle::assert_same(&now, &boots);
        for layer in oracle::chain(&off.image) {
            oracle::check_after_a_fall(&layer);
        }
        off.mount.mount_again();
        new
    }

    /// Goes forward again, and takes the branches away.
    fn put_back(&mut self, present: &str) {
        let branch = self.off.roll_back(present);
        for name in [branch.as_str(), present] {
            self.off.disk().snapshot(name).delete_when_closed();
            let merged = self.off.disk().wait();
            merged.unwrap_or_else(|e| panic!("{name}: {e}\n{}", self.off.mount.text("log")));
            fs::remove_file(self.off.bytes(name)).expect("its bytes");
        }
    }
}

impl Rounds for OffDriver {
    fn dice(&mut self) -> &mut Dice {
        &mut self.dice
    }

    fn round(&mut self, fault: Fault, number: usize) -> (bool, Vec<String>) {
        let known = self.off.disk().list("snapshots");
        oracle::convert(&self.off.image, &self.off.scratch.file("active.raw"));
        let (ours, qemu) = (self.off.mount.pid(), self.daemon.pid());
        let victims = match fault.whom {
            Whom::Nobody => [0, 0],
            Whom::Qmpfs => [ours, 0],
            Whom::Qemu => [0, qemu],
            Whom::Host => [qemu, ours],
        };
        self.steps.arm(fault.kinds, number, fault.deed, victims);
        let answer = self.off.disk().roll_back("one");
        let (fired, seen) = self.steps.disarm();
        let last = seen.get(number).cloned().unwrap_or_default();
        let shown = answer.as_ref().map_err(ToString::to_string);
        let at = format!(
            "{:?} of {:?} at step {number} ({last}): {shown:?}",
            fault.deed, fault.whom
        );
        println!("{at}");
        if fired {
            self.recover(fault);
        } else {
            assert!(answer.is_ok(), "undisturbed it works: {at}");
        }
        if let (Some(told), Err(error)) = (fault.told(), &answer) {
            assert!(
                error
                    .raw_os_error()
                    .is_some_and(|errno| told.contains(&errno)),
                "another errno than that of the fault: {at}\n{seen:?}"
            );
        }
        if let Some(present) = self.judge(&known, &answer, &at) {
            self.put_back(&present);
        }
        (fired, seen)
    }
}
