//! `qmpfs diff`: what is different between two points, through a mount's own files: guests' files where they can be
//! read, ranges of bytes where not. What both points have from one place is not read.
//! Knows paths in mounts; asks no QEMU and changes nothing.
//! Invariant: "the same" is said only of what was compared whole, or comes from one place while both are open.

mod bytes;
mod say;
mod target;
mod walk;

use crate::errno::Failure;
use bytes::Same;
use say::{Change, Report};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use target::{Partition, Point, Target};
use walk::Grain;

/// How the differences are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A line for each, for people and the shell.
    Lines,
    /// A JSON object for each, on a line.
    Json,
}

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// A point, points of all disks, or something in a point.
    pub before: PathBuf,
    /// The same of another instant.
    pub after: PathBuf,
    /// How to say it.
    pub form: Form,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// There is no difference.
    Same,
    /// There are differences.
    Different,
    /// Something could not be compared.
    Trouble,
}

/// Compares two points and writes the differences to standard output.
pub fn diff(request: &Request) -> Result<Ended, Failure> {
    let mut report = Report::new(request.form);
    let (before, after) = (Target::of(&request.before)?, Target::of(&request.after)?);
    match (before, after) {
        (Target::Point(before, inside), Target::Point(after, within)) => {
            Pair::new(&before, &after, Path::new(""))?.compare((&inside, &within), &mut report);
        }
        (Target::Disks(before), Target::Disks(after)) => {
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names {
                let at = Path::new(name.as_str());
                match (before.get(name), after.get(name)) {
                    (Some(before), Some(after)) => {
                        let whole = Path::new("");
                        Pair::new(before, after, at)?.compare((whole, whole), &mut report);
                    }
                    (Some(_), None) => report.say(&Change::Removed {
                        path: at.into(),
                        is_dir: true,
                    }),
                    (None, _) => report.say(&Change::Added {
                        path: at.into(),
                        is_dir: true,
                    }),
                }
            }
            together((&request.before, &request.after), &mut report)?;
        }
        (Target::Point(..), Target::Disks(_)) | (Target::Disks(_), Target::Point(..)) => {
            return Err(target::not_alike());
        }
    }
    report.end()
}

/// The files of volumes that several disks hold together.
fn together((before, after): (&Path, &Path), report: &mut Report) -> Result<(), Failure> {
    let name = Path::new("files");
    let paths = (before.join(name), after.join(name));
    if paths.0.is_dir() && paths.1.is_dir() {
        let same = Same::of(&bytes::open(&paths.0)?, &bytes::open(&paths.1)?)?;
        walk::trees(same, &paths, name, report);
    }
    Ok(())
}

/// Two points of a disk. Both are held open: neither can be removed meanwhile.
struct Pair<'a> {
    before: &'a Point,
    after: &'a Point,
    disks: (File, File),
    /// Whether what both have from one place is the same.
    same: Same,
    /// What names begin with.
    at: PathBuf,
}

impl<'a> Pair<'a> {
    fn new(before: &'a Point, after: &'a Point, at: &Path) -> Result<Pair<'a>, Failure> {
        let disks = (before.open_disk()?, after.open_disk()?);
        let same = Same::of(&disks.0, &disks.1)?;
        Ok(Pair {
            before,
            after,
            disks,
            same,
            at: at.to_owned(),
        })
    }

    fn compare(&self, (inside, within): (&Path, &Path), report: &mut Report) {
        if inside.as_os_str().is_empty() && within.as_os_str().is_empty() {
            return self.whole(report);
        }
        let name = self.at.join(inside);
        let paths = (self.before.path.join(inside), self.after.path.join(within));
        match (inside.starts_with("files"), inside == Path::new("files")) {
            (_, true) => walk::trees(self.same, &paths, &name, report),
            (true, false) => walk::compare(self.same, &paths, &name, report),
            (false, false) => walk::raw(self.same, &paths, &name, Grain::Ranges, report),
        }
    }

    /// Partition by partition, and what is in none of them.
    fn whole(&self, report: &mut Report) {
        let name = self.at.join("disk.raw");
        let lengths = match (bytes::length(&self.disks.0), bytes::length(&self.disks.1)) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(error), _) | (_, Err(error)) => return report.trouble(&name, &error),
        };
        if lengths.0 != lengths.1 {
            report.say(&Change::Size {
                path: name.clone(),
                before: lengths.0,
                after: lengths.1,
            });
        }
        match bytes::come_from_one_place(self.same, (&self.disks.0, &self.disks.1), 0..lengths.0) {
            Ok(true) if lengths.0 == lengths.1 => return,
            Ok(_) => {}
            Err(error) => return report.trouble(&name, &error),
        }
        let (before, after) = (self.before.partitions(), self.after.partitions());
        let alike = |partition: &&Partition| after.contains(partition);
        let kept: Vec<&Partition> = before.iter().filter(alike).collect();
        let numbers: BTreeSet<u32> = before.iter().chain(&after).map(|it| it.number).collect();
        for number in numbers {
            self.partition(number, report);
        }
        let volumes = (self.before.volumes(), self.after.volumes());
        let of = |point: &Point| point.path.join("files");
        let paths = (of(self.before), of(self.after));
        walk::named(
            self.same,
            &paths,
            &self.at.join("files"),
            volumes,
            0,
            report,
        );
        let mut at = 0;
        let mut between = |stretch: std::ops::Range<u64>| {
            if stretch.start < stretch.end {
                let files = (&self.disks.0, &self.disks.1);
                let found = bytes::different(self.same, files, stretch, &mut |range| {
                    report.say(&Change::Bytes {
                        path: name.clone(),
                        range,
                    });
                    true
                });
                if let Err(error) = found {
                    report.trouble(&name, &error);
                }
            }
        };
        let end = lengths.0.min(lengths.1);
        for partition in &kept {
            between(at..partition.start.min(end));
            at = at.max(partition.start.saturating_add(partition.size));
        }
        between(at..end);
    }

    /// The files of a partition where both have them, or else its bytes.
    fn partition(&self, number: u32, report: &mut Report) {
        let (tree, raw) = (
            format!("files/{number}"),
            format!("partitions/{number}.raw"),
        );
        let of = |name: &str| (self.before.path.join(name), self.after.path.join(name));
        let (trees, raws) = (of(&tree), of(&raw));
        let is_here = (raws.0.exists(), raws.1.exists());
        let path = self.at.join(&raw);
        match is_here {
            (true, true) => {}
            (true, false) => {
                return report.say(&Change::Removed {
                    path,
                    is_dir: false,
                });
            }
            (false, _) => {
                return report.say(&Change::Added {
                    path,
                    is_dir: false,
                });
            }
        }
        match walk::is_untouched(self.same, &raws) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => return report.trouble(&path, &error),
        }
        let has_volumes =
            |point: &Point| point.is_physical_volume(number) && !point.volumes().is_empty();
        // What cannot be read has a text beside it that says why; its bytes can be compared all the same.
        if trees.0.is_dir() && trees.1.is_dir() {
            walk::compare(self.same, &trees, &self.at.join(&tree), report);
        } else if has_volumes(self.before) && has_volumes(self.after) {
            walk::raw(self.same, &raws, &path, Grain::Once, report);
        } else {
            walk::raw(self.same, &raws, &path, Grain::Ranges, report);
        }
    }
}
