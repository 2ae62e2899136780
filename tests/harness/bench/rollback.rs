//! Rolling back: the disk goes to another state, and the load goes on from there.

use super::{Bench, SIZE, WRITERS};
use crate::model::Model;
use crate::writer::Writer;
use crate::{oracle, wait};

impl Bench {
    /// The points from `name` down, itself first.
    pub(super) fn chain_of<'a>(&'a self, name: Option<&'a str>) -> Vec<&'a str> {
        let mut chain = Vec::new();
        let mut next = name;
        while let Some(name) = next {
            chain.push(name);
            let point = self.points.iter().find(|p| p.name == name);
            next = point.and_then(|p| p.on.as_deref());
        }
        chain
    }

    /// Announces what the test does next, if there is a load.
    pub fn step(&self, what: &str) {
        if let Some(writer) = &self.writer {
            writer.step(what);
        }
    }

    /// `echo NAME > rollback`, and everything that must be true then. Gives the name of the point that
    /// was active before.
    #[track_caller]
    pub fn roll_back(&mut self, name: &str) -> String {
        let active = self.begin_rollback();
        self.disk()
            .roll_back(name)
            .unwrap_or_else(|e| panic!("rollback to {name}: {e}\n{}", self.mount.text("log")));
        self.rolled_back(name, &active)
    }

    /// The guest is quiet; gives the bytes of its disk.
    #[track_caller]
    pub fn begin_rollback(&mut self) -> std::path::PathBuf {
        if self.machine.attachment().is_vm() {
            self.resets = Some(self.machine.qmp.resets());
        }
        self.writer.take().expect("the writer runs").stop();
        let hands = self.hands.as_mut().expect("the disk runs");
        hands.flush().expect("the guest can flush");
        let bytes = self
            .scratch
            .file(&format!("active-{}.expected", self.points.len()));
        oracle::convert(&self.active(), &bytes);
        bytes
    }

    /// The rollback was done: what was active is a point, the disk is what the point `name` was.
    #[track_caller]
    pub fn rolled_back(&mut self, name: &str, active: &std::path::Path) -> String {
        let known: Vec<String> = self.points.iter().map(|p| p.name.clone()).collect();
        let mut new = self.disk().list("snapshots");
        new.retain(|name| !known.contains(name));
        assert_eq!(new.len(), 1, "one point more: {new:?}");
        let new = new.remove(0);
        assert!(new.starts_with("rolled-back-20"), "{new}");
        self.add_point(&new, active.to_path_buf());
        self.top = Some(name.to_owned());
        self.wait_for_reset();
        self.go_on_from(name);
        new
    }

    /// Waits until the guest was reset. QEMU 10.0.2 forgets clients of an NBD export of the same disk when it is.
    #[track_caller]
    fn wait_for_reset(&mut self) {
        if let Some(before) = self.resets.take() {
            wait::until_true("the guest is reset", || self.machine.qmp.resets() > before);
        }
    }

    /// The load goes on, on a disk that holds what the point held.
    #[track_caller]
    pub fn go_on_from(&mut self, name: &str) {
        let bytes = self.bytes_of(name).to_path_buf();
        self.go_on_holding(&bytes);
    }

    /// The same, on a disk that holds these bytes.
    #[track_caller]
    pub fn go_on_holding(&mut self, bytes: &std::path::Path) {
        self.model = Model::found(bytes, 0..WRITERS);
        let region = WRITERS..SIZE;
        let written = Model::found(bytes, region.clone());
        let endpoint = self.machine.endpoint("vda");
        self.writer = Some(Writer::start(&endpoint, region, written, 13));
        self.hands = Some(self.machine.nbd("vda"));
        self.verify();
        self.write(2);
    }

    /// QEMU has died while the disk was quiet: it boots, and what it boots is told by who knows what was done.
    #[track_caller]
    pub(super) fn boot_at_rest(&mut self) {
        for image in oracle::chain(&self.active()) {
            oracle::check_after_a_fall(&image);
        }
        self.machine.start_again();
        self.hands = Some(self.machine.nbd("vda"));
    }

    /// The load goes on where it was: nothing was rolled back.
    #[track_caller]
    pub fn go_on(&mut self, active: &std::path::Path) {
        let region = WRITERS..SIZE;
        let written = Model::found(active, region.clone());
        let endpoint = self.machine.endpoint("vda");
        self.writer = Some(Writer::start(&endpoint, region, written, 17));
        self.hands = Some(self.machine.nbd("vda"));
        self.verify();
    }
}
