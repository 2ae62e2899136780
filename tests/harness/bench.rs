//! The workbench of the verbs: one running disk `vda`, a mount on it, a writer beside it, and every point with its bytes.
//! After each verb it asks the same questions: does every point hold its instant, does the running disk hold every write,
//! is the chain on the disk right, is there no file too many.

use std::path::{Path, PathBuf};

use crate::faults::names;
use crate::machine::{Attachment, Disk, Machine};
use crate::model::{BLOCK, Dice, Model, STEP, fill};
use crate::mounted::Mounted;
use crate::nbd::Nbd;
use crate::openmetrics::Page;
use crate::rewrite::MergeLimit;
use crate::scratch::Scratch;
use crate::tree::{DiskDir, Point};
use crate::writer::Writer;
use crate::{oracle, wait};

mod backups;
mod questions;
mod rollback;

pub use backups::Shelf;

/// The test itself writes below, the writer from here on.
pub const WRITERS: u64 = 32 << 20;
/// The end of the writer's region, and of the disk, unless it has a bulk to make merges long.
pub const SIZE: u64 = 40 << 20;

/// One point, with the bytes it held when it was made.
#[derive(Debug)]
struct Captured {
    name: String,
    bytes: PathBuf,
    /// The point that its layer stands on.
    on: Option<String>,
}

/// A running disk with everything around it.
#[derive(Debug)]
pub struct Bench {
    writer: Option<Writer>,
    hands: Option<Nbd>,
    /// The mount.
    pub mount: Mounted,
    /// The VM or storage daemon.
    pub machine: Machine,
    model: Model,
    writes: u64,
    bulks: u64,
    dice: Dice,
    points: Vec<Captured>,
    /// The point that the active layer stands on.
    top: Option<String>,
    /// How often the guest had been reset before its disk was to be rolled back, if it is reset for that.
    resets: Option<u64>,
    /// QEMU has died here once: clusters that leaked then stay so.
    has_fallen: bool,
    /// What merges are limited to as they begin, once the mount is on a monitor that does so.
    limit: Option<MergeLimit>,
    below: Vec<PathBuf>,
    dir: PathBuf,
    scratch: Scratch,
}

impl Bench {
    /// A new empty disk under load, and the mount.
    #[track_caller]
    pub fn new(name: &str, attachment: Attachment) -> Self {
        Self::with_options(name, attachment, &[])
    }

    /// The same with options for `qmpfs mount`.
    #[track_caller]
    pub fn with_options(name: &str, attachment: Attachment, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let dir = scratch.dir("images");
        oracle::create(&dir.join("web1.qcow2"), SIZE);
        Self::on(scratch, dir, Vec::new(), attachment, options)
    }

    /// With `bulk` bytes more at the disk's end, for [`Self::write_bulk`].
    #[track_caller]
    pub fn with_bulk(name: &str, attachment: Attachment, bulk: u64) -> Self {
        Self::with_bulk_and_options(name, attachment, bulk, &[])
    }

    /// Both.
    #[track_caller]
    pub fn with_bulk_and_options(
        name: &str,
        attachment: Attachment,
        bulk: u64,
        options: &[&str],
    ) -> Self {
        let scratch = Scratch::new(name);
        let dir = scratch.dir("images");
        oracle::create(&dir.join("web1.qcow2"), SIZE + bulk);
        Self::on(scratch, dir, Vec::new(), attachment, options)
    }

    /// A VM whose RAM holds `ram` bytes that are not zero, so that saving it takes a while.
    #[track_caller]
    pub fn with_ram(name: &str, attachment: Attachment, ram: usize, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let dir = scratch.dir("images");
        oracle::create(&dir.join("web1.qcow2"), SIZE);
        let blob = scratch.file("ram");
        let mut bytes = vec![0; ram];
        fill(&mut bytes, 0, 1);
        std::fs::write(&blob, bytes).expect("room for the RAM");
        let loader = [
            "-device".to_owned(),
            format!("loader,file={},addr=0x2000000,force-raw=on", blob.display()),
        ];
        Self::on_with(scratch, dir, Vec::new(), attachment, options, &loader)
    }

