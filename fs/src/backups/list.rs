//! Which backups lie in a disk's directory, and what each stands on. It reads manifests and
//! headers of backups; the names in those lead nowhere but to another backup of the directory.

use super::journal::{Journal, Stage, finished, is_sound, read_json};
use super::merged;
use super::place::Place;
use crate::errno::{Errno, Failure};
use crate::model::{Backup, BackupStage, FileId, Format, Layer, Manifest, Previous};
use crate::sys;
use crate::tree::valid_name;
use qmpfs_qcow2::Header;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

/// Manifests of one disk that are read; a directory with more is somebody's mistake.
const BACKUPS_MAX: usize = 4096;
/// Longest chain that is followed, as for the disks' own.
const CHAIN_MAX: usize = 1024;
/// st_blocks counts in these, whatever the filesystem's blocks are.
const STAT_BLOCK: u64 = 512;

/// A directory as it was when it was listed: it changes when a name in it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    file: FileId,
    modified: SystemTime,
}

/// The backups of a disk, as of a moment.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Of the directory; None where there is none.
    pub stamp: Option<Stamp>,
    /// Oldest first.
    pub backups: Vec<Backup>,
}

/// The directory's stamp now.
pub fn stamp(place: &Place) -> Option<Stamp> {
    let metadata = place.directory().metadata().ok()?;
    Some(Stamp {
        file: FileId {
            dev: metadata.dev(),
            ino: metadata.ino(),
        },
        modified: metadata.modified().ok()?,
    })
}

/// The manifest in a file.
pub fn manifest_at(path: &Path) -> Result<Manifest, Failure> {
    let manifest: Manifest = read_json(path)?;
    match manifest.version {
        1 => Ok(manifest),
        version => Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!("{} has the layout {version}", path.display()),
        )
        .next("use the qmpfs that wrote it, or a newer one")),
    }
}

/// Lists a disk's backups.
pub fn list(place: &Place) -> Listing {
    let stamp = stamp(place);
    let mut manifests: Vec<Manifest> = match std::fs::read_dir(place.directory()) {
        Ok(entries) => entries
            .filter_map(Result::ok)
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let name = name.strip_suffix(".json")?.to_owned();
                valid_name(&name).then_some(name)
            })
            .take(BACKUPS_MAX)
            .filter_map(|name| {
                let manifest: Manifest = read_json(&place.manifest(&name)).ok()?;
                let is_right =
                    manifest.version == 1 && manifest.name == name && is_sound(&manifest);
                is_right.then_some(manifest)
            })
            .collect(),
        Err(error) => {
            tracing::debug!(%error, directory = %place.directory().display(), "no backups");
            Vec::new()
        }
    };
    let leaving = leaving(place);
    for manifest in &mut manifests {
        settle_previous(place, manifest, &leaving);
    }
    manifests.sort_by(|a, b| (&a.time, &a.name).cmp(&(&b.time, &b.name)));
    let by_id: HashMap<&str, &Manifest> = manifests
        .iter()
        .map(|manifest| (manifest.id.as_str(), manifest))
        .collect();
    // each is looked at once, however many stand on it
    let files: HashMap<&str, Seen> = manifests
        .iter()
        .map(|manifest| (manifest.id.as_str(), Seen::at(place, manifest)))
        .collect();
    let backups = manifests
        .iter()
        // one that is merged away is still stood on
        .filter(|manifest| !leaving.iter().any(|gone| gone.id == manifest.id))
        .map(|manifest| backup(manifest, &by_id, &files))
        .collect();
    Listing { stamp, backups }
}

/// What was found under the name of a backup.
struct Seen {
    layer: Result<Layer, String>,
    doubt: Option<String>,
}

impl Seen {
    fn at(place: &Place, manifest: &Manifest) -> Self {
        Seen {
            layer: layer(place, manifest),
            doubt: changed(place, manifest),
        }
    }
}

