//! Which work a path in a mount means. A point may be gone already: `rmdir X && qmpfs wait X`
//! waits for the job that removes X, and finds nothing to wait for when that has ended.

use crate::errno::{Errno, Failure};
use std::path::{Component, Path, PathBuf};

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All work of the mount.
    Mount,
    /// All work on a disk.
    Disk(String),
    /// One job: disk and id.
    Job(String, String),
    /// The removal of one point: disk and name.
    Point(String, String),
    /// The work on a checkpoint of the whole VM.
    Checkpoint(String),
    /// The making of a backup: disk and name.
    Backup(String, String),
}

impl Scope {
    /// What a path below the mount point means.
    pub(super) fn of(inside: &Path) -> Result<Self, Failure> {
        let mut names = Vec::new();
        for part in inside.components() {
            match part {
                Component::Normal(name) => names.push(name.to_str().ok_or_else(|| {
                    Failure::new(Errno::ENOENT, "no name in a mount is anything but UTF-8")
                })?),
                Component::CurDir => {}
                Component::Prefix(_) | Component::RootDir | Component::ParentDir => {
                    return Err(Failure::new(
                        Errno::EINVAL,
                        format!("'{}' is no path in a mount", inside.display()),
                    ));
                }
            }
        }
        // in a mount of backups the disks of each VM are below it
        let whole;
        let named = match names[..] {
            [vm, "disks", disk, ref rest @ ..] if vm != "disks" => {
                whole = format!("{vm}/{disk}");
                [&["disks", whole.as_str()], rest].concat()
            }
            _ => names,
        };
        Ok(match named[..] {
            ["checkpoints", name, ..] => Scope::Checkpoint(name.into()),
            ["disks", disk, "jobs", id, ..] => Scope::Job(disk.into(), id.into()),
            ["disks", disk, "backups", _, name, ..] => Scope::Backup(disk.into(), name.into()),
            ["disks", disk, "backups", ..] => Scope::Disk(disk.into()),
            ["disks", disk, _, name, ..] => Scope::Point(disk.into(), name.into()),
            ["disks", disk, ..] => Scope::Disk(disk.into()),
            _ => Scope::Mount,
        })
    }

    /// The disk it is about, if it is about one.
    pub(super) fn disk(&self) -> Option<&str> {
        match self {
            Scope::Mount | Scope::Checkpoint(_) => None,
            Scope::Disk(disk)
            | Scope::Job(disk, _)
            | Scope::Point(disk, _)
            | Scope::Backup(disk, _) => Some(disk),
        }
    }

    /// What it means that the path is there, or is not, once the work has ended; None where all is
    /// as it should be.
    pub(super) fn taken_back(&self, is_there: impl FnOnce() -> bool) -> Option<&'static str> {
        match self {
            Scope::Point(..) => is_there().then_some("is there again: its removal was cancelled"),
            Scope::Backup(..) => (!is_there()).then_some("was cancelled"),
            Scope::Mount | Scope::Checkpoint(_) | Scope::Disk(_) | Scope::Job(..) => None,
        }
    }

    /// Whether a job is part of it.
    pub(super) fn covers(&self, disk: &str, id: &str, point: &str) -> bool {
        match self {
            Scope::Mount => true,
            Scope::Checkpoint(name) => id.contains("-checkpoint-") && name == point,
            Scope::Disk(wanted) => wanted == disk,
            Scope::Job(wanted, job) => wanted == disk && job == id,
            Scope::Backup(wanted, name) => wanted == disk && name == point,
            Scope::Point(wanted, name) => {
                wanted == disk && !point.is_empty() && (name == point || is_layer_of(name, point))
            }
        }
    }
}

/// Whether `2-web1.before` in layers/ is where the point `before` lies.
pub(super) fn is_layer_of(directory: &str, point: &str) -> bool {
    let (number, stem) = directory.split_once('-').unwrap_or_default();
    !number.is_empty()
        && number.bytes().all(|digit| digit.is_ascii_digit())
        && stem
            .strip_suffix(point)
            .is_some_and(|rest| rest.ends_with('.'))
}

