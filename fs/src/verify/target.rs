//! What a path to be verified means: points of a mount, by the files every point has, or backups where
//! they lie, by their manifests. A directory means all that is in it.

use crate::backups;
use crate::errno::{Errno, Failure};
use crate::model::{BackupStage, Manifest};
use crate::view::LayerSpec;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What every point has.
const DISK_RAW: &str = "disk.raw";
/// See `DISK_RAW`.
const POINT_JSON: &str = "point.json";
/// What a backup's two files end with.
const MANIFEST: &str = "json";
/// See `MANIFEST`.
const IMAGE: &str = "qcow2";
/// How deep points lie in a mount, and backups in their directory.
const DEPTH_MAX: usize = 8;

/// Where the bytes are.
pub(super) enum Bytes {
    /// In a mount.
    View(File),
    /// In files, base first.
    Chain(Vec<LayerSpec>),
}

/// One point.
pub(super) struct Target {
    /// What it is called in messages.
    pub(super) name: String,
    /// Its files, base first.
    pub(super) files: Vec<PathBuf>,
    /// What was recorded.
    pub(super) digest: Option<String>,
    pub(super) bytes: Bytes,
    /// Why it cannot be read at all.
    pub(super) error: Option<String>,
}

/// All that a path means; not none.
pub(super) fn all(path: &Path) -> Result<Vec<Target>, Failure> {
    let io = |error: &std::io::Error| Failure::io(format!("look at {}", path.display()), error);
    let metadata = std::fs::metadata(path).map_err(|error| io(&error))?;
    let mut found = Vec::new();
    if metadata.is_dir() {
        within(path, DEPTH_MAX, &mut found)?;
    } else if path.file_name().is_some_and(|name| name == DISK_RAW) {
        let above = path.parent().unwrap_or(Path::new("."));
        found.push(point(above, &path.display().to_string())?);
    } else {
        found.push(backup(path)?);
    }
    match found.is_empty() {
        false => Ok(found),
        true => Err(Failure::new(
            Errno::ENOENT,
            format!("there is no point, and no backup, in {}", path.display()),
        )
        .next("name a point in a mount, a backup's .qcow2 file, or a directory with some; of one that is still made: qmpfs wait")),
    }
}

/// The points or backups in a directory, in the order of their names.
fn within(directory: &Path, depth: usize, found: &mut Vec<Target>) -> Result<(), Failure> {
    if directory.join(DISK_RAW).is_file() && directory.join(POINT_JSON).is_file() {
        found.push(point(directory, &directory.display().to_string())?);
        return Ok(());
    }
    let io = |error: &std::io::Error| Failure::io(format!("list {}", directory.display()), error);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|error| io(&error))? {
        entries.push(entry.map_err(|error| io(&error))?.path());
    }
    entries.sort();
    let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
    entries.retain(|path| !path.file_name().is_some_and(hidden));
    let has_backups = entries.iter().any(|path| is_like_a_backup(path));
    for path in entries {
        if path.is_dir() {
            if depth > 0 {
                within(&path, depth - 1, found)?;
            }
        } else if has_backups {
            found.extend(of_a_backup(&path));
        }
    }
    Ok(())
}

fn ends_with(path: &Path, end: &str) -> bool {
    path.extension().is_some_and(|it| it == end)
}

/// Whether a manifest is one, or lies beside an image as those do: what else is in its directory is meant for backups, too.
fn is_like_a_backup(path: &Path) -> bool {
    ends_with(path, MANIFEST)
        && (path.with_extension(IMAGE).is_file() || backups::manifest_at(path).is_ok())
}

/// The backup that a file in a directory of them belongs to, once for its two files. What has lost its manifest is one
/// that cannot be read; what is being made or removed is none.
fn of_a_backup(path: &Path) -> Option<Target> {
    let manifest = path.with_extension(MANIFEST);
    let found = if ends_with(path, MANIFEST) {
        backup(path)
    } else if ends_with(path, IMAGE) && !manifest.exists() {
        Err(Failure::new(
            Errno::EINVAL,
            format!("there is no manifest {}", manifest.display()),
        ))
    } else {
        return None;
    };
    // it may be made, or go, in this moment
    let found = found.or_else(|failure| match manifest.exists() {
        true => backup(path),
        false => Err(failure),
    });
    match found {
        Ok(target) => Some(target),
        Err(_) if has_journal(path) || !path.exists() => None,
        Err(failure) => Some(Target {
            name: path.display().to_string(),
            files: Vec::new(),
            digest: None,
            bytes: Bytes::Chain(Vec::new()),
            error: Some(failure.message),
        }),
    }
}

fn has_journal(path: &Path) -> bool {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_stem().and_then(|name| name.to_str());
    name.is_some_and(|name| backups::Place::at(directory).journal(name).exists())
}

fn point(directory: &Path, name: &str) -> Result<Target, Failure> {
    let path = directory.join(POINT_JSON);
    let io = |error: &std::io::Error| Failure::io(format!("read {}", path.display()), error);
    let text = std::fs::read_to_string(&path).map_err(|error| io(&error))?;
    let told: Value = serde_json::from_str(&text).map_err(|error| {
        Failure::new(
            Errno::EIO,
            format!("{} says nothing we know: {error}", path.display()),
        )
    })?;
    let raw = directory.join(DISK_RAW);
    let file =
        File::open(&raw).map_err(|error| Failure::io(format!("open {}", raw.display()), &error))?;
    let files = told["files"].as_array().map_or(&[][..], Vec::as_slice);
    // those of points that QEMU reads for us are its own business
    let files = match told["kind"].as_str() {
        Some("live") => &[][..],
        Some(_) | None => files,
    };
    Ok(Target {
        name: name.to_owned(),
        files: files
            .iter()
            .filter_map(|file| file.as_str().map(PathBuf::from))
            .collect(),
        digest: told["digest"].as_str().map(str::to_owned),
        bytes: Bytes::View(file),
        error: None,
    })
}

/// A backup by its file or its manifest.
fn backup(path: &Path) -> Result<Target, Failure> {
    let manifest: Manifest =
        backups::manifest_at(&path.with_extension("json")).map_err(|failure| {
            Failure::new(
                Errno::EINVAL,
                format!(
                    "{} is no backup of qmpfs: {}",
                    path.display(),
                    failure.message
                ),
            )
            .next("name a point in a mount, or a backup's .qcow2 file beside its .json")
        })?;
    let directory = std::path::absolute(path)
        .map_err(|error| Failure::io(format!("use {}", path.display()), &error))?;
    let directory = directory.parent().unwrap_or(Path::new("/")).to_owned();
    let listing = backups::list(&backups::Place::at(&directory));
    let mut listed = listing.backups.into_iter();
    let found = listed
        .find(|it| it.manifest.id == manifest.id)
        .ok_or_else(|| {
            Failure::new(
                Errno::EINVAL,
                format!(
                    "{} is not called what it is in its manifest",
                    path.display()
                ),
            )
            .next("give the file and its manifest the name that the manifest says")
        })?;
    let error = match &found.stage {
        BackupStage::Broken(why) => Some(why.clone()),
        BackupStage::Complete | BackupStage::Job(_) => None,
    };
    Ok(Target {
        name: path.with_extension("qcow2").display().to_string(),
        files: found
            .layers
            .iter()
            .map(|layer| layer.path.clone())
            .collect(),
        digest: found.manifest.digest,
        bytes: Bytes::Chain(found.layers.iter().map(LayerSpec::from).collect()),
        error,
    })
}
