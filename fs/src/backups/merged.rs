//! The files of a backup that is merged into those that stand on it: how far that is, by what their headers
//! say, and how it is brought to its end or taken back once nobody copies any more. Manifests are
//! rewritten last; each step may have been done already.

use super::journal::{Journal, MergeVerb, Stage, finished, read_json};
use super::place::{Place, write_json};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{BackupKind, Copied, Manifest, Previous};
use crate::sys;
use qmpfs_qcow2::Header;

/// Whether a backup's file stands on what the merged one stood on.
pub fn is_merged(place: &Place, upper: &Previous, gone: &Manifest) -> Result<bool, Failure> {
    let path = place.file(&upper.name);
    let file = sys::open_for_reading(&path)
        .map_err(|error| Failure::io(format!("open {}", path.display()), &error))?;
    let header = Header::read(&file).map_err(|error| crate::view::failure_of(&path, &error))?;
    let backing = header.backing.map(|backing| backing.name);
    Ok(stands_on(backing.as_deref(), gone.previous.as_ref()))
}

/// Whether a header's backing name is that of a backup.
pub(super) fn stands_on(backing: Option<&[u8]>, below: Option<&Previous>) -> bool {
    let expected = below.map(|below| Place::file_name(&below.name));
    backing
        == expected
            .as_ref()
            .map(|it| it.as_os_str().as_encoded_bytes())
}

impl Journal {
    /// All is copied: the names, then the manifests, then what is left of the merged one.
    pub fn conclude(mut self, place: &Place) -> Result<(), Failure> {
        let Some(merge) = self.merge.clone() else {
            return Err(not_a_merge());
        };
        if let (MergeVerb::Commit, [upper]) = (merge.verb, &merge.into[..]) {
            let (from, to) = (place.file(&self.manifest.name), place.file(&upper.name));
            if from.exists() {
                layer_file::fsync_file(&from)?;
                if !merge.copied {
                    self.merge = Some(super::Merge {
                        copied: true,
                        ..merge.clone()
                    });
                    self.write(place)?;
                }
                meant(place, upper)?;
                std::fs::rename(&from, &to)
                    .map_err(|error| Failure::io(format!("name {}", to.display()), &error))?;
                layer_file::fsync_dir(&to)?;
            }
        }
        for upper in &merge.into {
            layer_file::fsync_file(&place.file(&upper.name))?;
            rewrite(place, upper, &self.manifest, merge.is_doubtful(upper))?;
        }
        self.stage = Stage::Removing;
        self.remove_backup(place)
    }

    /// It was not brought to its end, and every backup is still there. Those into which was copied have
    /// changed files.
    pub fn take_back(&self, place: &Place) -> Result<(), Failure> {
        let Some(merge) = &self.merge else {
            return Err(not_a_merge());
        };
        for upper in &merge.into {
            if is_merged(place, upper, &self.manifest)? {
                rewrite(place, upper, &self.manifest, merge.is_doubtful(upper))?;
            } else if !merge.is_doubtful(upper) {
                restamp(place, upper)?;
            }
        }
        self.remove(place)
    }
}

fn not_a_merge() -> Failure {
    Failure::new(Errno::EIO, "a journal of a merge does not say of which")
}

/// The manifest of the backup that was meant, and no other's of that name; None where somebody has removed it since.
fn meant(place: &Place, upper: &Previous) -> Result<Option<Manifest>, Failure> {
    let path = place.manifest(&upper.name);
    if !path.exists() {
        return Ok(None);
    }
    let manifest: Manifest = read_json(&path)?;
    if manifest.id == upper.id {
        return Ok(Some(manifest));
    }
    Err(Failure::new(
        Errno::EIO,
        format!("{} is not of the backup that was merged", path.display()),
    )
    .next("put the right one back: its id stands in the hidden journal beside it"))
}

/// The manifest of what stood on the merged one, as it is now. Of a file that was in doubt the stamp stays, and so the doubt.
fn rewrite(
    place: &Place,
    upper: &Previous,
    gone: &Manifest,
    in_doubt: bool,
) -> Result<(), Failure> {
    let Some(mut manifest) = meant(place, upper)? else {
        return Ok(());
    };
    if manifest
        .previous
        .as_ref()
        .is_some_and(|it| it.id == gone.id)
    {
        manifest.previous.clone_from(&gone.previous);
        manifest.copied = gone.copied;
        let of_less = matches!(manifest.kind, BackupKind::Incremental | BackupKind::Top);
        if manifest.copied == Copied::Full && of_less {
            manifest.why_full = Some(format!(
                "the backup '{}', on which it stood, was merged into it",
                gone.name
            ));
        }
    }
    if !in_doubt {
        manifest.file = finished(&place.file(&upper.name));
    }
    write_json(&place.manifest(&upper.name), &manifest)
}

fn restamp(place: &Place, upper: &Previous) -> Result<(), Failure> {
    let Some(mut manifest) = meant(place, upper)? else {
        return Ok(());
    };
    manifest.file = finished(&place.file(&upper.name));
    write_json(&place.manifest(&upper.name), &manifest)
}
