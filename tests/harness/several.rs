//! The workbench of several disks: a machine with two qcow2 disks of different sizes, each in a directory of its own, and a
//! raw one; a mount; and an ordered writer, whose writes tell whether two points show one instant.
//! Knows what a group of points must hold; nothing of how it is made.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::faults::names;
use crate::machine::{Attachment, Disk, Machine};
use crate::model::{BLOCK, STEP, describe, fill, number};
use crate::mounted::Mounted;
use crate::nbd::{Endpoint, Nbd};
use crate::scratch::Scratch;
use crate::tree::Point;
use crate::writer::Gate;
use crate::{oracle, wait};

/// The disks that can be sealed, with their sizes.
pub const SEALED: [(&str, u64); 2] = [("vda", 24 << 20), ("vdb", 17 << 20)];
/// The one that cannot.
pub const RAW: &str = "vdc";
/// The blocks that the ordered writer fills in turn, from the start of each disk.
pub const RING: u64 = 48;

/// Writes n to the first disk, flushes, then to the second, flushes, without a pause. At every instant the first is as far
/// as the second or one further.
#[derive(Debug)]
pub struct Ordered {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    gate: Arc<Gate>,
    /// Both disks hold all up to here.
    done: Mutex<u64>,
    lost: Mutex<Option<String>>,
}

impl Ordered {
    /// Goes on after write `done`.
    pub fn start(endpoints: [Endpoint; 2], done: u64) -> Self {
        let shared = Arc::new(Shared {
            done: Mutex::new(done),
            ..Shared::default()
        });
        let theirs = Arc::clone(&shared);
        let mut disks = endpoints.map(|endpoint| Nbd::connect(&endpoint));
        let work = move || {
            if let Err(lost) = write_in_order(&mut disks, &theirs) {
                *theirs.lost.lock().expect("no panic") = Some(lost);
            }
        };
        let thread = std::thread::Builder::new().name("ordered".to_owned());
        Self {
            shared,
            thread: Some(thread.spawn(work).expect("a thread")),
        }
    }

    /// The last write that both disks have acknowledged.
    #[track_caller]
    pub fn done(&self) -> u64 {
        if let Some(lost) = &*self.shared.lost.lock().expect("no panic") {
            panic!("{lost}");
        }
        *self.shared.done.lock().expect("no panic")
    }

