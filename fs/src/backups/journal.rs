//! What is written down of a backup while it is made or removed, so that whoever comes after a
//! killed daemon finishes it or takes it back.

use super::place::{MANIFEST_MAX, Place, remove, write_json};
use crate::errno::{Errno, Failure};
use crate::model::{Finished, Manifest, Previous};
use crate::sys;
use crate::tree::valid_name;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The layout. A newer one is left alone, because it may mean what we do not know.
const VERSION: u32 = 1;
/// That of one that names a scratch file: who knows no such files must not settle it.
const WITH_SCRATCH: u32 = 2;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// A job copies, or is about to.
    Running,
    /// The file is complete, and a job copies what it stands on, or is about to.
    Below,
    /// The job has ended well: all files are complete.
    Copied,
    /// The file is about to go.
    Removing,
    /// What is in it is merged into those that stand on it; it is listed no more.
    Merging,
}

/// How a backup is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeVerb {
    /// `block-stream`: its bytes go up into each that stands on it.
    Stream,
    /// `block-commit`: those of the one that stands on it come down, and its file takes that one's name.
    Commit,
}

/// A merge that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// How.
    pub verb: MergeVerb,
    /// The backups that stand on it.
    pub into: Vec<Previous>,
    /// Of a commit: its file holds the other's instant, and is about to take its name.
    #[serde(default)]
    pub copied: bool,
    /// Identities of those whose files somebody had changed before: they stay in doubt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubt: Vec<String>,
}

impl Merge {
    /// Whether one that stands on it is not as it was when it was complete.
    pub fn is_doubtful(&self, upper: &Previous) -> bool {
        self.doubt.contains(&upper.id)
    }
}

/// A file that is not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Of the backup that it is to be.
    pub id: String,
    /// Its hidden name.
    pub path: PathBuf,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The layout; 2 where `scratch` is there, else 1.
    pub version: u32,
    /// How far it is.
    pub stage: Stage,
    /// QEMU's job id.
    pub job: String,
    /// What the manifest is to say.
    pub manifest: Manifest,
    /// What is copied with it, for it to stand on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<Manifest>,
    /// Where QEMU saves what the guest writes over meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<PathBuf>,
    /// With `Stage::Merging`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<Merge>,
}

impl Journal {
    /// Of a backup that is about to be made.
    pub fn new(job: &str, manifest: Manifest) -> Self {
        Journal {
            version: VERSION,
            stage: Stage::Running,
            job: job.to_owned(),
            manifest,
            below: None,
            scratch: None,
            merge: None,
        }
    }

    /// What the guest writes over is saved there.
    pub fn set_scratch(&mut self, scratch: PathBuf) {
        self.version = WITH_SCRATCH;
        self.scratch = Some(scratch);
    }

    /// Of one that is about to be merged.
    pub fn of_merge(job: &str, manifest: Manifest, merge: Merge) -> Self {
        Journal {
            stage: Stage::Merging,
            merge: Some(merge),
            ..Journal::new(job, manifest)
        }
    }

    /// Writes it down.
    pub fn write(&self, place: &Place) -> Result<(), Failure> {
        write_json(&place.journal(&self.manifest.name), self)
    }

    /// The one of that name, if there is one that can be understood.
    pub fn read(place: &Place, name: &str) -> Option<Journal> {
        let journal: Journal = read_json(&place.journal(name)).ok()?;
        let known = [VERSION, WITH_SCRATCH].contains(&journal.version);
        (known && journal.manifest.name == name && journal.is_sound()).then_some(journal)
    }

    /// Whether its names can be those of files beside it. It may come from anywhere.
    fn is_sound(&self) -> bool {
        let into = self.merge.iter().flat_map(|merge| &merge.into);
        let mut manifests = [Some(&self.manifest), self.below.as_ref()].into_iter();
        manifests.all(|manifest| manifest.is_none_or(is_sound)) && into.into_iter().all(leads_here)
    }

    /// The file that is written.
    pub fn own(&self, place: &Place) -> Unfinished {
        unfinished(place, &self.manifest)
    }

    /// The file that is written for it to stand on.
    pub fn file_below(&self, place: &Place) -> Option<Unfinished> {
        self.below.as_ref().map(|below| unfinished(place, below))
    }

    /// Both.
    pub fn unfinished(&self, place: &Place) -> impl Iterator<Item = Unfinished> + use<> {
        [Some(self.own(place)), self.file_below(place)]
            .into_iter()
            .flatten()
    }

    /// Whether QEMU lets its jobs end alone, and not together with those of other disks at the same instant.
    pub fn ends_alone(&self) -> bool {
        self.below.is_some() || self.scratch.is_some()
    }

    /// Forgets it.
    pub fn remove(&self, place: &Place) -> Result<(), Failure> {
        remove(&place.journal(&self.manifest.name))
    }

