//! What could make an incremental backup show other bytes than those of its instant: a disk that was cut in between, bitmaps
//! that are there twice, clones of the VM, files that go. Beside a writer that never stops.

use std::fs;
use std::path::{Path, PathBuf};

use qmpfs_tests::bench::Shelf;
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::{Model, fill};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::rewrite::rewriting;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{DiskDir, json};
use qmpfs_tests::writer::Writer;
use qmpfs_tests::{oracle, sh, wait};
use serde_json::{Value, json};

use super::{SLOW, assert_nothing_left, assert_stands_on, begin, why_full};

/// The writer is below; from here on nobody writes but the test.
const WRITERS: u64 = 8 << 20;
const SIZE: u64 = 24 << 20;
const SMALLER: u64 = 16 << 20;
const LARGER: u64 = 32 << 20;

/// A running disk that may get another size, with a backup directory that others may have, too.
struct Rig {
    writer: Option<Writer>,
    mount: Mounted,
    machine: Machine,
    image: PathBuf,
    dir: PathBuf,
    scratch: Scratch,
}

impl Rig {
    fn new(name: &str, attachment: Attachment) -> Self {
        let scratch = Scratch::new(name);
        let dir = scratch.dir("backups");
        let image = scratch.dir("images").join("web1.qcow2");
        oracle::create(&image, SIZE);
        Self::on(scratch, attachment, image, dir, &[], |_| {})
    }

    fn on(
        scratch: Scratch,
        attachment: Attachment,
        image: PathBuf,
        dir: PathBuf,
        options: &[&str],
        rewrite: impl Fn(&mut Value) + Send + Sync + 'static,
    ) -> Self {
        let raw = scratch.file("there.raw");
        oracle::convert(&image, &raw);
        let there = Model::found(&raw, 0..WRITERS);
        let machine = Machine::start(&scratch, "vm", attachment, &[Disk::qcow2("vda", &image)]);
        let path = dir.display().to_string();
        let all = [&["--backup-dir", &path, "-o", "name=web1"], options].concat();
        let monitor = rewriting(&scratch, machine.qmpfs_socket(), rewrite);
        let mount = Mounted::new(&scratch, &[&monitor], &all);
        let mut rig = Self {
            writer: None,
            mount,
            machine,
            image,
            dir,
            scratch,
        };
        rig.go_on(there);
        rig
    }

    fn disk(&self) -> DiskDir {
        self.mount.disk("vda")
    }

    fn writer(&self) -> &Writer {
        self.writer.as_ref().expect("it writes")
    }

    /// The guest works, on what is written.
    fn go_on(&mut self, written: Model) {
        let endpoint = self.machine.endpoint("vda");
        self.writer = Some(Writer::start(&endpoint, 0..WRITERS, written, 5));
        wait::until_true("the disk is in the mount", || self.disk().0.is_dir());
    }

    /// The VM is off, while somebody does something to its image.
    fn while_off(&mut self, what: impl FnOnce(&Path)) {
        let written = self.writer.take().expect("it writes").stop();
        self.machine.quit();
        what(&self.image);
        self.machine.start_again();
        self.go_on(written);
    }

    /// Fills what the writer leaves alone with bytes that are all others each time.
    fn write_upper(&mut self, number: u64) {
        let mut hands = self.machine.nbd("vda");
        let mut block = vec![0; 1 << 20];
        for offset in (WRITERS..hands.size()).step_by(block.len()) {
            fill(&mut block, offset, number);
            hands.write(offset, &block).expect("a write");
        }
        hands.flush().expect("a flush");
    }

    /// What the disk holds where the writer leaves it alone.
    fn upper(&mut self) -> Vec<u8> {
        let mut hands = self.machine.nbd("vda");
        let mut bytes = Vec::new();
        let mut block = vec![0; 1 << 20];
        for offset in (WRITERS..hands.size()).step_by(block.len()) {
            hands.read(offset, &mut block).expect("a read");
            bytes.extend_from_slice(&block);
        }
        bytes
    }