    /// What makes it stand still for a while, between any two writes.
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.shared.gate)
    }

    /// Waits until it has gone on.
    #[track_caller]
    pub fn progress(&self, writes: u64) {
        let until = self.done() + writes;
        wait::until_true("the ordered writer goes on", || self.done() >= until);
    }

    /// Ends it, whatever came of its last write.
    pub fn abandon(mut self) -> u64 {
        self.end();
        *self.shared.done.lock().expect("no panic")
    }

    /// Ends it; nothing may have been lost.
    #[track_caller]
    pub fn stop(mut self) -> u64 {
        self.end();
        self.done()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Ordered {
    fn drop(&mut self) {
        self.end();
    }
}

fn write_in_order(disks: &mut [Nbd; 2], shared: &Shared) -> Result<(), String> {
    let mut block = vec![0; BLOCK];
    let mut next = *shared.done.lock().expect("no panic") + 1;
    while !shared.stop.load(Ordering::Relaxed) {
        let offset = place(next);
        for (disk, (name, _)) in disks.iter_mut().zip(SEALED) {
            let stopped = || shared.stop.load(Ordering::Relaxed);
            let _turn = loop {
                match shared.gate.enter(stopped) {
                    Some(turn) => break turn,
                    None if stopped() => return Ok(()),
                    None => {}
                }
            };
            fill(&mut block, offset, next);
            let trouble = |doing: &str, e: std::io::Error| format!("{name}: {doing} {next}: {e}");
            disk.write(offset, &block)
                .map_err(|e| trouble("write", e))?;
            disk.flush().map_err(|e| trouble("flush", e))?;
            let before = next.saturating_sub(RING / 2);
            disk.read(place(before), &mut block)
                .map_err(|e| trouble("read before", e))?;
            if number(&block, place(before)) != Some(before) {
                let found = describe(&block, place(before));
                return Err(format!(
                    "LOST WRITE: {name}: wanted write {before}, got {found}"
                ));
            }
        }
        *shared.done.lock().expect("no panic") = next;
        next += 1;
    }
    Ok(())
}

/// Where write `number` goes; 0 stands for none, where nothing was written yet.
fn place(number: u64) -> u64 {
    number % RING * STEP
}

/// How far a disk is, as this image of it says; panics if it is a mixture of instants.
#[track_caller]
pub fn reached(image: &Path) -> u64 {
    reached_beside(image, None)
}

/// The same after a kill in the middle of write `in_flight`, which may be torn.
#[track_caller]
fn reached_beside(image: &Path, in_flight: Option<u64>) -> u64 {
    let file = File::open(image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    let mut block = vec![0; BLOCK];
    let mut found = vec![0; usize::try_from(RING).expect("small")];
    for slot in 0..RING {
        file.read_exact_at(&mut block, slot * STEP)
            .unwrap_or_else(|e| panic!("{} slot {slot}: {e}", image.display()));
        let torn = in_flight.filter(|write| write % RING == slot);
        let write = number(&block, slot * STEP).or(torn.map(|write| write.saturating_sub(RING)));
        found[usize::try_from(slot).expect("small")] =
            write.unwrap_or_else(|| panic!("{}: torn block in slot {slot}", image.display()));
    }
    let last = found.iter().copied().max().unwrap_or(0);
    for (slot, write) in (0..RING).zip(&found) {
        let wanted = (last.saturating_sub(RING - 1)..=last).find(|n| n % RING == slot);
        assert_eq!(
            *write,
            wanted.unwrap_or(0),
            "{}: slot {slot} is not of the instant of write {last}",
            image.display()
        );
    }
    last
}

/// A machine with several disks and everything around it.
#[derive(Debug)]
pub struct Several {
    writer: Option<Ordered>,
    /// What a writer that was told to be quiet has done.
    quiet: u64,
    /// The mount.
    pub mount: Mounted,
    /// The VM or storage daemon.
    pub machine: Machine,
    dirs: [PathBuf; 3],
    /// QEMU has died here once: clusters that leaked then stay so.
    has_fallen: bool,
    /// Groups that were made, each with what its two points reached.
    taken: Vec<(String, [u64; 2])>,
    scratch: Scratch,
}

impl Several {
    /// New empty disks under load, and the mount.
    #[track_caller]
    pub fn new(name: &str, attachment: Attachment) -> Self {
        Self::with_options(name, attachment, &[])
    }

    /// The same with options for `qmpfs mount`.
    #[track_caller]
    pub fn with_options(name: &str, attachment: Attachment, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let dirs = ["one", "two", "three"].map(|dir| scratch.dir(dir));
        Self::on(scratch, dirs, attachment, options)
    }

    /// With the disks in these directories.
    #[track_caller]
    pub fn on(
        scratch: Scratch,
        dirs: [PathBuf; 3],
        attachment: Attachment,
        options: &[&str],
    ) -> Self {
        let mut disks = Vec::new();
        for ((name, size), dir) in SEALED.into_iter().zip(&dirs) {
            let image = dir.join(format!("{name}.qcow2"));
            oracle::create(&image, size);
            disks.push(Disk::qcow2(name, &image));
        }
        let raw = dirs[2].join("vdc.raw");
        File::create(&raw)
            .and_then(|file| file.set_len(4 << 20))
            .expect("a raw disk");
        disks.push(Disk::raw(RAW, &raw));
        let machine = Machine::start(&scratch, "vm", attachment, &disks);
        let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], options);
        let mut several = Self {
            writer: None,
            quiet: 0,
            mount,
            machine,
            dirs,
            has_fallen: false,
            taken: Vec::new(),
            scratch,
        };
        several.write_after(0);
        several.wait_for_disks();
        several
    }

    /// The test's directory.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The directories of the disks' files.
    pub fn dirs(&self) -> &[PathBuf; 3] {
        &self.dirs
    }

    /// The writer.
    #[track_caller]
    pub fn writer(&self) -> &Ordered {
        self.writer.as_ref().expect("the writer runs")
    }

    /// The file a disk boots from.
    pub fn active(&self, disk: usize) -> PathBuf {
        self.dirs[disk].join(format!("{}.qcow2", SEALED[disk].0))
    }

    /// The file that holds a disk's point.
    pub fn sealed(&self, disk: usize, point: &str) -> PathBuf {
        self.dirs[disk].join(format!("{}.{point}.qcow2", SEALED[disk].0))
    }

    /// A point of all disks in the mount.
    pub fn group(&self, name: &str) -> Point {
        Point(self.mount.snapshots(name))
    }

    /// A disk's point in the mount.
    pub fn point(&self, disk: usize, name: &str) -> Point {
        self.mount.disk(SEALED[disk].0).snapshot(name)
    }

    /// All names in the directories of the disks' files.
    pub fn files(&self) -> Vec<Vec<String>> {
        self.dirs.iter().map(|dir| names(dir)).collect()
    }

    /// How many nodes QEMU has.
    pub fn nodes(&mut self) -> usize {
        let nodes = self
            .machine
            .qmp
            .run("query-named-block-nodes", serde_json::json!({"flat": true}));
        nodes.as_array().map_or(0, Vec::len)
    }

    /// `mkdir snapshots/NAME`, and everything that must be true of it.
    #[track_caller]
    pub fn seal(&mut self, name: &str) {
        self.writer().progress(3);
        let before = self.writer().done();
        self.group(name)
            .make()
            .unwrap_or_else(|e| panic!("mkdir snapshots/{name}: {e}\n{}", self.mount.text("log")));
        let after = self.writer().done() + 1;
        let reached = self.verify_instant(name);
        assert!(
            reached[1] >= before && reached[0] <= after,
            "{name} shows {reached:?}, made between {before} and {after}"
        );
        self.taken.push((name.to_owned(), reached));
        self.verify_listing();
        self.writer().progress(2);
    }

    /// Both points of a group show one instant, in the files as in the mount. Gives how far each was.
    #[track_caller]
    pub fn verify_instant(&self, name: &str) -> [u64; 2] {
        let reached = [0, 1].map(|disk| self.verify_member(name, disk));
        assert!(
            reached[0] == reached[1] || reached[0] == reached[1] + 1,
            "{name}: two instants, {reached:?}"
        );
        reached
    }

    /// A member shows in the mount, through the link as in its own place, what qemu-img finds in its file.
    #[track_caller]
    pub fn verify_member(&self, name: &str, disk: usize) -> u64 {
        let expected = self.scratch.file("expected.raw");
        oracle::convert(&self.sealed(disk, name), &expected);
        let link = self.group(name).0.join(SEALED[disk].0);
        oracle::assert_same(&link.join("disk.raw"), &expected);
        oracle::assert_same(&self.point(disk, name).disk_raw(), &expected);
        reached(&expected)
    }

    /// The groups in the mount are those that were made, and each holds what it held.
    #[track_caller]
    pub fn verify(&self) {
        self.verify_listing();
        for (name, reached) in &self.taken {
            assert_eq!(self.verify_instant(name), *reached, "{name} has changed");
        }
    }

    #[track_caller]
    fn verify_listing(&self) {
        let mut expected: Vec<_> = self.taken.iter().map(|(name, _)| name.clone()).collect();
        expected.sort();
        assert_eq!(names(&self.mount.path().join("snapshots")), expected);
        for (disk, (name, _)) in SEALED.into_iter().enumerate() {
            assert_eq!(self.mount.disk(name).list("snapshots"), expected, "{name}");
            let mut files: Vec<_> = expected
                .iter()
                .map(|point| self.sealed(disk, point))
                .chain([self.active(disk)])
                .collect();
            files.sort();
            let mut found = names(&self.dirs[disk]);
            found.retain(|file| !file.starts_with(&format!(".{name}.qcow2.")));
            let found: Vec<_> = found
                .iter()
                .map(|file| self.dirs[disk].join(file))
                .collect();
            assert_eq!(found, files, "the files of {name}");
            assert!(
                names(&self.dirs[disk]).len() <= files.len() + 1,
                "one alias at most"
            );
        }
    }

    /// Forgets a group that was made or removed behind the bench's back.
    pub fn forget(&mut self, name: &str) {
        self.taken.retain(|(known, _)| known != name);
    }

    /// Takes note of a group that was made behind the bench's back.
    #[track_caller]
    pub fn adopt(&mut self, name: &str) {
        let reached = self.verify_instant(name);
        self.taken.push((name.to_owned(), reached));
    }

    /// Ends the machine in peace: the boot paths hold every write. Starts it with the same command line.
    #[track_caller]
    pub fn restart(&mut self) {
        let done = self.writer.take().expect("the writer runs").stop();
        self.machine.quit();
        self.inspect_while_off(done);
        self.machine.start_again();
        self.write_after(done);
        self.wait_for_disks();
        self.verify();
    }

    /// Ends the load until the machine starts again. A stopped guest does not write; an NBD client beside it would.
    #[track_caller]
    pub fn hush(&mut self) {
        self.quiet = self.writer.take().expect("the writer runs").stop();
    }

    /// Ends the machine without mercy, as the host's end would, and qmpfs with it; then both start again.
    #[track_caller]
    pub fn power_cut(&mut self) {
        self.machine.kill9();
        self.mount.kill9();
        self.has_fallen = true;
        let done = self.writer.take().map_or(self.quiet, Ordered::abandon);
        let reached = self.boots(done);
        self.machine.start_again();
        self.mount.mount_again();
        // the first disk may be one further: the writer does that one again
        self.write_after(reached[1]);
        self.wait_for_disks();
    }

    /// What each disk would boot holds every acknowledged write.
    #[track_caller]
    pub fn boots(&self, done: u64) -> [u64; 2] {
        let all = self.scratch.file("boot.raw");
        let reached = [0, 1].map(|disk| {
            for image in oracle::chain(&self.active(disk)) {
                oracle::check_after_a_fall(&image);
            }
            oracle::convert(&self.active(disk), &all);
            reached_beside(&all, Some(done + 1))
        });
        for (disk, reached) in reached.iter().enumerate() {
            let name = SEALED[disk].0;
            assert!(
                (done..=done + 1).contains(reached),
                "{name} boots with {reached} of {done}"
            );
        }
        reached
    }

    /// The last questions: load off, machine off, images sound, the boot paths hold everything.
    #[track_caller]
    pub fn finish(mut self) {
        self.verify();
        let done = self.writer.take().expect("the writer runs").stop();
        self.machine.quit();
        self.inspect_while_off(done);
        self.mount.unmount();
    }

    #[track_caller]
    fn inspect_while_off(&self, done: u64) {
        for disk in [0, 1] {
            for image in oracle::chain(&self.active(disk)) {
                if self.has_fallen {
                    oracle::check_after_a_fall(&image);
                } else {
                    oracle::check(&image);
                }
            }
            let expected = self.taken.len() + 1;
            assert_eq!(oracle::chain(&self.active(disk)).len(), expected);
        }
        self.boots(done);
    }

    fn write_after(&mut self, done: u64) {
        let endpoints = SEALED.map(|(name, _)| self.machine.endpoint(name));
        self.writer = Some(Ordered::start(endpoints, done));
    }

    /// Waits until all disks are in the mount, with as many points as there must be, and settled.
    #[track_caller]
    pub fn wait_for_disks(&self) {
        let points = |disk: &str| {
            let dir = self.mount.disk(disk).0.join("snapshots");
            std::fs::read_dir(dir).map(Iterator::count).ok()
        };
        wait::until_true("the disks are in the mount", || {
            SEALED.iter().all(|(disk, _)| points(disk).is_some())
                && points(RAW).is_some()
                && self.is_connected()
        });
    }

    fn is_connected(&self) -> bool {
        let vm = std::fs::read_to_string(self.mount.path().join("vm.json")).unwrap_or_default();
        let vm: serde_json::Value = serde_json::from_str(&vm).unwrap_or_default();
        vm["connection"] == "up"
    }
}
