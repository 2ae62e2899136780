//! The workbench of a VM that is off: its disk `web1`, the mount on the image, which has a storage daemon of its own, and
//! every point with its bytes. To write, the mount is ended and the image written, as if the VM had run meanwhile.
//! With nobody at the image it asks whether the points' files and the active path are there, right, and alone.

use std::fs;
use std::path::{Path, PathBuf};

use crate::faults::names;
use crate::mounted::Mounted;
use crate::scratch::Scratch;
use crate::tree::DiskDir;
use crate::{oracle, sh, wait};

/// The size of the disk.
pub const SIZE: u64 = 16 << 20;
const MEBIBYTES: u8 = 16;

/// The image of a VM that is off, and what it held at each point.
#[derive(Debug)]
pub struct Off {
    /// The mount.
    pub mount: Mounted,
    /// The file the VM boots from.
    pub image: PathBuf,
    /// The test's directory.
    pub scratch: Scratch,
    /// Those made by [`Self::seal`] and [`Self::hold`].
    points: Vec<String>,
    runs: u8,
}

impl Off {
    /// One that stands alone.
    #[track_caller]
    pub fn new(name: &str, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let image = scratch.dir("images").join("web1.qcow2");
        oracle::create(&image, SIZE);
        let mut off = Self::on(scratch, image, options);
        off.vm_writes();
        off
    }

    /// template ← one ← two ← web1.qcow2, each with a megabyte of its own.
    #[track_caller]
    pub fn with_points(name: &str, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let (image, template) = (
            scratch.dir("images").join("web1.qcow2"),
            scratch.file("template.qcow2"),
        );
        oracle::create(&template, SIZE);
        runs(&template, 9);
        oracle::create_overlay(&image, &template, SIZE);
        let mut off = Self::on(scratch, image, options);
        for (pattern, point) in [(1, "one"), (2, "two")] {
            off.vm_runs(pattern);
            off.seal(point);
        }
        off.vm_runs(3);
        off
    }

    fn on(scratch: Scratch, image: PathBuf, options: &[&str]) -> Self {
        let mount = Mounted::new(&scratch, &[&image], options);
        Self {
            mount,
            image,
            scratch,
            points: Vec::new(),
            runs: 0,
        }
    }

    /// The disk's directory in the mount.
    pub fn disk(&self) -> DiskDir {
        self.mount.disk("web1")
    }

    /// What a point held when it was made.
    pub fn bytes(&self, point: &str) -> PathBuf {
        self.scratch.file(&format!("{point}.raw"))
    }

    /// What the disk holds since the VM ran.
    pub fn active(&self) -> PathBuf {
        self.scratch.file("active.raw")
    }

    /// The file that holds a sealed point.
    pub fn sealed(&self, point: &str) -> PathBuf {
        self.image.with_file_name(format!("web1.{point}.qcow2"))
    }

    /// The directory of the images.
    pub fn dir(&self) -> &Path {
        self.image.parent().expect("a directory")
    }

    /// The VM is switched on, writes, and is off again.
    #[track_caller]
    pub fn vm_runs(&mut self, pattern: u8) {
        self.mount.unmount();
        runs(&self.image, pattern);
        oracle::convert(&self.image, &self.active());
        self.mount.mount_again();
    }

    /// The same, with other bytes each time.
    #[track_caller]
    pub fn vm_writes(&mut self) {
        self.runs = self.runs % 250 + 1;
        self.vm_runs(self.runs);
    }

    /// `mkdir snapshots/NAME`.
    #[track_caller]
    pub fn seal(&mut self, name: &str) {
        let made = self.disk().snapshot(name).make();
        made.unwrap_or_else(|e| panic!("mkdir {name}: {e}\n{}", self.mount.text("log")));
        self.hold(name);
    }

    /// Takes up a point that was made of what the disk holds.
    #[track_caller]
    pub fn hold(&mut self, name: &str) {
        fs::copy(self.active(), self.bytes(name)).expect("a copy of the bytes");
        self.points.push(name.to_owned());
    }

    /// The disk holds what this point did.
    #[track_caller]
    pub fn went_back_to(&mut self, name: &str) {
        fs::copy(self.bytes(name), self.active()).expect("a copy of the bytes");
    }

