//! Names on the host's disk, put right: what an unfinished seal left, strays, files that are done
//! with. Removes only names of files that carry our own record for that very inode, or our own
//! hidden aliases. Knows names and inodes; no QEMU.

use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{FileId, Format};
use crate::sys;
use crate::view::{LayerSpec, layer_allocated};
use std::path::Path;

/// What a person does where D cannot be given to the file that the guest writes, and the guest was stopped for that.
pub(super) const STANDS_STILL: &str = "make that directory writable: what stands still goes on by itself as soon as the name is right";

/// Removes one name; gone already is fine. The directory is made durable.
pub(super) fn remove_name(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Ok(()) => layer_file::fsync_dir(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::io(format!("remove {}", path.display()), &error)),
    }
}

/// Removes a name only if it still is that file.
pub(super) fn remove_file(path: &Path, file: FileId) -> Result<(), Failure> {
    match sys::file_id(path) {
        Ok(found) if found == file => remove_name(path),
        Ok(_) => Err(Failure::new(
            Errno::EBUSY,
            format!(
                "{} is another file by now and is left alone",
                path.display()
            ),
        )
        .next("see who put it there: ls -li")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::io(format!("look at {}", path.display()), &error)),
    }
}

/// Takes back the names of a seal that did not happen: D is `file` again, S and H are gone.
/// Without `overlay` H stays.
pub(super) fn undo_seal(active: &Path, sealed: &Path, overlay: Option<&Path>, file: FileId) {
    let steps = [
        undo_active(active, sealed, file),
        undo_sealed(active, sealed, file),
        overlay.map_or(Ok(()), |overlay| undo_overlay(active, overlay)),
    ];
    for failure in steps.into_iter().filter_map(Result::err) {
        tracing::error!(%failure, active = %active.display(), "a seal could not be taken back whole");
    }
}

fn undo_active(active: &Path, sealed: &Path, file: FileId) -> Result<(), Failure> {
    if sys::file_id(active).ok() != Some(file) && sys::file_id(sealed).ok() == Some(file) {
        layer_file::replace(sealed, active)?;
    }
    Ok(())
}

fn undo_sealed(active: &Path, sealed: &Path, file: FileId) -> Result<(), Failure> {
    // the last name of a disk is never removed
    if sys::file_id(active).ok() == Some(file) {
        remove_file(sealed, file)
    } else {
        Ok(())
    }
}

fn undo_overlay(active: &Path, overlay: &Path) -> Result<(), Failure> {
    let overlay_file = sys::file_id(overlay).ok();
    if overlay_file.is_some() && overlay_file != sys::file_id(active).ok() {
        remove_name(overlay)
    } else {
        Ok(())
    }
}

/// Whether an overlay holds anything. What cannot be read may hold data.
pub(super) fn holds_data(overlay: &Path) -> Result<bool, Failure> {
    match overlay.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::io(
            format!("look at {}", overlay.display()),
            &error,
        )),
        // a half-made overlay has no header yet
        Ok(metadata) if metadata.len() == 0 => Ok(false),
        Ok(_) => {
            let spec = LayerSpec {
                path: overlay.to_owned(),
                file: None,
                format: Format::Qcow2,
            };
            layer_allocated(&spec).map(|bytes| bytes > 0)
        }
    }
}
