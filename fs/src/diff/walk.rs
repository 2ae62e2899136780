//! Two trees of files walked side by side, in the order of their names.

use super::bytes::{self, Same};
use super::say::{Change, Report, What};
use crate::errno::{Errno, Failure};
use crate::sys;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Directories in directories; a damaged filesystem may lead in a circle.
const DEPTH_MAX: usize = 512;

/// Two things of one name, before and after.
type Both = (PathBuf, PathBuf);

/// Compares two files or trees that are both there.
pub(super) fn compare(same: Same, paths: &Both, name: &Path, report: &mut Report) {
    below(same, paths, name, 0, report);
}

/// Whether two files are known to be the same without reading them.
pub(super) fn is_untouched(same: Same, paths: &Both) -> Result<bool, Failure> {
    let files = (bytes::open(&paths.0)?, bytes::open(&paths.1)?);
    let lengths = (bytes::length(&files.0)?, bytes::length(&files.1)?);
    Ok(lengths.0 == lengths.1
        && bytes::come_from_one_place(same, (&files.0, &files.1), 0..lengths.0)?)
}

/// Compares the trees of several partitions: what else stands beside them is not the guest's.
pub(super) fn trees(same: Same, paths: &Both, name: &Path, report: &mut Report) {
    let of = |path: &Path| -> Result<BTreeSet<OsString>, Failure> {
        let names = list(path)?.into_iter();
        Ok(names.filter(|name| path.join(name).is_dir()).collect())
    };
    match (of(&paths.0), of(&paths.1)) {
        (Ok(before), Ok(after)) => named(same, paths, name, (before, after), 0, report),
        (Err(error), _) | (_, Err(error)) => report.trouble(name, &error),
    }
}

fn below(same: Same, paths: &Both, name: &Path, depth: usize, report: &mut Report) {
    let look = |path: &Path| {
        let found = std::fs::symlink_metadata(path);
        found.map_err(|error| Failure::io("look at it", &error))
    };
    let (before, after) = match (look(&paths.0), look(&paths.1)) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(error), _) | (_, Err(error)) => return report.trouble(name, &error),
    };
    match what(same, paths, (&before, &after)) {
        Ok(what) if what.is_empty() => {}
        Ok(what) => report.say(&Change::Changed {
            path: name.to_owned(),
            what,
            sizes: (before.len(), after.len()),
        }),
        Err(error) => report.trouble(name, &error),
    }
    if before.is_dir() && after.is_dir() {
        directories(same, paths, name, depth, report);
    }
}

fn directories(same: Same, paths: &Both, name: &Path, depth: usize, report: &mut Report) {
    if depth >= DEPTH_MAX {
        let deep = Failure::new(
            Errno::EUCLEAN,
            format!("more than {DEPTH_MAX} directories deep"),
        );
        return report.trouble(name, &deep);
    }
    match (list(&paths.0), list(&paths.1)) {
        (Ok(before), Ok(after)) => named(same, paths, name, (before, after), depth, report),
        (Err(error), _) | (_, Err(error)) => report.trouble(name, &error),
    }
}

/// Compares what has these names in two directories.
pub(super) fn named(
    same: Same,
    paths: &Both,
    name: &Path,
    (before, after): (BTreeSet<OsString>, BTreeSet<OsString>),
    depth: usize,
    report: &mut Report,
) {
    let is_dir = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|it| it.is_dir());
    for entry in before.union(&after) {
        let (path, both) = (name.join(entry), (paths.0.join(entry), paths.1.join(entry)));
        match (before.contains(entry), after.contains(entry)) {
            (true, true) => below(same, &both, &path, depth + 1, report),
            (true, false) => {
                let is_dir = is_dir(&both.0);
                report.say(&Change::Removed { path, is_dir });
            }
            (false, _) => {
                let is_dir = is_dir(&both.1);
                report.say(&Change::Added { path, is_dir });
            }
        }
    }
}

