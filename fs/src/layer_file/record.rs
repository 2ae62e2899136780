//! What is written on the files themselves, as JSON in extended attributes: a point's record, a
//! merge at work, a seal half done. A mount that was killed finds here what it was doing.
//! It knows these attributes; it does not know how a merge or a seal goes on.
//! Invariant: what was written for another inode (a copied file) is never believed.

mod freeze;
mod load;

pub use freeze::{FreezeMark, FreezeNote, read_freeze, write_freeze};
pub use load::{LoadJournal, LoadStep, QemuIdentity, clear_load, read_load, write_load};

use crate::errno::{Errno, Failure};
use crate::model::{InternalRecord, PointRecord};
use crate::sys;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const POINT: &CStr = c"user.qmpfs.point";
const MERGE: &CStr = c"user.qmpfs.merge";
const SEAL: &CStr = c"user.qmpfs.seal";
const ROLLBACK: &CStr = c"user.qmpfs.rollback";
const SCRATCH: &CStr = c"user.qmpfs.scratch";
const INTERNALS: &CStr = c"user.qmpfs.internals";

/// All extended attributes of a file share one block of ext4 with what merges must be able to
/// write: of the records of internal snapshots the newest that fit are kept.
const INTERNALS_MAX: usize = 512;

/// The layout of the JSON below. A newer one is refused, because it may mean what we do not know.
const VERSION: u32 = 1;

/// A merge at work, on the file of the point that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeJournal {
    /// The layout; always 1.
    pub version: u32,
    /// Which way: "stream", "commit" (of the sealed file above), "commit-active", or "release" of
    /// somebody else's file, and then it is written on the file above.
    pub verb: String,
    /// QEMU's job id.
    pub job: String,
    /// The point that goes.
    pub point: PointRecord,
    /// The file above it.
    pub upper: PathBuf,
    /// The record of the file above; None when that is the active layer.
    pub upper_record: Option<PointRecord>,
    /// The file below; None when the point is the base. Of a release, the file that leaves.
    pub below: Option<PathBuf>,
    /// We stopped the VM and owe it a `cont`.
    pub resume: bool,
    /// Clients that cannot be stopped are being moved onto this file.
    #[serde(default)]
    pub moving: bool,
    /// The inode of the file it is written on.
    pub inode: u64,
}

/// A seal half done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealMarker {
    /// The layout; always 1.
    pub version: u32,
    /// The overlay that is to become the active layer.
    pub overlay: PathBuf,
    /// The name the sealed file gets.
    pub sealed: PathBuf,
    /// We stopped the VM and owe it a `cont`.
    pub resume: bool,
    /// The inode of the file it is written on.
    pub inode: u64,
}

/// A rollback half done, on the file that was active before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackJournal {
    /// The layout; always 1.
    pub version: u32,
    /// D: the path the VM boots from.
    pub active: PathBuf,
    /// The overlay that is to become the active layer.
    pub overlay: PathBuf,
    /// The name that the file gets which was active.
    pub sealed: PathBuf,
    /// The layer that the overlay is to stand on.
    pub onto: PathBuf,
    /// What we owe the guest.
    pub guest: GuestDebt,
    /// The inode of the file it is written on.
    pub inode: u64,
}

/// Says of a scratch file that it is one: its name alone may be anybody's.
#[derive(Debug, Serialize, Deserialize)]
struct ScratchMark {
    version: u32,
    inode: u64,
}

/// What a rollback owes the guest, whose disk it exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestDebt {
    /// Nothing: there is none, it never ran, or all is done.
    Nothing,
    /// A reset, after which it stands still as it did before.
    Reset,
    /// A reset, and then to go on: we stopped it.
    ResetAndGo,
    /// To go on; it was reset.
    Go,
}

/// The point a file holds; None when it is no point of ours.
pub fn read_point(path: &Path) -> Result<Option<PointRecord>, Failure> {
    read(path, POINT)
}

/// Marks a file as a point; the record must name the file's inode.
pub fn write_point(path: &Path, record: &PointRecord) -> Result<(), Failure> {
    write(path, POINT, record)
}

/// Takes a point's mark away.
pub fn clear_point(path: &Path) -> Result<(), Failure> {
    clear(path, POINT)
}

