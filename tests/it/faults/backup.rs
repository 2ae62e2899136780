//! `mkdir backups/KIND/N`, until the copy is complete or nothing is left of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use qmpfs_tests::bench::{Bench, SIZE, Shelf, WRITERS};
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::steps::Deed;
use qmpfs_tests::tree::{Point, write_line};
use qmpfs_tests::{oracle, wait};

use super::drive::{Round, Verb};
use super::rounds::Whom;
use super::running::{at_last_step, every_step};

/// A backup of one kind. Operations on files in the backup directory are steps.
struct Backup {
    kind: &'static str,
    round: u32,
    /// The backup directory, and in it that of the disk.
    directory: PathBuf,
    place: PathBuf,
}

fn bench_of(
    name: &str,
    attachment: Attachment,
    kind: &'static str,
    options: &[&str],
) -> (Bench, Backup) {
    let shelf = Shelf::with_options(name, attachment, options);
    let verb = Backup {
        kind,
        round: 0,
        directory: shelf.dir().to_owned(),
        place: shelf.place(),
    };
    (shelf.bench, verb)
}

/// Every step of a backup.
pub(super) fn every_step_of(name: &str, attachment: Attachment, kind: &'static str) {
    let (bench, verb) = bench_of(name, attachment, kind, &[]);
    every_step(bench, verb);
}

/// The same by way of a scratch file.
pub(super) fn every_step_of_fleecing(name: &str, attachment: Attachment) {
    let (bench, verb) = bench_of(name, attachment, "incremental", &["-o", "fleecing"]);
    every_step(bench, verb);
}

/// QEMU dies when the job has ended and that is written down: nothing of the copy is in its memory alone any more.
pub(super) fn qemu_dies_at_its_end(name: &str, attachment: Attachment) {
    let (bench, verb) = bench_of(name, attachment, "incremental", &[]);
    at_last_step(bench, verb, Whom::Qemu, Deed::KillBefore, "job-dismiss");
}

/// What is complete could not be given its name: it is, as soon as it can be.
pub(super) fn a_name_that_fails_at_first(name: &str, attachment: Attachment) {
    name_fails(name, attachment, "full", "ftruncate web1/vda/.n");
}

/// The same of a backup of the top layer, and of what is made for it to stand on.
pub(super) fn one_of_two_names_fails_at_first(name: &str, attachment: Attachment) {
    // its length, and the manifest beside what has its name already
    for words in [
        "ftruncate web1/vda/.n",
        "ftruncate web1/vda/.below",
        "fsync web1/vda/.below",
    ] {
        name_fails(name, attachment, "top", words);
    }
}

fn name_fails(name: &str, attachment: Attachment, kind: &'static str, words: &str) {
    let (bench, verb) = bench_of(name, attachment, kind, &[]);
    let fails = Deed::Fail(libc::EIO.unsigned_abs());
    at_last_step(bench, verb, Whom::Nobody, fails, words);
}

impl Backup {
    fn name(&self) -> String {
        format!("n{}", self.round)
    }

    fn point(&self, bench: &Bench) -> Point {
        bench.disk().backup(self.kind, &self.name())
    }

    /// What an incremental one stands on.
    fn base(&self, bench: &Bench) -> Option<Point> {
        let base = format!("base{}", self.round);
        (self.kind == "incremental").then(|| bench.disk().backup("full", &base))
    }

    /// The point that one of the active layer stands on, and the name of that point's copy.
    fn below(&self) -> Option<String> {
        (self.kind == "top").then(|| format!("below{}", self.round))
    }

    fn file(&self) -> PathBuf {
        self.place.join(format!("{}.qcow2", self.name()))
    }

    /// The files there are, but for digests that are written beside them in their own time.
    fn files(&self) -> Vec<String> {
        let mut found = match self.place.is_dir() {
            true => names(&self.place),
            false => Vec::new(),
        };
        found.retain(|name| !name.contains(".blake3") && !name.ends_with(".new"));
        found
    }

    /// A mirror ends when it is told to.
    fn say_finish(bench: &Bench) {
        let jobs = fs::read_dir(bench.disk().0.join("jobs"));
        for job in jobs.into_iter().flatten().flatten() {
            let state = fs::read_to_string(job.path().join("state")).unwrap_or_default();
            if state.trim() == "ready" {
                // it may have fallen behind again just now, or have ended
                let _ = write_line(&job.path().join("ctl"), b"finish\n");
            }
        }
    }
}

impl Verb<Bench> for Backup {
    fn watched(&self) -> Option<PathBuf> {
        Some(self.directory.clone())
    }

    fn prepare(&mut self, bench: &mut Bench) {
        self.round += 1;
        if let Some(base) = self.base(bench) {
            base.make().expect("mkdir of what it stands on");
            bench.disk().wait().expect("a full backup");
        }
        if let Some(below) = self.below() {
            bench.seal(&below);
        }
        bench.write(4);
    }

    fn act(&mut self, bench: &mut Bench) -> io::Result<()> {
        self.point(bench).make()?;
        if self.kind == "mirror" {
            // told once; what comes after a fault is said in `go_on`
            wait::poll(wait::PATIENCE, || {
                Self::say_finish(bench);
                let jobs = fs::read_dir(bench.disk().0.join("jobs"));
                let failed = |job: &Path| {
                    let error = fs::read_to_string(job.join("error"));
                    error.map_or(true, |error| !error.trim().is_empty())
                };
                let mut left = jobs.into_iter().flatten().flatten();
                left.all(|job| failed(&job.path())).then_some(())
            });
        }
        let _ = bench.disk().wait();
        Ok(())
    }

    fn go_on(&mut self, bench: &Bench) {
        if self.kind == "mirror" {
            Self::say_finish(bench);
        }
    }

    fn judge(&mut self, bench: &mut Bench, round: &Round) {
        let point = self.point(bench);
        wait::until_true(&format!("complete, or nothing of it: {}", round.at), || {
            let hidden = self.files().iter().any(|name| name.starts_with('.'));
            !hidden && point.exists() == self.file().exists()
        });
        let there = point.exists();
        assert!(
            round.answer.is_ok() || !there || round.killed,
            "refused, and it is there: {}",
            round.at
        );
        if there {
            let bytes = bench.scratch().file("now.raw");
            oracle::check(&self.file());
            oracle::convert(&self.file(), &bytes);
            bench.model().assert_holds(&bytes, 0..WRITERS);
            if !round.booted {
                let after = bench.writer().sent();
                round.before.assert_between(&after, &bytes, WRITERS..SIZE);
            }
            oracle::assert_same(&point.disk_raw(), &bytes);
            point.delete_when_closed();
        }
        if let Some(base) = self.base(bench) {
            base.delete_when_closed();
        }
        if let Some(below) = self.below() {
            let copy = bench.disk().backup("full", &below);
            assert_eq!(
                copy.exists(),
                there,
                "both are named, or none: {}",
                round.at
            );
            if there {
                oracle::assert_same(&copy.disk_raw(), bench.bytes_of(&below));
                copy.delete_when_closed();
            }
            bench.remove(&below);
        }
        wait::until_true(&format!("no file is left: {}", round.at), || {
            self.files().is_empty()
        });
        wait::until_true(&format!("no bitmap is left: {}", round.at), || {
            bench.disk().list("bitmaps").is_empty()
        });
    }
}
