//! Whether anything is known under the name that a path in a mount ends in: it is there, a job is at work on it, or the
//! mount's events tell that one was, or that it was made or removed. What was never there is not waited for.

use super::scope::is_layer_of;
use super::{Seen, text};
use crate::errno::{Errno, Failure};
use serde_json::Value;
use std::path::{Component, Path};

/// The file in which a mount tells what happened.
const EVENTS: &str = "events";
/// What it tells of lines that it keeps no more.
const GONE: &str = r#""event":"lines_gone""#;
/// What it tells of names that are, or were, there.
const TOLD: [&str; 5] = [
    "verb_ended",
    "point_made",
    "point_gone",
    "job_state",
    "job_gone",
];

/// What of a path below a mount is not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing<'a> {
    /// The first name that is not.
    name: &'a str,
    /// Those above it, which are.
    above: Vec<&'a str>,
}

impl<'a> Missing<'a> {
    /// None of a path that is there.
    pub(super) fn of(root: &Path, inside: &'a Path) -> Option<Self> {
        let mut there = root.to_owned();
        let mut above = Vec::new();
        for part in inside.components() {
            let Component::Normal(name) = part else {
                continue;
            };
            there.push(name);
            // the scope has seen that it is UTF-8
            let name = name.to_str()?;
            if there.symlink_metadata().is_err() {
                return Some(Missing { name, above });
            }
            above.push(name);
        }
        None
    }

    /// Refuses what is missing where names do not come and go.
    pub(super) fn may_have_been(&self, root: &Path) -> Result<(), Failure> {
        if comes_and_goes(&self.above) {
            return Ok(());
        }
        let mut above = root.to_owned();
        above.extend(&self.above);
        Err(Failure::new(
            Errno::ENOENT,
            format!("there is no '{}' in {}", self.name, above.display()),
        )
        .next("see what there is: ls"))
    }

    /// Whether a job is at work on it, or the mount remembers it. One that tells nothing may do so.
    pub(super) fn is_known(&self, root: &Path, jobs: &[Seen]) -> Result<bool, Failure> {
        let disk = disk_of(&self.above);
        let of_the_disk = |job: &&Seen| disk.as_ref().is_none_or(|disk| *disk == job.disk);
        let mut jobs = jobs.iter().filter(of_the_disk);
        if jobs.any(|job| self.is_called(&job.id) || self.is_called(&job.point)) {
            return Ok(true);
        }
        let Some(events) = text(&root.join(EVENTS))? else {
            return Ok(true);
        };
        let events = events
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        Ok(events.into_iter().any(|event| self.is_told(&event)))
    }

    fn is_called(&self, name: &str) -> bool {
        name == self.name || is_layer_of(self.name, name)
    }

    fn is_told(&self, event: &Value) -> bool {
        let word = |key: &str| event[key].as_str();
        let is_done = TOLD.contains(&word("event").unwrap_or_default()) && event["errno"].is_null();
        let names: Vec<&str> = word("path").unwrap_or_default().split('/').collect();
        let names = names.strip_prefix(&[""]).unwrap_or(&names);
        let told = word("disk").map(str::to_owned).or_else(|| disk_of(names));
        let is_elsewhere = disk_of(&self.above)
            .zip(told)
            .is_some_and(|(disk, told)| disk != told);
        let mut names = names.iter().copied().chain(word("job"));
        is_done && !is_elsewhere && names.any(|name| self.is_called(name))
    }
}

/// Whether the mount does not remember all that has happened in it any more.
pub(super) fn is_forgotten(root: &Path) -> Result<bool, Failure> {
    let events = text(&root.join(EVENTS))?.unwrap_or_default();
    // it stands first, where it stands
    Ok(events
        .lines()
        .next()
        .is_some_and(|line| line.contains(GONE)))
}

/// As it is told in words.
pub(super) fn unknown(path: &Path) -> Failure {
    Failure::new(
        Errno::ENOENT,
        format!("nothing is known under this name: {}", path.display()),
    )
    .next("see what there is, and what was done: ls, cat log")
}

/// Whether points, backups or jobs are in a directory.
fn comes_and_goes(directory: &[&str]) -> bool {
    match directory {
        ["snapshots" | "live" | "checkpoints"] | ["backups", _] => true,
        ["disks", _, "backups", _] => true,
        ["disks", _, section] => *section != "backups",
        // in a mount of backups all of it is below a VM
        [vm, inside @ ..] if *vm != "disks" && !inside.is_empty() => comes_and_goes(inside),
        _ => false,
    }
}

/// The disk that a path is about, as jobs name it.
fn disk_of(names: &[&str]) -> Option<String> {
    match names {
        ["disks", disk, ..] => Some((*disk).to_owned()),
        [vm, "disks", disk, ..] => Some(format!("{vm}/{disk}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn missing(path: &'static str) -> Missing<'static> {
        let mut above: Vec<&str> = path.split('/').collect();
        let name = above.pop().expect("a name");
        Missing { name, above }
    }

    #[test]
    fn where_names_come_and_go() {
        let root = Path::new("/mnt");
        for path in [
            "snapshots/x",
            "checkpoints/x",
            "backups/full/x",
            "disks/vda/snapshots/x",
            "disks/vda/jobs/x",
            "disks/vda/backups/full/x",
            "web1/disks/vda/backups/full/x",
        ] {
            assert!(missing(path).may_have_been(root).is_ok(), "{path}");
        }
        for path in [
            "x",
            "disks/x",
            "disks/vda/x",
            "disks/vda/backups/x",
            "disks/vda/snapshots/a/x",
        ] {
            assert!(missing(path).may_have_been(root).is_err(), "{path}");
        }
    }

    #[test]
    fn lines_that_are_gone_may_have_told_of_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_forgotten(dir.path()).unwrap());
        let events = dir.path().join(EVENTS);
        let made = r#"{"from":"qmpfs","event":"point_made","path":"/disks/vda/snapshots/a"}"#;
        std::fs::write(&events, format!("{made}\n")).unwrap();
        assert!(!is_forgotten(dir.path()).unwrap());
        let gone = r#"{"from":"qmpfs","event":"lines_gone","count":3}"#;
        std::fs::write(&events, format!("{gone}\n{made}\n")).unwrap();
        assert!(is_forgotten(dir.path()).unwrap());
    }

    #[test]
    fn what_is_told_of_a_name() {
        let gone = json!({"event": "verb_ended", "path": "/disks/vda/snapshots/a", "errno": null});
        assert!(missing("disks/vda/snapshots/a").is_told(&gone));
        assert!(missing("disks/vda/layers/2-web1.a").is_told(&gone));
        assert!(!missing("disks/vdb/snapshots/a").is_told(&gone));
        assert!(!missing("disks/vda/snapshots/b").is_told(&gone));
        let refused =
            json!({"event": "verb_ended", "path": "/disks/vda/backups/full/w", "errno": "EBUSY"});
        assert!(!missing("disks/vda/backups/full/w").is_told(&refused));
        let job = json!({"event": "job_gone", "disk": "vda", "job": "qmpfs-stream-1"});
        assert!(missing("disks/vda/jobs/qmpfs-stream-1").is_told(&job));
        assert!(!missing("disks/vda/jobs/qmpfs-stream-2").is_told(&job));
        let all = json!({"event": "verb_ended", "path": "/snapshots/a", "errno": null});
        assert!(missing("snapshots/a").is_told(&all));
    }
}