/// The merge that was begun on a file.
pub fn read_merge(path: &Path) -> Result<Option<MergeJournal>, Failure> {
    read(path, MERGE)
}

/// Writes down a merge before it begins; the journal must name the file's inode.
pub fn write_merge(path: &Path, journal: &MergeJournal) -> Result<(), Failure> {
    write(path, MERGE, journal)
}

/// Forgets a merge that has ended.
pub fn clear_merge(path: &Path) -> Result<(), Failure> {
    clear(path, MERGE)
}

/// The seal that was begun on a file.
pub fn read_seal(path: &Path) -> Result<Option<SealMarker>, Failure> {
    read(path, SEAL)
}

/// Writes down a seal before it begins; the marker must name the file's inode.
pub fn write_seal(path: &Path, marker: &SealMarker) -> Result<(), Failure> {
    write(path, SEAL, marker)
}

/// Forgets a seal that has ended.
pub fn clear_seal(path: &Path) -> Result<(), Failure> {
    clear(path, SEAL)
}

/// The rollback that was begun on a file.
pub fn read_rollback(path: &Path) -> Result<Option<RollbackJournal>, Failure> {
    read(path, ROLLBACK)
}

/// Writes down a rollback before it begins, and each step that cannot be seen from the graph.
pub fn write_rollback(path: &Path, journal: &RollbackJournal) -> Result<(), Failure> {
    write(path, ROLLBACK, journal)
}

/// Forgets a rollback that has ended.
pub fn clear_rollback(path: &Path) -> Result<(), Failure> {
    clear(path, ROLLBACK)
}

/// Marks a new file as one that saves old bytes for a while; a filesystem without extended attributes takes no mark.
pub fn mark_scratch(path: &Path) -> Result<(), Failure> {
    let (_, inode) = open(path)?;
    let mark = ScratchMark {
        version: VERSION,
        inode,
    };
    match write(path, SCRATCH, &mark) {
        Err(failure) if failure.errno == Errno::EOPNOTSUPP => Ok(()),
        marked => marked,
    }
}

/// Whether a file carries that mark. Where there are none, what it holds is all that is known of it.
pub fn is_scratch(path: &Path) -> Result<bool, Failure> {
    let (file, _) = open(path)?;
    let length = file.metadata().map(|it| it.len());
    let length = length.map_err(|error| trouble("read", path, SCRATCH, &error))?;
    // not marked yet, and nothing is lost with it
    if length == 0 {
        return Ok(true);
    }
    match sys::xattr_get(&file, SCRATCH) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Ok(qmpfs_qcow2::Header::read(&file).is_ok())
        }
        _ => Ok(read::<ScratchMark>(path, SCRATCH)?.is_some()),
    }
}

/// Records of the internal snapshots in a file, oldest first.
#[derive(Debug, Serialize, Deserialize)]
struct InternalRecords {
    version: u32,
    inode: u64,
    records: Vec<InternalRecord>,
}

/// What was written down about the internal snapshots in a file. Without it they are as after a
/// power cut, so trouble is no reason to fail.
pub fn read_internals(path: &Path) -> Vec<InternalRecord> {
    let read: Result<Option<InternalRecords>, Failure> = read(path, INTERNALS);
    match read {
        Ok(found) => found.map_or_else(Vec::new, |found| found.records),
        Err(failure) => {
            tracing::debug!(%failure, "records of internal snapshots");
            Vec::new()
        }
    }
}

/// Writes down what internal snapshots are, oldest first; the oldest give way.
pub fn write_internals(path: &Path, mut records: Vec<InternalRecord>) -> Result<(), Failure> {
    let (_, inode) = open(path)?;
    let size = |records: &[InternalRecord]| {
        serde_json::to_vec(records).map_or(usize::MAX, |text| text.len())
    };
    while !records.is_empty() && size(&records) > INTERNALS_MAX {
        records.remove(0);
    }
    let body = InternalRecords {
        version: VERSION,
        inode,
        records,
    };
    write(path, INTERNALS, &body)
}

/// What every attribute begins with. A newer one need not have our other fields.
#[derive(Deserialize)]
struct Head {
    version: u32,
    inode: u64,
}

/// The inode a body was written for.
trait OfInode {
    fn inode(&self) -> u64;
}

impl OfInode for PointRecord {
    fn inode(&self) -> u64 {
        self.inode
    }
}

