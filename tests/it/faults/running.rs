//! A running disk: a proxy stands in front of its monitor, a writer beside it, and QEMU may be the one that dies.

use qmpfs_tests::bench::Bench;
use qmpfs_tests::model::Model;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::steps::{Deed, Steps};
use qmpfs_tests::tree::{self, DiskDir};
use qmpfs_tests::wait;
use qmpfs_tests::writer::Writer;

use super::drive::{Again, Driver, Fall, Round, Stand, Verb};
use super::rounds::{Which, Whom};

/// The disk with its proxy.
pub(super) struct Running {
    bench: Bench,
    proxy: Proxy,
    /// How often qmpfs had found QEMU when the round began.
    connections: f64,
}

/// All rounds of one verb.
pub(super) fn every_step(bench: Bench, verb: impl Verb<Bench>) {
    driver(bench, verb).every_step();
}

/// One fault at the first step whose words begin like this: what was found once, and mended.
pub(super) fn at_step(bench: Bench, verb: impl Verb<Bench>, whom: Whom, deed: Deed, words: &str) {
    driver(bench, verb).at_step(whom, deed, Which::Nth(0), words);
}

/// The same at the last such step.
pub(super) fn at_last_step(
    bench: Bench,
    verb: impl Verb<Bench>,
    whom: Whom,
    deed: Deed,
    words: &str,
) {
    driver(bench, verb).at_step(whom, deed, Which::Last, words);
}

fn driver<V: Verb<Bench>>(mut bench: Bench, verb: V) -> Driver<Running, V> {
    let steps = Steps::new(bench.scratch());
    let watched = verb.watched().unwrap_or_else(|| bench.dir().to_owned());
    bench.mount.set_environment(steps.environment(&watched));
    let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
    bench.mount.mount_through(proxy.socket());
    bench.wait_for_disk();
    let stand = Running {
        bench,
        proxy,
        connections: 0.0,
    };
    Driver::new(stand, steps, verb)
}

impl Running {
    fn clean(&mut self, at: &str) {
        let mut left = String::new();
        let clean = wait::poll(wait::PATIENCE, || {
            self.bench.left_over().map_err(|what| left = what).ok()
        });
        let log = tree::text(&self.bench.mount.path().join("log"));
        assert!(clean.is_some(), "left over: {left}\n{at}\n{log}");
    }
}

impl Stand for Running {
    type Bench = Bench;

    fn bench(&mut self) -> &mut Bench {
        &mut self.bench
    }

    fn disk(&self) -> DiskDir {
        self.bench.disk()
    }

    fn processes(&self) -> [u32; 2] {
        [self.bench.mount.pid(), self.bench.machine.pid()]
    }

    fn ready(&mut self, qemu_dies: bool) -> Model {
        let bench = &mut self.bench;
        bench.flush();
        let before = bench.load().map(|writer| {
            writer.progress(3);
            writer.acknowledged()
        });
        if let Some(writer) = bench.load().filter(|_| qemu_dies) {
            writer.expect_the_end();
        }
        // what a stopped guest does not write cannot be lost when QEMU dies
        let guest = qemu_dies && bench.machine.attachment().is_vm();
        let writer = bench.load().filter(|_| guest);
        self.proxy.stops(writer.map(Writer::gate));
        self.connections = bench.connections();
        before.unwrap_or_default()
    }

    fn recover(&mut self, fall: &Fall, again: &mut Again<'_>) {
        let bench = &mut self.bench;
        let whom = fall.fault.whom;
        if matches!(whom, Whom::Qmpfs | Whom::Host) {
            bench.mount.kill9();
        }
        if fall.qemu_dies {
            let storage_daemon = !bench.machine.attachment().is_vm();
            let at_least = fall.at_least.as_ref().filter(|_| storage_daemon);
            bench.boot_after_a_fall(at_least);
        }
        if matches!(whom, Whom::Qmpfs | Whom::Host) {
            again.dies(&mut bench.mount);
            bench.mount.mount_again();
        }
        let cut = matches!(fall.fault.deed, Deed::CutBefore | Deed::CutAfter);
        if cut || whom == Whom::Qemu {
            // qmpfs may not have seen yet that it was gone
            let fault = fall.fault;
            wait::until_true(&format!("QEMU is there again: {fault:?}"), || {
                self.bench.connections() > self.connections
            });
        }
        wait::until_true(&format!("the disk is back: {:?}", fall.fault), || {
            self.bench.disk().0.join("snapshots").is_dir() && self.bench.mount_is_connected()
        });
    }

    fn settle(&mut self, round: &Round) {
        let at = &round.at;
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
        if round.lossy {
            assert!(self.bench.hidden_names() <= 1, "one name at most: {at}");
            self.bench.remove_left_alone();
        }
    }

    fn verify(&mut self, round: &Round) {
        self.bench.verify();
        self.clean(&round.at);
        self.bench.forget_bytes();
    }

    fn restart(&mut self) {
        self.bench.restart();
    }

    fn finish(self) {
        self.bench.finish();
    }
}
