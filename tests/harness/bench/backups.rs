//! A bench with a backup directory: backups are made beside the writer, and each keeps the bytes that it must hold.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Bench, SIZE, WRITERS};
use crate::faults::names;
use crate::machine::Attachment;
use crate::scratch::Scratch;
use crate::tree::{DiskDir, Point};
use crate::{oracle, sh, wait};

/// What the VM is called.
const VM: &str = "web1";

/// A bench, its backup directory, and what was put there.
#[derive(Debug)]
pub struct Shelf {
    /// The running disk and its mount.
    pub bench: Bench,
    dir: PathBuf,
    kept: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    kind: String,
    name: String,
    bytes: PathBuf,
}

impl Shelf {
    /// A new empty disk under load, with a backup directory beside it.
    #[track_caller]
    pub fn new(name: &str, attachment: Attachment) -> Self {
        Self::with_options(name, attachment, &[])
    }

    /// The same with options for `qmpfs mount`.
    #[track_caller]
    pub fn with_options(name: &str, attachment: Attachment, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let dir = scratch.dir("backups");
        Self::at(scratch, dir, attachment, options)
    }

    /// The same in a backup directory of the test's own.
    #[track_caller]
    pub fn at(scratch: Scratch, dir: PathBuf, attachment: Attachment, options: &[&str]) -> Self {
        let images = scratch.dir("images");
        oracle::create(&images.join("web1.qcow2"), SIZE);
        let path = dir.display().to_string();
        let name = format!("name={VM}");
        let all = [&["--backup-dir", &path, "-o", &name], options].concat();
        Self {
            bench: Bench::on(scratch, images, Vec::new(), attachment, &all),
            dir,
            kept: Vec::new(),
        }
    }

    /// The directory of the disk's backups.
    pub fn place(&self) -> PathBuf {
        self.dir.join(VM).join("vda")
    }

    /// A backup's file.
    pub fn file(&self, name: &str) -> PathBuf {
        self.place().join(format!("{name}.qcow2"))
    }

    /// A backup in the mount.
    pub fn backup(&self, kind: &str, name: &str) -> Point {
        self.bench.disk().backup(kind, name)
    }

    /// `mkdir backups/KIND/NAME`, its end, and everything that must be true of it. Gives point.json.
    #[track_caller]
    pub fn keep(&mut self, kind: &str, name: &str) -> Value {
        self.keep_while(kind, name, |_| {})
    }

    /// The same, with something that happens while the job runs.
    #[track_caller]
    pub fn keep_while(
        &mut self,
        kind: &str,
        name: &str,
        meanwhile: impl FnOnce(&mut Self),
    ) -> Value {
        self.keep_alone(kind, name, meanwhile);
        self.verify();
        self.bench.write(3);
        self.wait_for_digest(kind, name);
        self.backup(kind, name).json()
    }

    /// The same without a look at all the others: in long chains that is for the end.
    #[track_caller]
    pub fn keep_alone(
        &mut self,
        kind: &str,
        name: &str,
        meanwhile: impl FnOnce(&mut Self),
    ) -> Value {
        self.bench.writer().progress(20);
        let before = self.bench.writer().acknowledged();
        let model = self.bench.model().clone();
        self.bench.writer().step(&format!("mkdir {kind}/{name}"));
        let point = self.backup(kind, name);
        point.make().unwrap_or_else(|e| {
            panic!("mkdir {kind}/{name}: {e}\n{}", self.bench.mount.text("log"))
        });
        let after = self.bench.writer().sent();
        assert!(point.exists(), "it is there at once");
        self.bench.write(4);
        meanwhile(self);
        let end = self.bench.disk().wait();
        assert!(
            end.is_ok(),
            "the backup {name} failed: {end:?}\n{}",
            self.bench.mount.text("log")
        );
        self.bench
            .writer()
            .step(&format!("{kind}/{name} is complete"));

        let bytes = self.bench.scratch().file(&format!("{name}.backup"));
        oracle::check(&self.file(name));
        oracle::convert(&self.file(name), &bytes);
        model.assert_holds(&bytes, 0..WRITERS);
        before.assert_between(&after, &bytes, WRITERS..SIZE);
        self.kept.push(Kept {
            kind: kind.to_owned(),
            name: name.to_owned(),
            bytes,
        });
        let json = point.json();
        if json["copied"] == "top" {
            self.hold_the_copy_below(&json["previous"]);
        }
        json
    }

