//! What else lies in the directory of an image: other images that stand on one of ours, and
//! hidden names left behind.
//! It knows directories and the qcow2 header; what it cannot rule out it does not rule out.

use super::names::{active_of_alias, sealed_path};
use super::record::read_point;
use crate::errno::{Errno, Failure};
use crate::model::FileId;
use crate::sys;
use qmpfs_qcow2::{Header, ReadAt};
use std::ffi::OsStr;
use std::fs::{DirEntry, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// More names than this are not searched: a directory that large is no place of disk images, and
/// a verb must not take minutes to look around.
const MAX_NAMES: usize = 65_536;

/// What a qcow2 file begins with.
const MAGIC: &[u8; 4] = b"QFI\xfb";

/// Images in a directory whose header names the file `target` as their backing file. The files
/// in `except` (the chain itself) do not count.
pub fn dependents(
    directory: &Path,
    target: FileId,
    except: &[FileId],
) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for entry in entries(directory)? {
        let path = entry.path();
        // A symlink counts as well: the image it leads to is one that is used from here.
        let Ok(metadata) = std::fs::metadata(&path) else {
            continue;
        };
        if !metadata.is_file() {
            continue;
        }
        let trouble = |error: std::io::Error| {
            Failure::io(
                format_args!("see whether {} stands on that layer", path.display()),
                &error,
            )
            .next("let qmpfs read that file, or move it to another directory")
        };
        let file = match sys::open_for_reading(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(trouble(error)),
        };
        let this = sys::file_id_of(&file).map_err(trouble)?;
        if this == target || except.contains(&this) || !is_qcow2(&file) {
            continue;
        }
        if stands_on(&path, &file, target)? {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Bytes we may still write beside a file (or in a directory).
pub fn free_bytes(path: &Path) -> Result<u64, Failure> {
    sys::free_bytes(path)
        .map_err(|error| Failure::io(format_args!("look at {}", path.display()), &error))
}

/// All files of a disk: its active path, what is named like a sealed layer of it, and hidden names
/// of those. Somebody else's files may be among them; only their records tell.
pub fn siblings(active: &Path) -> Result<Vec<PathBuf>, Failure> {
    let directory = active.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    for entry in entries(directory)? {
        let path = directory.join(entry.file_name());
        let regular = || {
            path.symlink_metadata()
                .is_ok_and(|metadata| metadata.is_file())
        };
        if is_name_of(&path, active) && regular() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a sibling may not be read. Whoever wrote something down there could read it: it is somebody else's.
pub fn is_kept_from_us(failure: &Failure) -> bool {
    matches!(failure.errno, Errno::EACCES | Errno::EPERM)
}

/// What is written down on a sibling; nothing where it is kept from us.
pub fn said_by_sibling<T>(told: Result<Option<T>, Failure>) -> Result<Option<T>, Failure> {
    match told {
        Err(failure) if is_kept_from_us(&failure) => Ok(None),
        told => told,
    }
}

/// Whether a path is a name that a file of this disk has or had: D, a sealed name, an alias.
pub fn is_name_of(path: &Path, active: &Path) -> bool {
    let named = active_of_alias(path).unwrap_or_else(|| path.to_owned());
    named == active || is_sealed_of(&named, active)
}

/// Active images of other disks that are named like a sealed layer of this one: `web1.a.qcow2`
/// beside `web1.qcow2`. What is named after them is theirs.
pub fn namesakes(active: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut found = siblings(active)?;
    found.retain(|path| {
        path != active && active_of_alias(path).is_none() && matches!(read_point(path), Ok(None))
    });
    Ok(found)
}

/// Whether a path is what `sealed_path` makes of `active` and some name.
fn is_sealed_of(path: &Path, active: &Path) -> bool {
    let (stem, name) = (
        active.file_stem().unwrap_or_default(),
        path.file_name().unwrap_or_default(),
    );
    let within = name
        .as_bytes()
        .strip_prefix(stem.as_bytes())
        .and_then(|rest| rest.strip_prefix(b"."));
    let point = match active.extension() {
        None => within,
        Some(extension) => within
            .and_then(|rest| rest.strip_suffix(extension.as_bytes()))
            .and_then(|rest| rest.strip_suffix(b".")),
    };
    point
        .and_then(|point| std::str::from_utf8(point).ok())
        .is_some_and(|point| sealed_path(active, point) == path)
}

/// The hidden names beside the active path that stand for it, and which files they are.
pub fn strays(active: &Path) -> Result<Vec<(PathBuf, FileId)>, Failure> {
    let directory = active.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    for entry in entries(directory)? {
        let path = directory.join(entry.file_name());
        if active_of_alias(&path).as_deref() != Some(active) {
            continue;
        }
        match path.symlink_metadata() {
            Ok(metadata) if !metadata.is_file() => continue,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(Failure::io(
                    format_args!("look at {}", path.display()),
                    &error,
                ));
            }
        }
        let file = sys::file_id(&path)
            .map_err(|error| Failure::io(format_args!("look at {}", path.display()), &error))?;
        found.push((path, file));
    }
    found.sort();
    Ok(found)
}

fn entries(directory: &Path) -> Result<Vec<DirEntry>, Failure> {
    let list = || {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            all.push(entry?);
            if all.len() > MAX_NAMES {
                return Ok(None);
            }
        }
        Ok(Some(all))
    };
    list()
        .map_err(|error| Failure::io(format_args!("list {}", directory.display()), &error))?
        .ok_or_else(|| {
            Failure::new(
                Errno::EOPNOTSUPP,
                format!("{} holds more than {MAX_NAMES} files", directory.display()),
            )
            .next("keep disk images in a directory of their own")
        })
}

fn is_qcow2(file: &File) -> bool {
    let mut magic = [0; 4];
    matches!(ReadAt::read_at(file, &mut magic, 0), Ok(4)) && &magic == MAGIC
}

fn stands_on(path: &Path, file: &File, target: FileId) -> Result<bool, Failure> {
    let header = Header::read(file).map_err(|error| {
        Failure::new(
            Errno::EBUSY,
            format!(
                "{} may stand on that layer, but its header cannot be read: {error}",
                path.display()
            ),
        )
        .next("move that file to another directory if it is not needed")
    })?;
    let Some(backing) = header.backing else {
        return Ok(false);
    };
    Ok(backing_files(path, &backing.name).contains(&target))
}

/// The one file that a backing name in the header of `image` leads to; None where there is none, or
/// more than one.
pub fn backing_file(image: &Path, name: &[u8]) -> Option<FileId> {
    let mut files = backing_files(image, name);
    files.dedup();
    (files.len() == 1).then(|| files[0])
}

/// The files, as far as they are there, that a backing name may lead to.
fn backing_files(image: &Path, name: &[u8]) -> Vec<FileId> {
    let real = image.canonicalize().unwrap_or_else(|_| image.to_owned());
    let directory = real.parent().unwrap_or(Path::new("/"));
    file_names(name)
        .iter()
        .filter_map(|name| sys::file_id(&directory.join(name)).ok())
        .collect()
}

/// Every file name in a backing name: the name itself, or those within a `json:` one.
fn file_names(backing: &[u8]) -> Vec<PathBuf> {
    fn collect(value: &serde_json::Value, names: &mut Vec<PathBuf>) {
        match value {
            serde_json::Value::String(name) => names.push(plain(name.as_bytes())),
            serde_json::Value::Array(values) => {
                values.iter().for_each(|value| collect(value, names))
            }
            serde_json::Value::Object(values) => {
                values.values().for_each(|value| collect(value, names))
            }
            serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {
            }
        }
    }
    let mut names = Vec::new();
    if let Some(value) = backing
        .strip_prefix(b"json:")
        .and_then(|json| serde_json::from_slice(json).ok())
    {
        collect(&value, &mut names);
    } else {
        names.push(plain(backing));
    }
    names
}

fn plain(name: &[u8]) -> PathBuf {
    OsStr::from_bytes(name.strip_prefix(b"file:").unwrap_or(name)).into()
}

#[cfg(test)]
mod tests;