    /// All of them in a disk's directory. What cannot be understood is left alone, with its name.
    pub fn all(place: &Place) -> Result<(Vec<Journal>, Vec<String>), Failure> {
        let io = |error: &std::io::Error| {
            Failure::io(format!("list {}", place.directory().display()), error)
        };
        let entries = match std::fs::read_dir(place.directory()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok((Vec::new(), Vec::new()));
            }
            Err(error) => return Err(io(&error)),
        };
        let (mut journals, mut strange) = (Vec::new(), Vec::new());
        for entry in entries {
            let name = entry.map_err(|error| io(&error))?.file_name();
            let name = name.to_string_lossy();
            let Some(stem) = name
                .strip_prefix('.')
                .and_then(|it| it.strip_suffix(".json"))
            else {
                continue;
            };
            match Journal::read(place, stem) {
                Some(journal) => journals.push(journal),
                None => strange.push(name.into_owned()),
            }
        }
        Ok((journals, strange))
    }

    /// The copy is complete: the room that was reserved beyond it is given back, the file made
    /// durable and named, and then its manifest. Each step may have been done already.
    pub fn finish(&mut self, place: &Place) -> Result<(), Failure> {
        if let Some(below) = &mut self.below {
            finish(place, below)?;
        }
        finish(place, &mut self.manifest)?;
        self.remove(place)
    }

    /// The copy failed, or was taken back: nothing is left.
    pub fn undo(&self, place: &Place) -> Result<(), Failure> {
        for file in self.unfinished(place) {
            remove(&file.path)?;
        }
        self.remove(place)
    }

    /// Whether a removal that was cut short can be forgotten: the file is there, and was not merged.
    pub fn can_be_kept(&self, place: &Place) -> bool {
        self.merge.is_none() && place.file(&self.manifest.name).exists()
    }

    /// It is forgotten: the backup is listed again.
    pub fn keep(&self, place: &Place) -> Result<(), Failure> {
        let manifest = place.manifest(&self.manifest.name);
        if !manifest.exists() {
            write_json(&manifest, &self.manifest)?;
        }
        self.remove(place)
    }

    /// Removes a complete backup: its name goes first, the journal that says so last. Where not even that can be removed, it
    /// stays as it is.
    pub fn remove_backup(mut self, place: &Place) -> Result<(), Failure> {
        let merged = self.merge.is_some();
        self.stage = Stage::Removing;
        self.write(place)?;
        let manifest = place.manifest(&self.manifest.name);
        let removed = remove(&manifest);
        if removed.is_err() && !merged && manifest.exists() {
            self.remove(place)?;
        }
        removed?;
        remove(&place.tree(&self.manifest.name))?;
        remove(&place.file(&self.manifest.name))?;
        self.remove(place)
    }
}

/// Whether the names in a manifest can be those of files beside it. It may come from anywhere.
pub(super) fn is_sound(manifest: &Manifest) -> bool {
    valid_name(&manifest.name)
        && valid_name(&manifest.id)
        && manifest.previous.as_ref().is_none_or(leads_here)
}

fn leads_here(named: &Previous) -> bool {
    valid_name(&named.name) && valid_name(&named.id)
}

fn unfinished(place: &Place, manifest: &Manifest) -> Unfinished {
    Unfinished {
        id: manifest.id.clone(),
        path: place.unfinished(&manifest.name, &manifest.id),
    }
}

fn finish(place: &Place, manifest: &mut Manifest) -> Result<(), Failure> {
    let Unfinished { id, path } = unfinished(place, manifest);
    let path = match path.exists() {
        true => path,
        false => place.file(&manifest.name),
    };
    manifest.file = Some(settle_length(&path)?);
    place.complete(&manifest.name, &id)?;
    write_json(&place.manifest(&manifest.name), manifest)
}

fn settle_length(path: &Path) -> Result<Finished, Failure> {
    let io = |error: &std::io::Error| Failure::io(format!("complete {}", path.display()), error);
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| io(&error))?;
    let length = file.metadata().map_err(|error| io(&error))?.len();
    file.set_len(length)
        .and_then(|()| file.sync_all())
        .map_err(|error| io(&error))?;
    finished(path).ok_or_else(|| {
        Failure::new(
            Errno::EIO,
            format!("{} cannot be looked at", path.display()),
        )
    })
}

/// A file as it is now.
pub fn finished(path: &Path) -> Option<Finished> {
    let metadata = path.metadata().ok()?;
    Some(Finished {
        length: metadata.len(),
        modified: nanoseconds(metadata.modified().ok()?),
    })
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// An object of ours; None of it is believed when it is too long or no regular file.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let doing = || format!("read {}", path.display());
    let io = |error: &std::io::Error| Failure::io(doing(), error);
    let file = sys::open_for_reading(path).map_err(|error| io(&error))?;
    let metadata = file.metadata().map_err(|error| io(&error))?;
    if !metadata.is_file() || metadata.size() > MANIFEST_MAX {
        return Err(Failure::new(
            Errno::EINVAL,
            format!("{} is no manifest of a backup", path.display()),
        ));
    }
    let mut text = Vec::new();
    file.take(MANIFEST_MAX)
        .read_to_end(&mut text)
        .map_err(|error| io(&error))?;
    serde_json::from_slice(&text)
        .map_err(|error| Failure::new(Errno::EINVAL, format!("cannot {}: {error}", doing())))
}