/// The path as the kernel knows it, of which the end may not exist any more.
pub(super) fn resolved(path: &Path) -> Result<PathBuf, Failure> {
    let failed =
        |error: &std::io::Error| Failure::io(format_args!("look at {}", path.display()), error);
    let whole = std::path::absolute(path).map_err(|error| failed(&error))?;
    let mut there = whole.as_path();
    loop {
        match there.canonicalize() {
            Ok(found) => {
                // joining nothing would put a slash behind it
                return Ok(match whole.strip_prefix(there) {
                    Ok(rest) if rest != Path::new("") => found.join(rest),
                    Ok(_) | Err(_) => found,
                });
            }
            Err(error) if super::is_gone(&error) => {
                there = there.parent().ok_or_else(|| failed(&error))?;
            }
            Err(error) => return Err(failed(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Scope, resolved};
    use std::path::Path;

    fn of(path: &str) -> Scope {
        Scope::of(Path::new(path)).expect("a path in a mount")
    }

    #[test]
    fn what_a_path_means() {
        assert_eq!(of(""), Scope::Mount);
        assert_eq!(of("wait"), Scope::Mount);
        assert_eq!(of("disks"), Scope::Mount);
        assert_eq!(of("snapshots/before"), Scope::Mount);
        assert_eq!(of("disks/vda"), Scope::Disk("vda".into()));
        assert_eq!(of("disks/vda/wait"), Scope::Disk("vda".into()));
        assert_eq!(of("disks/vda/snapshots"), Scope::Disk("vda".into()));
        let job = Scope::Job("vda".into(), "j1".into());
        assert_eq!(of("disks/vda/jobs/j1"), job);
        assert_eq!(of("disks/vda/jobs/j1/progress"), job);
        let point = Scope::Point("vda".into(), "before".into());
        assert_eq!(of("disks/vda/snapshots/before"), point);
        assert_eq!(of("disks/vda/snapshots/before/disk.raw"), point);
        let backup = Scope::Backup("vda".into(), "before".into());
        assert_eq!(of("disks/vda/backups/full/before"), backup);
        assert_eq!(of("disks/vda/backups/full"), Scope::Disk("vda".into()));
        assert!(Scope::of(Path::new("../etc")).is_err());
    }

    #[test]
    fn what_does_not_exist_keeps_its_name() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let there = directory.path().canonicalize().expect("it exists");
        assert_eq!(
            resolved(directory.path()).expect("it exists").as_os_str(),
            there.as_os_str()
        );
        let gone = resolved(&directory.path().join("a/b")).expect("its end is gone");
        assert_eq!(gone, there.join("a/b"));
    }

    #[test]
    fn which_jobs_are_part_of_it() {
        assert!(of("").covers("vda", "j1", "x"));
        assert!(of("disks/vda").covers("vda", "j1", "x"));
        assert!(!of("disks/vdb").covers("vda", "j1", "x"));
        assert!(of("disks/vda/jobs/j1").covers("vda", "j1", "x"));
        assert!(!of("disks/vda/jobs/j2").covers("vda", "j1", "x"));
        assert!(of("disks/vda/snapshots/x").covers("vda", "j1", "x"));
        assert!(!of("disks/vda/snapshots/y").covers("vda", "j1", "x"));
        assert!(of("disks/vda/layers/12-web1.x").covers("vda", "j1", "x"));
        assert!(!of("disks/vda/layers/12-web1.ax").covers("vda", "j1", "x"));
        assert!(!of("disks/vda/layers/web1.x").covers("vda", "j1", "x"));
        assert!(of("disks/vda/backups/full/x").covers("vda", "j1", "x"));
        assert!(!of("disks/vda/backups/full/y").covers("vda", "j1", "x"));
    }
}
