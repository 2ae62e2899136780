//! `qmpfs wait`: follows the work in a mount through the mount's own files, with a progress bar on
//! a terminal. It asks and changes nothing else: Ctrl-C ends the waiting, not the work.

mod bar;
mod known;
mod scope;

use crate::errno::{Errno, Failure};
pub(crate) use bar::Bar;
pub use bar::Say;
use known::Missing;
pub(crate) use scope::Scope;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A bar that moves four times a second looks alive; a job's end is seen as soon.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// A job, a point, a disk, or anything else in a mount.
    pub path: PathBuf,
    /// How much to say meanwhile.
    pub say: Say,
}

/// A job as its directory shows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    pub(crate) disk: String,
    pub(crate) id: String,
    pub(crate) verb: String,
    pub(crate) point: String,
    pub(crate) state: String,
    pub(crate) current: u64,
    pub(crate) total: u64,
    pub(crate) rate: Option<u64>,
    pub(crate) left: Option<u64>,
    pub(crate) error: String,
}

impl Seen {
    fn ended(&self) -> bool {
        !self.error.is_empty() || self.state == "concluded"
    }
}

/// The mount that a path lies in.
pub struct Mount {
    /// Where it is.
    pub root: PathBuf,
    /// Whether that one is still seen there, and no other.
    pub is_there: Box<dyn Fn() -> bool>,
}

/// Waits until all work in the scope of a path has ended; fails if any of it has. `mount` finds
/// the mount that a path lies in.
pub fn follow(
    request: &Request,
    mount: impl FnOnce(&Path) -> Result<Mount, Failure>,
) -> Result<(), Failure> {
    let path = scope::resolved(&request.path)?;
    let mount = mount(&path)?;
    let outcome = until_ended(request, &path, &mount.root);
    if !(mount.is_there)() {
        // that no work is seen there says nothing
        return Err(unknown_end(format!(
            "the mount on {} is gone",
            mount.root.display()
        )));
    }
    outcome
}

fn unknown_end(what: String) -> Failure {
    Failure::new(
        Errno::EIO,
        format!("{what}; how the work ended is not known"),
    )
    .next("mount it again: its log, and what is there, tell what was done")
}