fn list(path: &Path) -> Result<BTreeSet<OsString>, Failure> {
    let io = |error| Failure::io("list it", &error);
    let entries = std::fs::read_dir(path).map_err(io)?;
    entries
        .map(|entry| Ok(entry.map_err(io)?.file_name()))
        .collect()
}

/// What is different of two files of a guest. The time of a directory, and when anything was last read or
/// renamed, say nothing about it.
fn what(
    same: Same,
    paths: &Both,
    (before, after): (&Metadata, &Metadata),
) -> Result<Vec<What>, Failure> {
    let mut what = Vec::new();
    let mut add = |is_different: bool, which: What| {
        if is_different {
            what.push(which);
        }
    };
    let kinds = (before.file_type(), after.file_type());
    if kinds.0 != kinds.1 {
        return Ok(vec![What::Kind]);
    }
    let time = |of: &Metadata| (of.mtime(), of.mtime_nsec());
    add(before.is_file() && before.len() != after.len(), What::Size);
    add(!before.is_dir() && time(before) != time(after), What::Time);
    add(before.mode() != after.mode(), What::Mode);
    add(
        (before.uid(), before.gid()) != (after.uid(), after.gid()),
        What::Owner,
    );
    // Whoever changes an attribute changes this time.
    if (before.ctime(), before.ctime_nsec()) != (after.ctime(), after.ctime_nsec()) {
        let all = |path: &Path| {
            let all = sys::xattrs_of(path);
            all.map_err(|error| Failure::io("read its attributes", &error))
        };
        add(all(&paths.0)? != all(&paths.1)?, What::Attributes);
    }
    if kinds.0.is_symlink() {
        let target = |path: &Path| {
            let target = std::fs::read_link(path);
            target.map_err(|error| Failure::io("read the link", &error))
        };
        add(target(&paths.0)? != target(&paths.1)?, What::Target);
    }
    if kinds.0.is_block_device() || kinds.0.is_char_device() {
        add(before.rdev() != after.rdev(), What::Device);
    }
    if before.is_file() && before.len() != after.len() {
        add(true, What::Content);
    } else if before.is_file() && before.len() > 0 {
        let files = (bytes::open(&paths.0)?, bytes::open(&paths.1)?);
        let is_different = bytes::are_different(same, (&files.0, &files.1), before.len())?;
        add(is_different, What::Content);
    }
    Ok(what)
}

/// How finely bytes are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grain {
    /// Each range of them.
    Ranges,
    /// That some are different: which, is told by the files that lie there.
    Once,
}

/// The bytes of a disk or a partition.
pub(super) fn raw(same: Same, paths: &Both, name: &Path, grain: Grain, report: &mut Report) {
    let compared = (|| {
        if !(paths.0.is_file() && paths.1.is_file()) {
            let words = "name disk.raw, partitions/N.raw, or something in files/";
            return Err(Failure::new(Errno::EINVAL, words));
        }
        let files = (bytes::open(&paths.0)?, bytes::open(&paths.1)?);
        let (before, after) = (bytes::length(&files.0)?, bytes::length(&files.1)?);
        if before != after {
            report.say(&Change::Size {
                path: name.to_owned(),
                before,
                after,
            });
        }
        let all = 0..before.min(after);
        bytes::different(same, (&files.0, &files.1), all, &mut |range| {
            let path = name.to_owned();
            report.say(&match grain {
                Grain::Ranges => Change::Bytes { path, range },
                Grain::Once => Change::Changed {
                    path,
                    what: vec![What::Content],
                    sizes: (before, after),
                },
            });
            grain == Grain::Ranges
        })
    })();
    if let Err(error) = compared {
        report.trouble(shown(paths, name), &error);
    }
}

/// What is called nothing, as one of the two was named whole, is called by its path.
fn shown<'a>(paths: &'a Both, name: &'a Path) -> &'a Path {
    match (name.as_os_str().is_empty(), paths.0.is_file()) {
        (false, _) => name,
        // joined with nothing it ends with a slash
        (true, false) => paths.0.components().as_path(),
        (true, true) => paths.1.components().as_path(),
    }
}