    /// Makes a backup, and everything that must be true of it.
    #[track_caller]
    fn keep(&mut self, kind: &str, name: &str) -> Value {
        self.writer().progress(10);
        let before = self.writer().acknowledged();
        let point = self.disk().backup(kind, name);
        wait::until("qmpfs is connected again", || match point.make() {
            Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => None,
            made => Some(made),
        })
        .unwrap_or_else(|e| panic!("mkdir {name}: {e}\n{}", self.mount.text("log")));
        let after = self.writer().sent();
        let end = self.disk().wait();
        end.unwrap_or_else(|e| panic!("{name}: {e}\n{}", self.mount.text("log")));
        let raw = self.scratch.file("backup.raw");
        let file = self.dir.join("web1/vda").join(format!("{name}.qcow2"));
        oracle::check(&file);
        oracle::convert(&file, &raw);
        before.assert_between(&after, &raw, 0..WRITERS);
        let bytes = fs::read(&raw).expect("the backup");
        let upper = usize::try_from(WRITERS).expect("it is small");
        assert!(
            bytes[upper..] == self.upper(),
            "{name} holds other bytes than the disk"
        );
        oracle::assert_same(&point.disk_raw(), &raw);
        self.writer().check();
        point.json()
    }

    fn finish(mut self) {
        self.writer().check();
        self.writer.take().expect("it writes").stop();
        self.mount.unmount();
    }
}

fn resize(image: &Path, size: u64) {
    sh!("qemu-img resize -q --shrink {} {size}", image.display());
}

over_attachments! {
    /// QEMU marks nothing when a disk is cut and grows again, with zeros where something was.
    a_disk_that_was_smaller_in_between => |name, attachment: Attachment| {
        let mut rig = Rig::new(name, attachment);
        rig.write_upper(1);
        rig.keep("full", "a");
        assert_stands_on(&rig.keep("incremental", "b"), "a");
        rig.while_off(|image| {
            resize(image, SMALLER);
            resize(image, SIZE);
        });
        assert!(rig.upper().ends_with(&[0; 4096]), "zeros now");
        let third = rig.keep("incremental", "c");
        assert!(why_full(&third).contains("was smaller since 'b'"), "{third}");
        assert_stands_on(&rig.keep("incremental", "d"), "c");
        assert_eq!(rig.disk().list("bitmaps").len(), 1, "marks of the end are not listed");
        // it goes with the seal, and comes back with a merge
        if attachment == Attachment::Blockdev {
            rig.disk().snapshot("s").make().expect("a snapshot");
            assert_stands_on(&rig.keep("incremental", "e"), "d");
            rig.disk().snapshot("s").delete().expect("a merge");
            rig.disk().wait().expect("it ends");
            rig.while_off(|image| {
                resize(image, SMALLER);
                resize(image, SIZE);
            });
            assert!(why_full(&rig.keep("incremental", "f")).contains("was smaller"));
        }
        // larger: another disk's size, and then what was cut is inside of what no backup has seen
        rig.while_off(|image| resize(image, LARGER));
        assert!(why_full(&rig.keep("incremental", "g")).contains("another size"));
        assert_stands_on(&rig.keep("incremental", "h"), "g");
        // by less than a bit of the bitmap
        rig.write_upper(2);
        rig.keep("incremental", "i");
        rig.while_off(|image| {
            resize(image, LARGER - 4096);
            resize(image, LARGER);
        });
        assert_stands_on(&rig.keep("incremental", "j"), "i");
        rig.finish();
    }
}

/// While the guest runs.
#[test]
fn a_disk_that_is_resized_under_the_guest() {
    let mut rig = Rig::new("doubt-live-resize", Attachment::Blockdev);
    rig.write_upper(1);
    rig.keep("full", "a");
    let written = rig.writer.take().expect("it writes").stop();
    let node = rig.disk().json()["node_name"].clone();
    // nobody resizes under a server
    rig.machine
        .qmp
        .run("block-export-del", json!({"id": "nbd-vda"}));
    for size in [SMALLER, SIZE] {
        wait::until_true("it is resized", || {
            let size = json!({"node-name": node, "size": size});
            rig.machine.qmp.execute("block_resize", size).is_ok()
        });
    }
    let export =
        json!({"type": "nbd", "id": "nbd-vda", "node-name": node, "name": "vda", "writable": true});
    rig.machine.qmp.run("block-export-add", export);
    rig.go_on(written);
    assert!(why_full(&rig.keep("incremental", "b")).contains("was smaller"));
    rig.finish();
}

