//! From where QEMU's file names are seen: another directory, another root, and which file each name
//! leads to there and here. It knows paths and inodes, nothing of disks.

use crate::layer_file;
use crate::model::FileId;
use crate::sys;
use qmpbridge::Bridge;
use std::cell::OnceCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// From where QEMU's file names are seen.
pub(super) struct Sight {
    pub(super) pid: Option<i32>,
    /// QEMU's working directory: its file names may be relative to it.
    directory: Option<PathBuf>,
    /// QEMU's root directory, where it sees other mounts than we do.
    root: Option<PathBuf>,
    /// What QEMU has open, where that can be seen.
    open_files: OnceCell<Option<HashSet<FileId>>>,
    /// QEMU is on another machine: what has its files' names here are others.
    elsewhere: bool,
    /// Disks of our own storage daemon: their active path and the name to show.
    pub(super) embedded: Vec<(PathBuf, String)>,
    pub(super) read_only: bool,
}

impl Sight {
    /// As seen by QEMU at the other end of the monitor.
    pub(super) fn of(bridge: &Bridge, embedded: &[(PathBuf, String)], read_only: bool) -> Self {
        Sight {
            elsewhere: bridge.is_elsewhere(),
            embedded: embedded.to_vec(),
            read_only,
            ..Self::of_process(bridge.peer_pid())
        }
    }

    /// As seen by a process of this machine.
    pub(super) fn of_process(pid: Option<i32>) -> Self {
        Sight {
            pid,
            directory: pid.and_then(|pid| sys::process_directory(pid).ok()),
            root: pid.and_then(sys::foreign_root),
            open_files: OnceCell::new(),
            elsewhere: false,
            embedded: Vec::new(),
            read_only: false,
        }
    }

    /// The path under which we see what QEMU calls `path`.
    pub(super) fn resolve(&self, path: &Path) -> Option<PathBuf> {
        if self.elsewhere || path.is_relative() && self.directory.is_none() {
            return None;
        }
        let found = layer_file::resolve(path, self.directory.as_deref()).ok()?;
        self.is_theirs(path, &found).then_some(found)
    }

    /// Whether QEMU has this file open; None where that cannot be seen, as behind a proxy.
    pub(super) fn has_open(&self, file: FileId) -> Option<bool> {
        let look = || {
            let pid = self.pid?;
            let program = sys::process_program(pid).ok()?;
            let is_qemu = program.file_name()?.to_string_lossy().contains("qemu");
            is_qemu.then(|| sys::open_files(pid).ok())?
        };
        let files = self.open_files.get_or_init(look);
        files.as_ref().map(|files| files.contains(&file))
    }

    /// Whether a path leads QEMU to the file that we found. A container may have another one there.
    fn is_theirs(&self, path: &Path, found: &Path) -> bool {
        let Some(root) = &self.root else {
            return true;
        };
        let absolute = self
            .directory
            .as_deref()
            .unwrap_or(Path::new("/"))
            .join(path);
        let theirs = root.join(absolute.strip_prefix("/").unwrap_or(&absolute));
        sys::is_one_file(&theirs, found)
    }

    /// The same for a name that may be gone by now.
    pub(super) fn named(&self, path: &Path) -> Option<PathBuf> {
        self.resolve(path).or_else(|| {
            let directory = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let directory = self.resolve(directory.unwrap_or(Path::new(".")))?;
            Some(directory.join(path.file_name()?))
        })
    }
}
