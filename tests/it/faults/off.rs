//! The disk of a VM that is off, by the storage daemon that qmpfs has started itself: who kills one of the two has killed
//! the verb, and the next mount begins with a new daemon and the files alone.

use qmpfs_tests::embedded::Embedded;
use qmpfs_tests::model::Model;
use qmpfs_tests::off::Off;
use qmpfs_tests::steps::{Deed, Steps};
use qmpfs_tests::tree::DiskDir;
use qmpfs_tests::wait;

use super::drive::{Again, Driver, Fall, Round, Stand, Verb};
use super::rounds::{Which, Whom};

mod verbs;

/// The disk, and the way to its storage daemon.
pub(super) struct SwitchedOff {
    off: Off,
    daemon: Embedded,
}

/// All rounds of one verb, on a disk that stands alone.
pub(super) fn every_step(name: &str, options: &[&str], verb: impl Verb<Off>) {
    driver(name, options, verb).every_step();
}

/// One fault at a step whose words begin like this: what was found once, and mended.
pub(super) fn at_step(
    name: &str,
    options: &[&str],
    verb: impl Verb<Off>,
    (whom, deed): (Whom, Deed),
    (which, words): (Which, &str),
) {
    driver(name, options, verb).at_step(whom, deed, which, words);
}

fn driver<V: Verb<Off>>(name: &str, options: &[&str], verb: V) -> Driver<SwitchedOff, V> {
    let mut off = Off::new(name, options);
    let steps = Steps::new(&off.scratch);
    let daemon = Embedded::new(&off.scratch, &steps);
    let mut environment = steps.environment(off.dir());
    environment.push(daemon.environment());
    off.mount.unmount();
    off.mount.set_environment(environment);
    off.mount.mount_again();
    Driver::new(SwitchedOff { off, daemon }, steps, verb)
}

impl SwitchedOff {
    /// The daemon ends with its mount, and gives the images back.
    fn wait_for_the_end(&self) {
        wait::until_true("the storage daemon has ended", || !self.daemon.runs());
    }
}

impl Stand for SwitchedOff {
    type Bench = Off;

    fn bench(&mut self) -> &mut Off {
        &mut self.off
    }

    fn disk(&self) -> DiskDir {
        self.off.disk()
    }

    fn processes(&self) -> [u32; 2] {
        [self.off.mount.pid(), self.daemon.pid()]
    }

    fn ready(&mut self, _: bool) -> Model {
        // nobody writes
        Model::default()
    }

    fn recover(&mut self, fall: &Fall, again: &mut Again<'_>) {
        let mount = &mut self.off.mount;
        match fall.fault.whom {
            Whom::Nobody if !fall.fault.is_unheard() => return,
            Whom::Nobody | Whom::Qemu => mount.unmount(),
            Whom::Qmpfs | Whom::Host => mount.kill9(),
        }
        self.wait_for_the_end();
        if again.dies(&mut self.off.mount) {
            self.wait_for_the_end();
        }
        self.off.mount.mount_again();
    }

    fn settle(&mut self, round: &Round) {
        let what = format!("no work is written down: {}", round.at);
        wait::until_true(&what, || self.off.work_written_down().is_empty());
    }

    fn verify(&mut self, round: &Round) {
        self.off.verify(&round.at);
    }

    fn restart(&mut self) {
        self.off.vm_writes();
    }

    fn finish(mut self) {
        self.off.mount.unmount();
    }
}