impl OfInode for MergeJournal {
    fn inode(&self) -> u64 {
        self.inode
    }
}

impl OfInode for RollbackJournal {
    fn inode(&self) -> u64 {
        self.inode
    }
}

impl OfInode for SealMarker {
    fn inode(&self) -> u64 {
        self.inode
    }
}

impl OfInode for ScratchMark {
    fn inode(&self) -> u64 {
        self.inode
    }
}

impl OfInode for InternalRecords {
    fn inode(&self) -> u64 {
        self.inode
    }
}

fn read<T: DeserializeOwned + OfInode>(path: &Path, name: &CStr) -> Result<Option<T>, Failure> {
    let (file, inode) = open(path)?;
    let value = match sys::xattr_get(&file, name) {
        Ok(value) => value,
        // A filesystem without extended attributes holds no record of ours.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => None,
        Err(error) => return Err(trouble("read", path, name, &error)),
    };
    let Some(value) = value else { return Ok(None) };
    let garbage = |why: String| {
        Failure::new(
            Errno::EIO,
            format!("{} has a {} that says {why}", path.display(), shown(name)),
        )
        .next(format!("getfattr -d {} shows it", path.display()))
    };
    let head: Head = serde_json::from_slice(&value)
        .map_err(|error| garbage(format!("nothing we know ({error})")))?;
    if head.inode != inode {
        return Ok(None);
    }
    if head.version != VERSION {
        return Err(garbage(format!(
            "version {}, and this qmpfs knows {VERSION}",
            head.version
        )));
    }
    serde_json::from_slice(&value)
        .map(Some)
        .map_err(|error| garbage(format!("nothing we know ({error})")))
}

fn write<T: Serialize + OfInode>(path: &Path, name: &CStr, body: &T) -> Result<(), Failure> {
    let (file, inode) = open(path)?;
    if body.inode() != inode {
        return Err(Failure::new(
            Errno::ESTALE,
            format!(
                "{} is inode {inode} now, and was inode {}",
                path.display(),
                body.inode()
            ),
        )
        .next("somebody replaced the file; it is left alone, and so should be what stands on it"));
    }
    let mut value = serde_json::to_value(body).map_err(|error| {
        Failure::new(
            Errno::EOPNOTSUPP,
            format!(
                "cannot write {} of {}: {error}",
                shown(name),
                path.display()
            ),
        )
    })?;
    value["version"] = VERSION.into();
    let before =
        sys::xattr_get(&file, name).map_err(|error| trouble("read", path, name, &error))?;
    sys::xattr_set(&file, name, value.to_string().as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| {
            // what may not last must not be read either
            let _ = match before {
                Some(before) => sys::xattr_set(&file, name, &before),
                None => sys::xattr_remove(&file, name),
            };
            trouble("write", path, name, &error)
        })
}

fn clear(path: &Path, name: &CStr) -> Result<(), Failure> {
    let (file, _) = open(path)?;
    match sys::xattr_remove(&file, name) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        removed => removed
            .and_then(|()| file.sync_all())
            .map_err(|error| trouble("remove", path, name, &error)),
    }
}

fn open(path: &Path) -> Result<(File, u64), Failure> {
    sys::open_for_reading(path)
        .and_then(|file| file.metadata().map(|metadata| (file, metadata.ino())))
        .map_err(|error| Failure::io(format_args!("open {}", path.display()), &error))
}

fn trouble(doing: &str, path: &Path, name: &CStr, error: &std::io::Error) -> Failure {
    let doing = format!("{doing} {} of {}", shown(name), path.display());
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Failure::new(
            Errno::EOPNOTSUPP,
            format!("cannot {doing}: the filesystem has no user extended attributes"),
        )
        .next("keep the image on a filesystem that has them (ext4, xfs, btrfs, zfs; tmpfs since Linux 6.6)"),
        Some(libc::ENOSPC | libc::E2BIG | libc::ERANGE) => {
            Failure::new(Errno::ENOSPC, format!("cannot {doing}: no room for extended attributes: {error}")).next("see which other tools have filled it: getfattr -d")
        }
        _ => Failure::io(doing, error),
    }
}

fn shown(name: &CStr) -> std::borrow::Cow<'_, str> {
    name.to_string_lossy()
}

#[cfg(test)]
mod tests;
