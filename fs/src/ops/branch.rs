//! `rmdir disks/D/snapshots/N` of a point beside the chain: its file goes, if nothing stands on it.
//! No job and no QEMU: nobody but readers has such a file open.

use super::blocking::blocking;
use super::engine::{DiskGuard, Engine};
use super::{check, open, settle};
use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{Branch, Disk, FileId};
use crate::sys;
use qmpfs_qcow2::Header;
use std::path::{Path, PathBuf};

/// Removes the point `name`.
pub(super) async fn delete(engine: &Engine, guard: &DiskGuard, name: &str) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    let disk = engine.observe_disk(guard).await?;
    check::refuse_if_replaced(&disk)?;
    let branch = disk
        .branch(name)
        .ok_or_else(|| Failure::new(Errno::ENOENT, format!("there is no snapshot '{name}'")))?;
    let path = branch.layer.path.clone();
    let file = check::file_of(&branch.layer)?;
    // nobody opens it between this look and its end
    let _closed = check::close(engine, check::state_of(file), &format!("'{name}'"))?;
    let graph = bridge.graph().await?;
    let sight = engine.sight(bridge);
    let mut paths = graph
        .nodes()
        .filter_map(|node| sight.resolve(node.path.as_deref()?));
    if paths.any(|path| sys::file_id(&path).is_ok_and(|found| found == file)) {
        return Err(
            Failure::new(Errno::EBUSY, format!("QEMU has {} open", path.display()))
                .next("end what uses it there, then rmdir again"),
        );
    }
    let branch = branch.clone();
    blocking(move || {
        open::refuse_if_written(&[&branch.layer])?;
        refuse_if_needed(&disk, &branch.layer.path, file)?;
        settle::remove_file(&branch.layer.path, file)
    })
    .await
}

/// What `rmdir` of a point beside the chain would do, in words.
pub(super) fn plan_text(disk: &Disk, branch: &Branch) -> String {
    let path = &branch.layer.path;
    match check::file_of(&branch.layer).and_then(|file| refuse_if_needed(disk, path, file)) {
        Ok(()) => format!(
            "verb:    unlink\ncopies:  nothing\nremoves: {}\ncancel:  not possible\nbecause: {} does not stand on it, and no other image does\n",
            path.display(),
            disk.active_path.display()
        ),
        Err(failure) => format!(
            "refused: {} ({})\nnext:    {}\n",
            failure.message, failure.errno, failure.next
        ),
    }
}

fn refuse_if_needed(disk: &Disk, path: &Path, file: FileId) -> Result<(), Failure> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let dependents: Vec<PathBuf> = layer_file::dependents(directory, file, &[])?;
    if let Some(first) = dependents.first() {
        let names: Vec<String> = dependents
            .iter()
            .map(|other| other.display().to_string())
            .collect();
        let next = disk.goes_first(first);
        return Err(Failure::new(
            Errno::EBUSY,
            format!("{} stands on {}", names.join(", "), path.display()),
        )
        .next(next.unwrap_or_else(|| format!("remove {} first", first.display()))));
    }
    let header = sys::open_for_reading(path)
        .map_err(|error| Failure::io(format!("open {}", path.display()), &error))
        .and_then(|file| {
            Header::read(&file).map_err(|error| crate::view::failure_of(path, &error))
        })?;
    if header.snapshot_count > 0 {
        return Err(Failure::new(
            Errno::EBUSY,
            format!(
                "{} holds internal snapshots, which would be lost",
                path.display()
            ),
        )
        .next(format!(
            "see them with qemu-img snapshot -l {0}, remove them with qemu-img snapshot -d ID {0}",
            path.display()
        )));
    }
    Ok(())
}