    /// `rmdir snapshots/NAME`, until the merge has ended.
    #[track_caller]
    pub fn remove(&mut self, name: &str) {
        self.disk().snapshot(name).delete_when_closed();
        let merged = self.disk().wait();
        merged.unwrap_or_else(|e| panic!("{name}: {e}\n{}", self.mount.text("log")));
        self.forget(name);
    }

    /// Forgets a point that was removed.
    pub fn forget(&mut self, name: &str) {
        self.points.retain(|known| known != name);
        let _ = fs::remove_file(self.bytes(name));
    }

    /// The points in the mount that are not known yet.
    #[track_caller]
    pub fn new_points(&self) -> Vec<String> {
        let mut listed = self.disk().list("snapshots");
        listed.retain(|name| !self.points.contains(name));
        listed
    }

    /// Rolls back, and looks at everything: gives the name of what was active.
    #[track_caller]
    pub fn roll_back(&mut self, line: &str) -> String {
        let before = self.disk().list("snapshots");
        oracle::convert(&self.image, &self.active());
        self.disk()
            .roll_back(line)
            .unwrap_or_else(|e| panic!("rollback to {line}: {e}\n{}", self.mount.text("log")));
        let mut new = self.disk().list("snapshots");
        new.retain(|name| !before.contains(name));
        assert_eq!(new.len(), 1, "{new:?}");
        let new = new.remove(0);
        assert!(new.starts_with("rolled-back-20"), "{new}");
        self.hold(&new);
        assert!(oracle::sealed_mark(&self.sealed(&new)).is_some());
        self.all_points_are_right();
        new
    }

    /// Files that carry a mark of work that is not finished.
    pub fn work_written_down(&self) -> Vec<String> {
        let mut marked = names(self.dir());
        marked.retain(|name| {
            let marks = oracle::marks(&self.dir().join(name));
            marks.iter().any(|mark| mark != "point")
        });
        marked
    }

    /// Every point shows the bytes of its instant, in the mount and to qemu-img.
    #[track_caller]
    pub fn all_points_are_right(&self) {
        for point in self.disk().list("snapshots") {
            let bytes = self.bytes(&point);
            oracle::assert_same(&self.disk().snapshot(&point).disk_raw(), &bytes);
            let again = self.scratch.file("again.raw");
            oracle::convert(&self.sealed(&point), &again);
            oracle::assert_same(&again, &bytes);
        }
    }

    /// The VM would boot what that point held.
    #[track_caller]
    pub fn boots_as(&mut self, point: &str) {
        self.boots(&self.bytes(point));
    }

    /// The same of these bytes.
    #[track_caller]
    pub fn boots(&mut self, bytes: &Path) {
        self.mount.unmount();
        self.holds(bytes);
        for layer in oracle::chain(&self.image) {
            oracle::check(&layer);
        }
        self.mount.mount_again();
    }

    fn holds(&self, bytes: &Path) {
        let now = self.scratch.file("now.raw");
        oracle::convert(&self.image, &now);
        oracle::assert_same(&now, bytes);
    }

    /// All questions, where something may have been killed: the points are those that were made, and right; with nobody
    /// at it the directory holds their files and no more, no work is written down, and the VM would boot what it had.
    #[track_caller]
    pub fn verify(&mut self, at: &str) {
        self.points.sort();
        // a merge whose end was late hides the other points for a moment
        let listed = || (self.disk().list("snapshots") == self.points).then_some(());
        if wait::poll(wait::PATIENCE, listed).is_none() {
            assert_eq!(self.disk().list("snapshots"), self.points, "{at}");
        }
        self.all_points_are_right();
        self.mount.unmount();
        let files = self.points.iter().map(|name| format!("web1.{name}.qcow2"));
        let mut expected: Vec<String> = files.chain(["web1.qcow2".to_owned()]).collect();
        expected.sort();
        assert_eq!(names(self.dir()), expected, "{at}");
        for name in expected {
            let mut marks = oracle::marks(&self.dir().join(&name));
            marks.retain(|mark| mark != "point" || name == "web1.qcow2");
            assert!(marks.is_empty(), "{name} is marked {marks:?}: {at}");
        }
        self.holds(&self.active());
        for layer in oracle::chain(&self.image) {
            oracle::check_after_a_fall(&layer);
        }
        self.mount.mount_again();
    }
}

fn runs(image: &Path, pattern: u8) {
    let place = pattern % (MEBIBYTES - 2);
    sh!(
        "qemu-io -f qcow2 -c 'write -P {pattern} {place}M 2M' {} >/dev/null",
        image.display()
    );
}
