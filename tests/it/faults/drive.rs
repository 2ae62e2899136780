//! One driver for every verb and every fault: it runs the verb once undisturbed and takes down its steps, then again and
//! again with one fault at one step, and asks each time whether all is as if the verb had been done, or never begun.
//! An everyday run takes some of them, by a seed it prints; `QMPFS_FAULTS=n` takes n of each verb, `full` all there are.

use std::fs;
use std::io;
use std::path::PathBuf;

use qmpfs_tests::bench::Bench;
use qmpfs_tests::model::{Dice, Model};
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::sample::Share;
use qmpfs_tests::steps::{Deed, Steps};
use qmpfs_tests::writer::Writer;
use qmpfs_tests::{tree, wait};

use super::rounds::{Fault, Rounds, Which, Whom};

/// A verb under test. Its rounds leave the disk as they found it.
pub(super) trait Verb {
    /// Makes what the verb is done to.
    fn prepare(&mut self, bench: &mut Bench);
    /// The verb itself, and all work that it began: the answer of the system call.
    fn act(&mut self, bench: &mut Bench) -> io::Result<()>;
    /// It was done, or it was not begun: which of the two, everything as it then must be. Puts the disk back.
    fn judge(&mut self, bench: &mut Bench, round: &Round);
    /// The directory in which operations of qmpfs on files are steps.
    fn watched(&self, bench: &Bench) -> PathBuf {
        bench.dir().to_owned()
    }
    /// Says to work that goes on what only a person says; again and again until it has ended.
    fn go_on(&mut self, _: &Bench) {}
    /// True if the guest's disk has another file afterwards, on a storage daemon, which cannot stop its clients:
    /// a host that dies within those milliseconds may lose their writes.
    fn may_lose_the_last_writes(&self) -> bool {
        false
    }
}

/// What happened in one round.
pub(super) struct Round {
    /// What was acknowledged before the verb began.
    pub(super) before: Model,
    /// The answer of the system call.
    pub(super) answer: io::Result<()>,
    /// Nobody heard the answer.
    pub(super) killed: bool,
    /// The VM was started anew in between.
    pub(super) booted: bool,
    /// For messages.
    pub(super) at: String,
}

/// A verb with everything around it.
pub(super) struct Driver<V> {
    bench: Bench,
    proxy: Proxy,
    steps: Steps,
    verb: V,
    dice: Dice,
}

/// All rounds of one verb.
pub(super) fn every_step(bench: Bench, verb: impl Verb) {
    let mut driver = Driver::new(bench, verb);
    driver.every_round();
    driver.finish();
}

/// One fault at the first step whose words begin like this: what was found once, and mended.
pub(super) fn at_step(bench: Bench, verb: impl Verb, whom: Whom, deed: Deed, words: &str) {
    let mut driver = Driver::new(bench, verb);
    driver.at(whom, deed, Which::First, words);
    driver.finish();
}

/// The same at the last such step.
pub(super) fn at_last_step(bench: Bench, verb: impl Verb, whom: Whom, deed: Deed, words: &str) {
    let mut driver = Driver::new(bench, verb);
    driver.at(whom, deed, Which::Last, words);
    driver.finish();
}

impl<V: Verb> Driver<V> {
    fn new(mut bench: Bench, verb: V) -> Self {
        let steps = Steps::new(bench.scratch());
        let environment = steps.environment(&verb.watched(&bench));
        bench.mount.set_environment(environment);
        let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
        bench.mount.mount_through(proxy.socket());
        bench.wait_for_disk();
        let seed = Share::asked_for().seed();
        println!("QMPFS_FAULTS_SEED={seed}");
        let dice = Dice::new(seed);
        Self {
            bench,
            proxy,
            steps,
            verb,
            dice,
        }
    }

    fn finish(mut self) {
        self.bench.restart();
        self.bench.finish();
    }

    /// What the administrator would do: start again what has died.
    fn recover(&mut self, fault: Fault, qemu_dies: bool, before: &Model) {
        let bench = &mut self.bench;
        if matches!(fault.whom, Whom::Qmpfs | Whom::Host) {
            bench.mount.kill9();
        }
        if qemu_dies {
            let storage_daemon = !bench.machine.attachment().is_vm();
            let lenient = storage_daemon && self.verb.may_lose_the_last_writes();
            bench.boot_after_a_fall(lenient.then_some(before));
        }
        if matches!(fault.whom, Whom::Nobody | Whom::Qemu) {
            return;
        }
        if self.dice.below(3) == 0 {
            // and while it puts things right it dies once more
            let number = usize::try_from(self.dice.below(12)).expect("small");
            let deed = [Deed::KillBefore, Deed::KillAfter][number % 2];
            bench.mount.mount_to_die(&self.steps, number, deed);
            let (again, seen) = self.steps.disarm();
            if again {
                println!(
                    "  and {deed:?} at step {number} of the recovery: {:?}",
                    seen.last()
                );
            }
            bench.mount.kill9();
        }
        bench.mount.mount_again();
    }

