//! One driver for every verb and every fault: it runs the verb once undisturbed and takes down its steps, then again and
//! again with one fault at one step, and asks each time whether all is as if the verb had been done, or never begun.
//! An everyday run takes some of them, by a seed it prints; `QMPFS_FAULTS=n` takes n of each verb, `full` all there are.
//! What a disk is that runs, or that is off, its stand knows: `running`, `off`.

use std::fs;
use std::io;
use std::path::PathBuf;

use qmpfs_tests::model::{Dice, Model};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::sample::Share;
use qmpfs_tests::steps::{Deed, Steps};
use qmpfs_tests::tree::DiskDir;
use qmpfs_tests::wait;

use super::rounds::{Fault, Rounds, Which, Whom};

/// A verb under test, on a workbench. Its rounds leave the disk as they found it.
pub(super) trait Verb<B> {
    /// Makes what the verb is done to.
    fn prepare(&mut self, bench: &mut B);
    /// The verb itself, and all work that it began: the answer of the system call.
    fn act(&mut self, bench: &mut B) -> io::Result<()>;
    /// It was done, or it was not begun: which of the two, everything as it then must be. Puts the disk back.
    fn judge(&mut self, bench: &mut B, round: &Round);
    /// The directory in which operations of qmpfs on files are steps, if it is not the images'.
    fn watched(&self) -> Option<PathBuf> {
        None
    }
    /// Says to work that goes on what only a person says; again and again until it has ended.
    fn go_on(&mut self, _: &B) {}
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
    /// And writes of its last milliseconds may be gone.
    pub(super) lossy: bool,
    /// For messages.
    pub(super) at: String,
}

/// A workbench, with what stands between its mount and its QEMU.
pub(super) trait Stand {
    type Bench;
    fn bench(&mut self) -> &mut Self::Bench;
    fn disk(&self) -> DiskDir;
    /// Those of qmpfs and of QEMU.
    fn processes(&self) -> [u32; 2];
    /// Everything is prepared. Gives what was acknowledged.
    fn ready(&mut self, qemu_dies: bool) -> Model;
    /// What the administrator would do: start again what has died.
    fn recover(&mut self, fall: &Fall, again: &mut Again<'_>);
    /// Waits until what was done can be judged; the jobs have ended.
    fn settle(&mut self, round: &Round);
    /// The verb has judged: so must everything else be.
    fn verify(&mut self, round: &Round);
    /// Begins anew.
    fn restart(&mut self);
    /// The last questions.
    fn finish(self);
}

/// What has happened to whom.
pub(super) struct Fall {
    pub(super) fault: Fault,
    pub(super) qemu_dies: bool,
    /// What must be there whatever was written since, where that may be lost.
    pub(super) at_least: Option<Model>,
}

/// While it puts things right qmpfs dies once more, in one of three times.
pub(super) struct Again<'a> {
    steps: &'a Steps,
    dice: &'a mut Dice,
}

impl Again<'_> {
    /// True if it was started, and has died.
    pub(super) fn dies(&mut self, mount: &mut Mounted) -> bool {
        if self.dice.below(3) != 0 {
            return false;
        }
        let number = usize::try_from(self.dice.below(12)).expect("small");
        let deed = [Deed::KillBefore, Deed::KillAfter][number % 2];
        mount.mount_to_die(self.steps, number, deed);
        let (again, seen) = self.steps.disarm();
        if again {
            println!(
                "  and {deed:?} at step {number} of the recovery: {:?}",
                seen.last()
            );
        }
        mount.kill9();
        true
    }
}

/// A verb with everything around it.
pub(super) struct Driver<S, V> {
    stand: S,
    steps: Steps,
    verb: V,
    dice: Dice,
}

impl<S: Stand, V: Verb<S::Bench>> Driver<S, V> {
    pub(super) fn new(stand: S, steps: Steps, verb: V) -> Self {
        let seed = Share::asked_for().seed();
        println!("QMPFS_FAULTS_SEED={seed}");
        let dice = Dice::new(seed);
        Self {
            stand,
            steps,
            verb,
            dice,
        }
    }

    /// All rounds of the verb.
    pub(super) fn every_step(mut self) {
        self.every_round();
        self.finish();
    }

    /// One fault at the first or last step whose words begin like this: what was found once, and mended.
    pub(super) fn at_step(mut self, whom: Whom, deed: Deed, which: Which, words: &str) {
        self.at(whom, deed, which, words);
        self.finish();
    }

    fn finish(mut self) {
        self.stand.restart();
        self.stand.finish();
    }

    /// Waits until the work has ended. Failed jobs are dismissed, as a person does.
    fn wait_for_jobs(&mut self, at: &str) {
        wait::until_true(&format!("the work has ended: {at}"), || {
            self.verb.go_on(self.stand.bench());
            let jobs = self.stand.disk().0.join("jobs");
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
    }
}

impl<S: Stand, V: Verb<S::Bench>> Rounds for Driver<S, V> {
    fn dice(&mut self) -> &mut Dice {
        &mut self.dice
    }

    fn round(&mut self, fault: Fault, number: usize) -> (bool, Vec<String>) {
        self.verb.prepare(self.stand.bench());
        let [ours, qemu] = self.stand.processes();
        let victims = match fault.whom {
            Whom::Nobody => [0, 0],
            Whom::Qmpfs => [ours, 0],
            Whom::Qemu => [0, qemu],
            Whom::Host => [qemu, ours],
        };
        let qemu_dies = victims.contains(&qemu);
        let before = self.stand.ready(qemu_dies);
        self.steps.arm(fault.kinds, number, fault.deed, victims);
        let answer = self.verb.act(self.stand.bench());
        let (fired, seen) = self.steps.disarm();
        let last = seen.get(number).cloned().unwrap_or_default();
        let what = format!("{:?} of {:?}", fault.deed, fault.whom);
        let shown = answer.as_ref().map_err(ToString::to_string);
        let at = format!("{what} at step {number} ({last}): {shown:?}");
        println!("{at}");
        if fired {
            let lost = self.verb.may_lose_the_last_writes();
            let fall = Fall {
                fault,
                qemu_dies,
                at_least: lost.then(|| before.clone()),
            };
            let mut again = Again {
                steps: &self.steps,
                dice: &mut self.dice,
            };
            self.stand.recover(&fall, &mut again);
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
            lossy: fired && qemu_dies && self.verb.may_lose_the_last_writes(),
            at,
        };
        self.wait_for_jobs(&round.at);
        self.stand.settle(&round);
        self.verb.judge(self.stand.bench(), &round);
        self.stand.verify(&round);
        if fired && self.dice.below(8) == 0 {
            self.stand.restart();
        }
        (fired, seen)
    }
}
