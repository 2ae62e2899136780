//! What happens beside the guest: by qmpfs as a person does it, and by hand as virsh does it: one job, to a qcow2 file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use qmpfs_tests::machine::Machine;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::nbd::{Endpoint, Nbd};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::Point;
use qmpfs_tests::{oracle, wait};
use serde_json::{Value, json};

use super::{ALONE, What};
use crate::servers::Who;

const DISK: &str = "vda";
const NODE: &str = "vda-node";
/// The bitmap, the job, the target and the export of those who work by hand.
const HAND: &str = "by-hand";
/// What a reader of an instant reads at once.
const STRIDE: usize = 1 << 20;

/// What begins with a backup by hand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    ABitmap,
    Nothing,
}

/// A disk and all who work on it.
pub(super) struct Bench {
    machine: Machine,
    mount: Mounted,
    scratch: Scratch,
    round: usize,
}

impl Bench {
    pub(super) fn new(machine: Machine, mount: Mounted, scratch: Scratch) -> Self {
        let bench = Self {
            machine,
            mount,
            scratch,
            round: 0,
        };
        wait::until_true("the disk is in the mount", || {
            bench.mount.disk(DISK).0.is_dir()
        });
        bench
    }

    /// Where the guest writes.
    pub(super) fn endpoint(&self) -> Endpoint {
        self.machine.endpoint(DISK)
    }

    fn name(&self, what: &str) -> String {
        format!("{what}{}", self.round)
    }

    fn target(&self) -> PathBuf {
        self.scratch.file("by-hand.qcow2")
    }

    /// What a participant has to have before it is watched.
    pub(super) fn prepare(&mut self, what: What, who: Who) {
        self.round += 1;
        match (what, who) {
            (What::Incremental, Who::ByHand) => {
                self.by_hand(&json!({"sync": "full"}), Begins::ABitmap);
                self.remove_target();
            }
            (What::Incremental, Who::Ours) => {
                let full = self.mount.disk(DISK).backup("full", &self.name("full"));
                full.make().expect("mkdir");
                self.wait_for_digest(&full);
            }
            _ => {}
        }
    }

    /// Does it, from its first command to its last.
    pub(super) fn go_through(&mut self, what: What, who: Who) {
        let disk = self.mount.disk(DISK);
        match (who, what) {
            (Who::ByHand, What::Full) => self.by_hand(&json!({"sync": "full"}), Begins::Nothing),
            (Who::ByHand, What::Incremental) => {
                let how = json!({"sync": "incremental", "bitmap": HAND});
                self.by_hand(&how, Begins::Nothing);
            }
            (Who::ByHand, What::Live) => self.fleece(),
            (Who::Ours, What::Full) => {
                disk.backup("full", &self.name("full"))
                    .make()
                    .expect("mkdir");
                disk.wait().expect("a backup");
            }
            (Who::Ours, What::Incremental) => {
                let point = disk.backup("incremental", &self.name("incremental"));
                point.make().expect("mkdir");
                disk.wait().expect("a backup");
                assert_eq!(point.json()["copied"], "changes");
            }
            (Who::Ours, What::Live) => {
                let point = disk.live("live");
                point.make().expect("mkdir");
                read_file(&point.disk_raw());
            }
            _ => std::thread::sleep(ALONE),
        }
    }

    /// qmpfs reads a backup once more when it is complete.
    pub(super) fn read_for_digest(&self) {
        self.wait_for_digest(&self.mount.disk(DISK).backup("full", &self.name("full")));
    }

    fn wait_for_digest(&self, point: &Point) {
        wait::until_true("the digest is there", || point.json()["digest"].is_string());
    }

    /// What is left of it goes, while nobody is watched.
    pub(super) fn tidy(&mut self, what: What, who: Who) {
        let disk = self.mount.disk(DISK);
        match (who, what) {
            (Who::ByHand, _) => {
                self.remove_target();
                let bitmap = json!({"node": NODE, "name": HAND});
                // only of an incremental one there is one
                let _ = self
                    .machine
                    .qmp
                    .execute("block-dirty-bitmap-remove", bitmap);
            }
            (Who::Ours, What::Live) => disk.live("live").delete_when_closed(),
            (Who::Ours, _) => {
                for kind in ["incremental", "full"] {
                    let point = disk.backup(kind, &self.name(kind));
                    if point.exists() {
                        self.wait_for_digest(&point);
                        point.delete_when_closed();
                        disk.wait().expect("it goes");
                    }
                }
            }
            _ => {}
        }
    }

    fn remove_target(&self) {
        std::fs::remove_file(self.target()).expect("our own file");
    }

    /// An empty qcow2 file as a node.
    fn add_target(&mut self, backing: &Value) {
        let target = self.target();
        let size = self.machine.nbd(DISK).size();
        oracle::create(&target, size);
        let file = json!({"driver": "file", "filename": target});
        let node = json!({"driver": "qcow2", "node-name": HAND, "file": file, "backing": backing});
        self.machine.qmp.run("blockdev-add", node);
    }

    /// One job, from `blockdev-add` to `blockdev-del`.
    fn by_hand(&mut self, how: &Value, begins: Begins) {
        self.add_target(&Value::Null);
        let mut data =
            json!({"job-id": HAND, "device": NODE, "target": HAND, "auto-dismiss": false});
        let more = how.as_object().expect("arguments").clone();
        data.as_object_mut().expect("arguments").extend(more);
        let mut actions = vec![json!({"type": "blockdev-backup", "data": data})];
        if begins == Begins::ABitmap {
            let bitmap = json!({"node": NODE, "name": HAND, "persistent": true});
            actions.insert(0, json!({"type": "block-dirty-bitmap-add", "data": bitmap}));
        }
        self.machine
            .qmp
            .run("transaction", json!({"actions": actions}));
        self.machine.qmp.until_job(HAND, "concluded");
        self.machine.qmp.run("job-dismiss", json!({"id": HAND}));
        self.machine
            .qmp
            .run("blockdev-del", json!({"node-name": HAND}));
    }

    /// A job that saves what is overwritten, and a reader over NBD.
    fn fleece(&mut self) {
        self.add_target(&json!(NODE));
        let job = json!({"job-id": HAND, "device": NODE, "target": HAND, "sync": "none"});
        self.machine.qmp.run("blockdev-backup", job);
        let export = json!({"type": "nbd", "id": HAND, "node-name": HAND, "name": HAND});
        self.machine.qmp.run("block-export-add", export);
        let mut reader = Nbd::connect(&Endpoint {
            name: HAND.into(),
            ..self.endpoint()
        });
        let mut bytes = vec![0; STRIDE];
        for offset in (0..reader.size()).step_by(STRIDE) {
            reader
                .read(offset, &mut bytes)
                .expect("the instant can be read");
        }
        drop(reader);
        let qmp = &mut self.machine.qmp;
        qmp.run("block-export-del", json!({"id": HAND, "mode": "hard"}));
        wait::until_true("nobody serves it", || {
            !qmp.run("query-block-exports", json!({}))
                .to_string()
                .contains(HAND)
        });
        qmp.run("job-cancel", json!({"id": HAND}));
        wait::until_true("the job is gone", || {
            !qmp.run("query-jobs", json!({})).to_string().contains(HAND)
        });
        qmp.run("blockdev-del", json!({"node-name": HAND}));
    }
}

fn read_file(view: &Path) {
    let mut file = File::open(view).expect("the instant can be opened");
    let mut bytes = vec![0; STRIDE];
    while file.read(&mut bytes).expect("the instant can be read") > 0 {}
}