fn until_ended(request: &Request, path: &Path, root: &Path) -> Result<(), Failure> {
    let inside = path.strip_prefix(root).unwrap_or(Path::new(""));
    let scope = Scope::of(inside)?;
    // of a directory of backups a disk goes with its last backup
    if let Some(disk) = scope.disk().filter(|disk| !disk.contains('/'))
        && !directory(root, disk).is_dir()
    {
        return Err(Failure::new(
            Errno::ENOENT,
            format!("there is no disk '{disk}' in {}", root.display()),
        )
        .next("see which there are: ls disks"));
    }
    refuse_unknown(path, root, inside)?;
    let mut bar = Bar::new(request.say);
    let mut followed = BTreeSet::new();
    loop {
        let jobs = covered(root, &scope)?;
        if jobs.iter().all(Seen::ended) {
            bar.end();
            return ended(&scope, &jobs, path, root, &followed);
        }
        followed.extend(jobs.iter().map(|job| job.disk.clone()));
        bar.show(&jobs);
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Refuses a name that is not there, and never was as far as anybody knows. Each source is asked twice: what just
/// goes from one to the other is in neither.
fn refuse_unknown(path: &Path, root: &Path, inside: &Path) -> Result<(), Failure> {
    for _ in 0..2 {
        let Some(missing) = Missing::of(root, inside) else {
            return Ok(());
        };
        if missing.is_known(root, &look(root, None)?)? {
            return Ok(());
        }
        missing.may_have_been(root)?;
        if known::is_forgotten(root)? {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Err(known::unknown(path))
}

/// The jobs in a scope; one that is at work on several disks is one.
fn covered(root: &Path, scope: &Scope) -> Result<Vec<Seen>, Failure> {
    let mut jobs = look(root, scope.disk())?;
    jobs.retain(|job| scope.covers(&job.disk, &job.id, &job.point));
    let mut known = HashSet::new();
    jobs.retain(|job| known.insert(job.id.clone()));
    Ok(jobs)
}

/// How what was followed on some disks has ended.
fn ended(
    scope: &Scope,
    jobs: &[Seen],
    path: &Path,
    root: &Path,
    followed: &BTreeSet<String>,
) -> Result<(), Failure> {
    if let Some(failed) = jobs.iter().find(|job| !job.error.is_empty()) {
        return Err(Failure::new(
            Errno::EIO,
            format!(
                "{} of '{}' failed: {}",
                failed.verb, failed.point, failed.error
            ),
        ));
    }
    // of a directory of backups a disk goes with its last backup
    let mut of_a_vm = followed.iter().filter(|disk| !disk.contains('/'));
    if let Some(gone) = of_a_vm.find(|disk| !directory(root, disk).is_dir()) {
        return Err(unknown_end(format!("disk '{gone}' is gone")));
    }
    let taken_back = scope.taken_back(|| path.is_dir());
    match taken_back.filter(|_| !followed.is_empty()) {
        Some(what) => Err(Failure::new(
            Errno::EIO,
            format!("{} {what}", path.display()),
        )),
        None => Ok(()),
    }
}

/// A disk's directory: of a mount of backups it is below its VM.
fn directory(root: &Path, disk: &str) -> PathBuf {
    match disk.split_once('/') {
        Some((vm, disk)) => root.join(vm).join("disks").join(disk),
        None => root.join("disks").join(disk),
    }
}

/// All disks of a mount.
fn disks(root: &Path) -> Result<Vec<String>, Failure> {
    let own = root.join("disks");
    if own.is_dir() {
        return names(&own);
    }
    let mut all = Vec::new();
    for vm in names(root)? {
        let below = root.join(&vm).join("disks");
        if below.is_dir() {
            all.extend(names(&below)?.iter().map(|disk| format!("{vm}/{disk}")));
        }
    }
    Ok(all)
}

/// All jobs of the mount, or of one disk.
fn look(root: &Path, disk: Option<&str>) -> Result<Vec<Seen>, Failure> {
    let disks = match disk {
        Some(disk) => vec![disk.to_owned()],
        None => disks(root)?,
    };
    let mut jobs = Vec::new();
    for disk in disks {
        let directory = directory(root, &disk).join("jobs");
        for id in names(&directory)? {
            if let Some(seen) = seen(&directory.join(&id), &disk, &id)? {
                jobs.push(seen);
            }
        }
    }
    Ok(jobs)
}

/// None for a job that has just left.
fn seen(job: &Path, disk: &str, id: &str) -> Result<Option<Seen>, Failure> {
    let (Some(progress), Some(error)) = (text(&job.join("progress"))?, text(&job.join("error"))?)
    else {
        return Ok(None);
    };
    let progress: Value = serde_json::from_str(&progress).map_err(|error| {
        Failure::new(
            Errno::EIO,
            format!("{} says nothing we know: {error}", job.display()),
        )
    })?;
    let word = |key: &str| progress[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| progress[key].as_u64();
    Ok(Some(Seen {
        disk: disk.to_owned(),
        id: id.to_owned(),
        verb: word("verb"),
        point: word("point"),
        state: word("state"),
        current: number("current").unwrap_or_default(),
        total: number("total").unwrap_or_default(),
        rate: number("bytes_per_second"),
        left: number("seconds_left"),
        error: error.trim().to_owned(),
    }))
}

/// The names in a directory; none in one that has just left.
fn names(directory: &Path) -> Result<Vec<String>, Failure> {
    let found = std::fs::read_dir(directory).and_then(|entries| {
        let names = entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        names.collect::<Result<Vec<_>, _>>()
    });
    match found {
        Ok(mut names) => {
            names.sort();
            Ok(names)
        }
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        Err(error) => Err(Failure::io(
            format_args!("read {}", directory.display()),
            &error,
        )),
    }
}

fn text(path: &Path) -> Result<Option<String>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(Failure::io(format_args!("read {}", path.display()), &error)),
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESTALE)
}