/// Another tool takes a snapshot and begins a bitmap of the same name on the overlay, as libvirt does with every bitmap it
/// finds: it marks what was written since that snapshot, and not since the backup.
#[test]
fn a_bitmap_that_is_also_on_the_layer_below() {
    let mut rig = Rig::new("doubt-twice", Attachment::Blockdev);
    rig.write_upper(1);
    rig.keep("full", "a");
    // which only the bitmap below marks
    rig.write_upper(2);
    let bitmap = rig.disk().list("bitmaps").pop().expect("one");
    let node = rig.disk().json()["node_name"].clone();
    let overlay = rig.scratch.file("images/foreign.qcow2");
    oracle::create_overlay(&overlay, &rig.image, SIZE);
    let qmp = &mut rig.machine.qmp;
    let file = json!({"driver": "file", "filename": overlay});
    let add = json!({"driver": "qcow2", "node-name": "foreign", "file": file, "backing": null});
    qmp.run("blockdev-add", add);
    let actions = json!([
        {"type": "blockdev-snapshot", "data": {"node": node, "overlay": "foreign"}},
        {"type": "block-dirty-bitmap-add", "data": {"node": "foreign", "name": bitmap, "persistent": true}},
    ]);
    qmp.run("transaction", json!({"actions": actions}));
    let point = rig.keep("incremental", "b");
    assert!(why_full(&point).contains("a layer below"), "{point}");
    assert_stands_on(&rig.keep("incremental", "c"), "b");
    rig.finish();
}

/// A bitmap that has done its duty and could not be removed: the newest is stood on.
#[test]
fn two_bitmaps_that_could_serve() {
    let scratch = Scratch::new("doubt-two");
    let dir = scratch.dir("backups");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, SIZE);
    let refuse = |message: &mut Value| {
        if message["execute"] == "block-dirty-bitmap-remove" {
            message["arguments"]["name"] = json!("there is none");
        }
    };
    let mut rig = Rig::on(scratch, Attachment::StorageDaemon, image, dir, &[], refuse);
    rig.write_upper(1);
    rig.keep("full", "a");
    rig.write_upper(2);
    assert_stands_on(&rig.keep("incremental", "b"), "a");
    assert_eq!(rig.disk().list("bitmaps").len(), 2);
    rig.write_upper(3);
    assert_stands_on(&rig.keep("incremental", "c"), "b");
    assert_eq!(rig.disk().list("bitmaps").len(), 3);
    rig.finish();
}

over_attachments! {
    /// One that QEMU could not store stands in nobody's way: not in a snapshot's, nor in a merge's that goes down to it.
    a_bitmap_that_was_not_stored_stands_in_no_way => |name, attachment: Attachment| {
        let mut shelf = Shelf::with_options(name, attachment, &["-o", "merge=commit"]);
        shelf.keep("full", "a");
        shelf.bench.restart();
        shelf.bench.flush();
        shelf.bench.writer().expect_the_end();
        shelf.bench.boot_after_a_fall(None);
        shelf.bench.wait_for_disk();
        let bitmaps = shelf.bench.disk().0.join("bitmaps");
        let only = names(&bitmaps).pop().expect("it is there");
        wait::until_true("and known to be of no use", || {
            json(&bitmaps.join(&only))["inconsistent"] == true
        });
        shelf.bench.seal("s");
        let second = shelf.keep("incremental", "b");
        assert!(why_full(&second).contains("no dirty bitmap"), "{second}");
        assert_stands_on(&shelf.keep("incremental", "c"), "b");
        shelf.bench.remove("s");
        assert_stands_on(&shelf.keep("incremental", "d"), "c");
        shelf.bench.restart();
        assert_stands_on(&shelf.keep("incremental", "e"), "d");
        shelf.bench.finish();
    }
}