/// Backups that are removed or merged into others, or were when somebody was killed.
fn leaving(place: &Place) -> Vec<Manifest> {
    let journals = Journal::all(place).map(|(journals, _)| journals);
    let leaving = journals.unwrap_or_default().into_iter();
    let leaving =
        leaving.filter(|journal| matches!(journal.stage, Stage::Removing | Stage::Merging));
    leaving.map(|journal| journal.manifest).collect()
}

/// Manifests are rewritten last: what a file stands on is in its header before.
fn settle_previous(place: &Place, manifest: &mut Manifest, leaving: &[Manifest]) {
    let on = |gone: &&Manifest| {
        let previous = manifest.previous.as_ref();
        previous.is_some_and(|previous| previous.id == gone.id)
    };
    if let Some(gone) = leaving.iter().find(on)
        && merged::is_merged(place, &Previous::of(manifest), gone).unwrap_or(false)
    {
        manifest.previous.clone_from(&gone.previous);
    }
}

fn backup(
    manifest: &Manifest,
    by_id: &HashMap<&str, &Manifest>,
    files: &HashMap<&str, Seen>,
) -> Backup {
    let mut chain = Vec::new();
    let mut doubt = None;
    let mut next = Some(manifest);
    let mut broken = None;
    while let Some(one) = next {
        match files.get(one.id.as_str()) {
            None => broken = Some(format!("{} is gone", one.name)),
            Some(seen) => {
                doubt = doubt.or_else(|| seen.doubt.clone());
                match &seen.layer {
                    Ok(layer) => chain.push(layer.clone()),
                    Err(why) => broken = Some(why.clone()),
                }
            }
        }
        next = match &one.previous {
            None => None,
            Some(previous) => match by_id.get(previous.id.as_str()) {
                Some(below) if chain.len() < CHAIN_MAX => Some(below),
                Some(_) => {
                    broken = Some("it stands on itself".to_owned());
                    None
                }
                None => {
                    broken = broken.or_else(|| {
                        Some(format!(
                            "the backup '{}', on which it stands, is gone",
                            previous.name
                        ))
                    });
                    None
                }
            },
        };
        if broken.is_some() {
            break;
        }
    }
    chain.reverse();
    let (stage, layers) = match broken {
        None => (BackupStage::Complete, chain),
        Some(why) => (BackupStage::Broken(why), Vec::new()),
    };
    Backup {
        layers,
        doubt,
        ..Backup::new(manifest.clone(), stage)
    }
}

/// Whether somebody has written to a complete backup's own file, or put another one in its place.
pub fn is_changed(backup: &Backup) -> bool {
    let file = backup.layers.last();
    file.is_none_or(|file| finished(&file.path) != backup.manifest.file)
}

/// The same, in words.
fn changed(place: &Place, manifest: &Manifest) -> Option<String> {
    let path = place.file(&manifest.name);
    (finished(&path) != manifest.file).then(|| {
        format!(
            "{} is not as it was when the backup was complete",
            path.display()
        )
    })
}

/// The file of one backup, which must stand on what its manifest says.
fn layer(place: &Place, manifest: &Manifest) -> Result<Layer, String> {
    let path = place.file(&manifest.name);
    let shown = path.display();
    let file = sys::open_for_reading(&path).map_err(|error| format!("{shown}: {error}"))?;
    let metadata = file
        .metadata()
        .map_err(|error| format!("{shown}: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("{shown} is no regular file"));
    }
    let header = Header::read(&file).map_err(|error| format!("{shown}: {error}"))?;
    let backing = header.backing.as_ref().map(|backing| backing.name.clone());
    let as_written = merged::stands_on(backing.as_deref(), manifest.previous.as_ref());
    if !as_written || header.features.data_file() {
        return Err(format!("{shown} does not stand on what its manifest says"));
    }
    Ok(Layer {
        node: None,
        file: Some(FileId {
            dev: metadata.dev(),
            ino: metadata.ino(),
        }),
        format: Format::Qcow2,
        virtual_size: header.virtual_size,
        allocated_size: metadata.blocks().saturating_mul(STAT_BLOCK),
        modified: metadata.modified().ok(),
        record: None,
        foreign_name: None,
        leaving: false,
        path: Path::to_owned(&path),
    })
}