    /// Waits until the program has finished or undone everything by itself. Failed jobs are dismissed, as a person does.
    fn settle(&mut self, round: &Round) {
        let at = &round.at;
        wait::until_true(&format!("the disk is back: {at}"), || {
            self.bench.disk().0.join("snapshots").is_dir() && self.bench.mount_is_connected()
        });
        wait::until_true(&format!("the work has ended: {at}"), || {
            self.verb.go_on(&self.bench);
            let jobs = self.bench.disk().0.join("jobs");
            let Ok(entries) = fs::read_dir(&jobs) else {
                return false;
            };
            let mut none = true;
            for job in entries.flatten() {
                none = false;
                let failed = fs::read_to_string(job.path().join("error"));
                if failed.is_ok_and(|error| !error.trim().is_empty()) {
                    let _ = fs::remove_dir(job.path());
                }
            }
            none
        });
        wait::until_true(&format!("no work is written down: {at}"), || {
            self.bench.work_written_down().is_empty()
                || self.bench.waits_for_a_start()
                || self.bench.waits_for_a_mount()
        });
        if self.bench.waits_for_a_mount() {
            self.bench.mount.unmount();
            self.bench.mount.mount_again();
            wait::until_true(&format!("the note of the freeze goes: {at}"), || {
                self.bench.work_written_down().is_empty()
            });
        }
        if self.bench.waits_for_a_start() {
            self.bench.start_again();
            wait::until_true(&format!("the old name goes: {at}"), || {
                self.bench.work_written_down().is_empty()
            });
        }
    }

    fn clean(&mut self, at: &str) {
        let mut left = String::new();
        let clean = wait::poll(wait::PATIENCE, || {
            self.bench.left_over().map_err(|what| left = what).ok()
        });
        let log = tree::text(&self.bench.mount.path().join("log"));
        assert!(clean.is_some(), "left over: {left}\n{at}\n{log}");
    }
}

impl<V: Verb> Rounds for Driver<V> {
    fn dice(&mut self) -> &mut Dice {
        &mut self.dice
    }

    fn round(&mut self, fault: Fault, number: usize) -> (bool, Vec<String>) {
        let bench = &mut self.bench;
        self.verb.prepare(bench);
        bench.flush();
        let before = bench.load().map(|writer| {
            writer.progress(3);
            writer.acknowledged()
        });
        let before = before.unwrap_or_default();
        let (ours, qemu) = (bench.mount.pid(), bench.machine.pid());
        let victims = match fault.whom {
            Whom::Nobody => [0, 0],
            Whom::Qmpfs => [ours, 0],
            Whom::Qemu => [0, qemu],
            Whom::Host => [qemu, ours],
        };
        let qemu_dies = victims.contains(&qemu);
        if let Some(writer) = bench.load().filter(|_| qemu_dies) {
            writer.expect_the_end();
        }
        // what a stopped guest does not write cannot be lost when QEMU dies
        let guest = qemu_dies && bench.machine.attachment().is_vm();
        let writer = bench.load().filter(|_| guest);
        self.proxy.stops(writer.map(Writer::gate));
        let connections = bench.connections();
        self.steps.arm(fault.kinds, number, fault.deed, victims);
        let answer = self.verb.act(bench);
        let (fired, seen) = self.steps.disarm();
        let last = seen.get(number).cloned().unwrap_or_default();
        let what = format!("{:?} of {:?}", fault.deed, fault.whom);
        let shown = answer.as_ref().map_err(ToString::to_string);
        let at = format!("{what} at step {number} ({last}): {shown:?}");
        println!("{at}");
        if fired {
            self.recover(fault, qemu_dies, &before);
            let cut = matches!(fault.deed, Deed::CutBefore | Deed::CutAfter);
            if cut || fault.whom == Whom::Qemu {
                // qmpfs may not have seen yet that it was gone
                wait::until_true(&format!("QEMU is there again: {at}"), || {
                    self.bench.connections() > connections
                });
            }
        }
        if !fired {
            assert!(answer.is_ok(), "undisturbed it works: {at}");
        } else if let (Some(told), Err(error)) = (fault.told(), &answer) {
            assert!(
                error
                    .raw_os_error()
                    .is_some_and(|errno| told.contains(&errno)),
                "another errno than that of the fault: {at}\n{seen:?}"
            );
        }
        let round = Round {
            before,
            answer,
            killed: fired && (fault.whom != Whom::Nobody || fault.is_unheard()),
            booted: fired && qemu_dies,
            at,
        };
        self.settle(&round);
        if round.booted && self.verb.may_lose_the_last_writes() {
            assert!(
                self.bench.hidden_names() <= 1,
                "one name at most: {}",
                round.at
            );
            self.bench.remove_left_alone();
        }
        self.verb.judge(&mut self.bench, &round);
        self.bench.verify();
        self.clean(&round.at);
        self.bench.forget_bytes();
        if fired && self.dice.below(8) == 0 {
            self.bench.restart();
        }
        (fired, seen)
    }
}