over_attachments! {
    /// Somebody tidies the backup directory up while QEMU writes there: nothing is left in QEMU, and the guest feels nothing.
    the_directory_goes_while_it_is_written => |name, attachment: Attachment| {
        let mut shelf = Shelf::with_options(name, attachment, SLOW);
        begin(&shelf, "full", "a");
        fs::remove_dir_all(shelf.dir().join("web1")).expect("rm -rf");
        shelf.bench.write(20);
        let end = shelf.bench.disk().wait().expect_err("it has failed");
        assert_eq!(end.raw_os_error(), Some(libc::EIO));
        let log = shelf.bench.mount.text("log");
        assert!(log.contains("somebody removed the file"), "{log}");
        wait::until_true("no node is left on it", || {
            let nodes = shelf.bench.machine.qmp.run("query-named-block-nodes", json!({"flat": true}));
            !nodes.to_string().contains("unfinished")
        });
        for failed in shelf.bench.disk().list("jobs") {
            fs::remove_dir(shelf.bench.disk().0.join("jobs").join(failed)).expect("dismissed");
        }
        fs::create_dir_all(shelf.place()).expect("for the look");
        assert_nothing_left(&shelf);
        shelf.bench.verify();
        shelf.keep_while("full", "a", |shelf| {
            shelf.bench.machine.limit_jobs(0);
        });
        shelf.bench.finish();
    }
}

/// Two VMs of one name with one backup directory: each stands on what it shares with the other, and on what is its own.
/// What one is writing the other leaves alone.
#[test]
fn a_clone_with_the_same_backups() {
    let mut first = Rig::new("doubt-clone-1", Attachment::Blockdev);
    first.write_upper(1);
    first.keep("full", "a");
    let scratch = Scratch::new("doubt-clone-2");
    let image = scratch.dir("images").join("web1.qcow2");
    first.while_off(|theirs| {
        sh!("cp {} {}", theirs.display(), image.display());
    });
    let dir = first.dir.clone();
    let attachment = Attachment::StorageDaemon;
    let mut clone = Rig::on(scratch, attachment, image, dir, SLOW, |_| {});
    clone.write_upper(2);
    first.write_upper(3);
    assert_stands_on(&first.keep("incremental", "b1"), "a");
    clone
        .disk()
        .backup("incremental", "half")
        .make()
        .expect("it begins");
    let half = |rig: &Rig| {
        names(&rig.dir.join("web1/vda"))
            .iter()
            .any(|name| name.contains(".half.qcow2"))
    };
    assert!(half(&clone));
    // whoever made it is away; the other one comes, and tidies up
    clone.mount.kill9();
    first.mount.kill9();
    first.mount.mount_again();
    wait::until_true("it is seen", || {
        first.mount.text("log").contains("another QEMU")
    });
    assert!(half(&clone), "{}", first.mount.text("log"));
    first.mount.kill9();
    clone.mount.mount_again();
    clone.machine.limit_jobs(0);
    wait::until_true("it has its name", || {
        clone.dir.join("web1/vda/half.qcow2").exists()
    });
    let point = clone.disk().backup("incremental", "half");
    wait::until_true("it is listed", || point.exists());
    // what it does not share with the other it does not stand on
    assert_stands_on(&point.json(), "a");
    clone.disk().wait().expect("it is complete");
    let raw = clone.scratch.file("half.raw");
    oracle::convert(&clone.dir.join("web1/vda/half.qcow2"), &raw);
    let upper = usize::try_from(WRITERS).expect("it is small");
    assert!(fs::read(&raw).expect("the copy")[upper..] == clone.upper());
    clone.mount.kill9();
    first.mount.mount_again();
    wait::until_true("it is back", || first.disk().0.is_dir());
    assert_stands_on(&first.keep("incremental", "b2"), "b1");
    first.mount.kill9();
    clone.mount.mount_again();
    clone.finish();
    first.mount.mount_again();
    first.finish();
}