    /// On a disk that others made: `dir/web1.qcow2`, with the files `below` it, base last.
    #[track_caller]
    pub fn on(
        scratch: Scratch,
        dir: PathBuf,
        below: Vec<PathBuf>,
        attachment: Attachment,
        options: &[&str],
    ) -> Self {
        Self::on_with(scratch, dir, below, attachment, options, &[])
    }

    #[track_caller]
    fn on_with(
        scratch: Scratch,
        dir: PathBuf,
        below: Vec<PathBuf>,
        attachment: Attachment,
        options: &[&str],
        extra: &[String],
    ) -> Self {
        let disks = [Disk::qcow2("vda", &dir.join("web1.qcow2"))];
        let machine = Machine::start_with(&scratch, "vm", attachment, &disks, extra);
        let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], options);
        let endpoint = machine.endpoint("vda");
        let mut bench = Self {
            writer: Some(Writer::start(&endpoint, WRITERS..SIZE, Model::default(), 7)),
            hands: Some(machine.nbd("vda")),
            mount,
            machine,
            model: Model::default(),
            writes: 0,
            bulks: 0,
            dice: Dice::new(3),
            points: Vec::new(),
            top: None,
            resets: None,
            has_fallen: false,
            limit: None,
            below,
            dir,
            scratch,
        };
        bench.wait_for_disk();
        bench.write(6);
        bench
    }

    /// The disk's directory in the mount.
    pub fn disk(&self) -> DiskDir {
        self.mount.disk("vda")
    }

    /// A snapshot's directory in the mount.
    pub fn point(&self, name: &str) -> Point {
        self.disk().snapshot(name)
    }

    /// The file the VM boots from.
    pub fn active(&self) -> PathBuf {
        self.dir.join("web1.qcow2")
    }

    /// The file that holds a sealed point.
    pub fn sealed(&self, name: &str) -> PathBuf {
        self.dir.join(format!("web1.{name}.qcow2"))
    }

    /// The directory of the images.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The test's directory.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// What the test itself has written.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The writer.
    #[track_caller]
    pub fn writer(&self) -> &Writer {
        self.writer.as_ref().expect("the writer runs")
    }

    /// The writer, unless the disk is quiet for a rollback.
    pub fn load(&self) -> Option<&Writer> {
        self.writer.as_ref()
    }

    /// The bytes that a point must hold, as a raw file.
    #[track_caller]
    pub fn bytes_of(&self, name: &str) -> &Path {
        &self
            .points
            .iter()
            .find(|p| p.name == name)
            .expect("a point that was made")
            .bytes
    }

    /// Writes `count` random blocks through the guest's hands.
    #[track_caller]
    pub fn write(&mut self, count: usize) {
        let mut block = vec![0; BLOCK];
        let hands = self.hands.as_mut().expect("the disk runs");
        for _ in 0..count {
            let offset = self.dice.below(WRITERS / STEP) * STEP;
            self.writes += 1;
            fill(&mut block, offset, self.writes);
            hands.write(offset, &block).expect("the guest can write");
            self.model.0.insert(offset, self.writes);
        }
    }

    /// Makes what the test wrote durable.
    #[track_caller]
    pub fn flush(&mut self) {
        let hands = self.hands.as_mut().expect("the disk runs");
        hands.flush().expect("the guest can flush");
    }

    /// Fills a half of what is behind the writer's region, each time the other: a merge of this
    /// layer has that much to copy, and takes its time.
    #[track_caller]
    pub fn write_bulk(&mut self) {
        let hands = self.hands.as_mut().expect("the disk runs");
        let mut blocks = vec![0; BLOCK * 16];
        self.writes += 1;
        self.bulks += 1;
        let half = (hands.size() - SIZE) / 2;
        let start = SIZE + self.bulks % 2 * half;
        for offset in (start..start + half).step_by(blocks.len()) {
            fill(&mut blocks, offset, self.writes);
            hands.write(offset, &blocks).expect("the guest can write");
        }
    }

    /// `mkdir snapshots/NAME`, and everything that must be true of it.
    #[track_caller]
    pub fn seal(&mut self, name: &str) {
        self.writer().progress(20);
        let before = self.writer().acknowledged();
        self.writer().step(&format!("mkdir {name}"));
        self.point(name)
            .make()
            .unwrap_or_else(|e| panic!("mkdir {name}: {e}\n{}", self.mount.text("log")));
        let after = self.writer().sent();
        self.writer().step(&format!("mkdir {name} returned"));

        let bytes = self.scratch.file(&format!("{name}.expected"));
        oracle::convert(&self.sealed(name), &bytes);
        self.model.assert_holds(&bytes, 0..WRITERS);
        before.assert_between(&after, &bytes, WRITERS..SIZE);
        assert!(
            oracle::sealed_mark(&self.sealed(name)).is_some(),
            "the sealed file carries its mark"
        );
        self.add_point(name, bytes);
        self.verify();
        self.write(2);
    }

    /// A point was made of what was active.
    fn add_point(&mut self, name: &str, bytes: PathBuf) {
        let on = self.top.replace(name.to_owned());
        self.points.push(Captured {
            name: name.to_owned(),
            bytes,
            on,
        });
    }

    /// `rmdir snapshots/NAME`: the others stay right before, during and after the merge.
    #[track_caller]
    pub fn remove(&mut self, name: &str) {
        self.begin_removal(name);
        while !self.disk().list("jobs").is_empty() {
            self.write(1);
            self.verify_points();
        }
        let end = self.disk().wait();
        assert!(
            end.is_ok(),
            "the merge of {name} failed: {end:?}\n{}",
            self.mount.text("log")
        );
        self.writer().step(&format!("rmdir {name} is done"));
        assert!(!self.point(name).exists(), "{name} is gone");
        self.verify();
        self.write(2);
    }

    /// `rmdir snapshots/NAME` and no more: the merge may still run.
    #[track_caller]
    pub fn begin_removal(&mut self, name: &str) {
        self.writer().progress(5);
        self.writer().step(&format!("rmdir {name}"));
        self.point(name)
            .delete()
            .unwrap_or_else(|e| panic!("rmdir {name}: {e}\n{}", self.mount.text("log")));
        assert!(!self.point(name).exists(), "the name goes at once");
        self.forget(name);
    }

    /// The same, and its job is met at work however fast the machine is.
    #[track_caller]
    pub fn begin_removal_at(&mut self, name: &str, bytes_per_second: u64) {
        self.limit_what_begins(bytes_per_second);
        self.begin_removal(name);
        self.limit_what_begins(0);
    }

    /// From now on a merge begins with this limit (0: none). Jobs that run already: [`Machine::limit_jobs`].
    #[track_caller]
    pub fn limit_what_begins(&mut self, bytes_per_second: u64) {
        let limit = self.limit.get_or_insert_with(|| {
            let (monitor, limit) = MergeLimit::new(&self.scratch, self.machine.qmpfs_socket());
            self.mount.mount_through(&monitor);
            limit
        });
        limit.set(bytes_per_second);
    }

    /// Takes up a point that was made behind the bench's back: it holds the bytes in the file `bytes`.
    #[track_caller]
    pub fn hold(&mut self, name: &str, bytes: &Path) {
        let kept = self.scratch.file(&format!("{name}.expected"));
        std::fs::copy(bytes, &kept).expect("a copy of the bytes");
        self.add_point(name, kept);
    }

    /// Forgets a point that was made or removed behind the bench's back.
    pub fn forget(&mut self, name: &str) {
        let Some(index) = self.points.iter().position(|p| p.name == name) else {
            return;
        };
        let gone = self.points.remove(index);
        let users = self.points.iter_mut().map(|p| &mut p.on);
        for on in users.chain([&mut self.top]) {
            if on.as_deref() == Some(name) {
                on.clone_from(&gone.on);
            }
        }
    }

    /// Removes what qmpfs has said it leaves alone: writes of the last milliseconds of a storage daemon.
    #[track_caller]
    pub fn remove_left_alone(&self) {
        for line in self.mount.text("log").lines() {
            let left = line.split_once(" holds data and is in no chain");
            let path = left.and_then(|(words, _)| words.rsplit(' ').next());
            if let Some(path) = path {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Removes the bytes of points that are gone: a test of many rounds would fill the host's disk with them.
    #[track_caller]
    pub fn forget_bytes(&self) {
        for name in names(self.scratch.path()) {
            let path = self.scratch.file(&name);
            let kept = self.points.iter().any(|point| point.bytes == path);
            if name.ends_with(".expected") && !kept {
                std::fs::remove_file(&path).expect("our own file");
            }
        }
    }

    /// The only point there is becomes somebody else's file: a layer that qmpfs may not write, and finds its name for by
    /// itself. Gives the file.
    #[track_caller]
    pub fn disown(&mut self, name: &str) -> PathBuf {
        let file = self.sealed(name);
        assert!(
            self.below.is_empty() && self.points.len() == 1,
            "{name} stands alone"
        );
        oracle::remove_mark(&file);
        self.forget(name);
        self.below.push(file.clone());
        file
    }

    /// A file of somebody else's is in the chain no more.
    pub fn released(&mut self, file: &Path) {
        self.below.retain(|below| below != file);
    }

    /// Ends the VM in peace and starts it with the same command line.
    #[track_caller]
    pub fn start_again(&mut self) {
        let written = self.writer.take().expect("the writer runs").stop();
        self.hands = None;
        self.machine.quit();
        self.inspect_while_off(&written);
        self.machine.start_again();
        self.hands = Some(self.machine.nbd("vda"));
        let endpoint = self.machine.endpoint("vda");
        self.writer = Some(Writer::start(&endpoint, WRITERS..SIZE, written, 11));
    }

    /// Ends the VM in peace, checks every image, starts it with the same command line: the same bytes.
    #[track_caller]
    pub fn restart(&mut self) {
        self.start_again();
        self.wait_for_disk();
        self.verify();
    }

    /// QEMU has died, perhaps with the host: the path of the command line boots everything that was flushed (where
    /// `at_least` is given, no more than that need be there). Then the VM runs again.
    #[track_caller]
    pub fn boot_after_a_fall(&mut self, at_least: Option<&Model>) {
        self.machine.kill9();
        self.has_fallen = true;
        self.hands = None;
        self.resets = None;
        let Some(writer) = self.writer.take() else {
            return self.boot_at_rest();
        };
        let (flushed, sent) = writer.fallen();
        for image in oracle::chain(&self.active()) {
            oracle::check_after_a_fall(&image);
        }
        let all = self.scratch.file("all.raw");
        oracle::convert(&self.active(), &all);
        self.model.assert_holds(&all, 0..WRITERS);
        at_least
            .unwrap_or(&flushed)
            .assert_between(&sent, &all, WRITERS..SIZE);
        let found = Model::found(&all, WRITERS..SIZE);
        self.machine.start_again();
        self.hands = Some(self.machine.nbd("vda"));
        let endpoint = self.machine.endpoint("vda");
        self.writer = Some(Writer::start(&endpoint, WRITERS..SIZE, found, 13));
    }

    /// The last questions: load off, VM off, images sound, the boot path holds everything.
    #[track_caller]
    pub fn finish(mut self) {
        let written = self.writer.take().expect("the writer runs").stop();
        self.hands = None;
        self.machine.quit();
        self.inspect_while_off(&written);
        self.mount.unmount();
    }

    /// Waits until the disk is in the mount, with as many points as there must be.
    #[track_caller]
    pub fn wait_for_disk(&self) {
        let snapshots = self.disk().0.join("snapshots");
        wait::until_true("the disk is in the mount", || {
            std::fs::read_dir(&snapshots).is_ok_and(|points| points.count() == self.points.len())
                && self.mount_is_connected()
        });
    }

    /// How often the mount has found QEMU again.
    #[track_caller]
    pub fn connections(&self) -> f64 {
        Page::read(&self.mount.text("metrics")).value("qmpfs_reconnects_total", &[])
    }

    /// Whether the mount says that it can talk to QEMU.
    pub fn mount_is_connected(&self) -> bool {
        let vm = std::fs::read_to_string(self.mount.path().join("vm.json")).unwrap_or_default();
        let vm: serde_json::Value = serde_json::from_str(&vm).unwrap_or_default();
        vm["connection"] == "up"
    }
}