    /// What a backup of the active layer stands on is the full backup of a point.
    #[track_caller]
    fn hold_the_copy_below(&mut self, previous: &Value) {
        let name = previous.as_str().expect("it stands on something");
        if self.kept.iter().any(|kept| kept.name == name) {
            return;
        }
        self.kept.push(Kept {
            kind: "full".to_owned(),
            name: name.to_owned(),
            bytes: self.bench.bytes_of(name).to_owned(),
        });
    }

    /// Soon after a backup is complete its digest is known, and is that of its bytes.
    #[track_caller]
    fn wait_for_digest(&self, kind: &str, name: &str) {
        let point = self.backup(kind, name);
        let told = wait::until("the digest is there", || {
            point.json()["digest"].as_str().map(str::to_owned)
        });
        let bytes = self.bench.scratch().file(&format!("{name}.backup"));
        assert_eq!(told, oracle::digest(&bytes), "{kind}/{name}");
    }

    /// Every backup is listed where it was made, holds its instant, and nothing else lies about.
    #[track_caller]
    pub fn verify(&mut self) {
        self.bench.verify();
        let mut files = Vec::new();
        for Kept { kind, name, bytes } in &self.kept {
            let point = self.backup(kind, name);
            oracle::assert_same(&point.disk_raw(), bytes);
            assert_eq!(
                names(&point.0),
                ["disk.raw", "files", "partitions", "plan", "point.json"],
                "what a backup that is complete has"
            );
            files.push(format!("{name}.json"));
            files.push(format!("{name}.qcow2"));
        }
        files.sort();
        assert_eq!(self.names(), files, "the files of the backups");
    }

    /// The files in the disk's directory, but for what is kept of the newest digest.
    #[track_caller]
    pub fn names(&self) -> Vec<String> {
        // the newest is there before the one before it goes
        let mut found = wait::until("only the newest is kept", || {
            let found = names(&self.place());
            let kept = found.iter().filter(|name| name.ends_with(".blake3"));
            (kept.count() <= 1).then_some(found)
        });
        found.retain(|name| !(name.starts_with('.') && name.contains(".blake3")));
        found
    }

    /// Forgets a backup that the test removes.
    pub fn forget(&mut self, name: &str) {
        self.kept.retain(|kept| kept.name != name);
    }

    /// Every backup that was kept is in this disk's directory of another mount, and holds its instant.
    #[track_caller]
    pub fn assert_shown(&self, disk: &DiskDir) {
        for kind in ["full", "incremental", "top"] {
            let of_kind = self.kept.iter().filter(|kept| kept.kind == kind);
            let mut expected: Vec<String> = of_kind.map(|kept| kept.name.clone()).collect();
            expected.sort();
            assert_eq!(disk.list(&format!("backups/{kind}")), expected);
        }
        for Kept { kind, name, bytes } in &self.kept {
            oracle::assert_same(&disk.backup(kind, name).disk_raw(), bytes);
        }
    }

    /// The names of the backups that were kept, in the order they were made.
    pub fn kept(&self) -> Vec<String> {
        self.kept.iter().map(|kept| kept.name.clone()).collect()
    }

    /// The backup directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory is copied elsewhere, and each backup is read there by qemu-img alone.
    #[track_caller]
    pub fn read_from_a_copy(&self) {
        let copy = self.bench.scratch().file("copied");
        sh!("rm -rf {}", copy.display());
        self.copy_to(&copy);
        self.read_from(&copy);
    }

    /// `cp -a` of the backup directory, once every digest is written down: until then names come and go in it.
    #[track_caller]
    pub fn copy_to(&self, copy: &Path) {
        let all = self
            .kept
            .iter()
            .map(|kept| self.place().join(format!("{}.json", kept.name)));
        for manifest in all {
            wait::until_true("the digest is written down", || {
                let text = std::fs::read_to_string(&manifest).unwrap_or_default();
                let manifest: Value = serde_json::from_str(&text).unwrap_or_default();
                manifest["digest"].is_string()
            });
        }
        self.names();
        sh!("cp -a {} {}", self.dir.display(), copy.display());
    }

    /// Each backup is read there by qemu-img alone.
    #[track_caller]
    pub fn read_from(&self, copy: &Path) {
        let read = self.bench.scratch().file("copied.raw");
        for Kept { name, bytes, .. } in &self.kept {
            let file = copy.join(VM).join("vda").join(format!("{name}.qcow2"));
            convert(&file, &read);
            oracle::assert_same(&read, bytes);
        }
    }
}

fn convert(image: &Path, raw: &Path) {
    sh!(
        "qemu-img convert -f qcow2 -O raw {} {}",
        image.display(),
        raw.display()
    );
}
