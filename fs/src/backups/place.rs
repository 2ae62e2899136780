//! One disk's directory in the backup directory: what its files are called, made durable, given
//! their final names, and removed. It knows names; it does not know what is in a manifest.

use super::standing::standing_on_file;
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, Claim};
use crate::sys;
use crate::tree::{fit_name, valid_name};
use serde::Serialize;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Longest manifest that is read: a group of many disks needs some KiB.
pub(super) const MANIFEST_MAX: u64 = 64 << 10;
/// What the hidden name of an unfinished file has behind the final one.
const UNFINISHED: &str = "unfinished-";
/// What a file's hidden name ends with until it is whole.
const NEW: &str = ".new";
/// What the name of a kept tree ends with.
const TREE: &str = ".blake3";
/// Backups hold what the guest's own files hold: nobody else reads them.
const OTHERS: u32 = 0o007;

/// The directory of one disk's backups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    root: PathBuf,
    directory: PathBuf,
}

impl Place {
    /// Where the backups of a disk are, below the directory the user named.
    pub fn new(root: &Path, vm: &str, disk: &str) -> Self {
        Place {
            root: root.to_owned(),
            directory: root.join(fit_name(vm)).join(fit_name(disk)),
        }
    }

    /// A directory that somebody named, or found.
    pub fn at(directory: &Path) -> Self {
        let above = directory.parent().and_then(Path::parent);
        Place {
            root: above.unwrap_or(directory).to_owned(),
            directory: directory.to_owned(),
        }
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The final name of a backup's file.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.qcow2"))
    }

    /// What an incremental backup's header calls the one before: relative, so that the directory
    /// can be carried elsewhere.
    pub fn file_name(name: &str) -> PathBuf {
        PathBuf::from(format!("{name}.qcow2"))
    }

    /// Its manifest.
    pub fn manifest(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    /// The file while it is made. No name of a point begins with a dot.
    pub fn unfinished(&self, name: &str, id: &str) -> PathBuf {
        self.directory
            .join(format!(".{name}.qcow2.{UNFINISHED}{id}"))
    }

    /// What is written down of a backup that is made or removed.
    pub fn journal(&self, name: &str) -> PathBuf {
        self.directory.join(format!(".{name}.json"))
    }

    /// What is kept of a backup's digest, so that the next one need not read what did not change.
    pub fn tree(&self, name: &str) -> PathBuf {
        self.directory.join(format!(".{name}{TREE}"))
    }

    /// What is written for a digest, until it is whole.
    pub(super) fn new_digest(&self, name: &str) -> PathBuf {
        self.directory.join(format!(".{name}{TREE}{NEW}"))
    }

    /// The right of this process to change what lies there, until it is dropped: one at a time on this
    /// host; EBUSY while another has it.
    pub fn claim(&self) -> Result<Claim, Failure> {
        layer_file::claim(&self.seat())
    }

    /// That the guest was stopped for the end of mirrors, and is to go on.
    fn standstill(&self) -> PathBuf {
        self.directory.join(".stands-still")
    }

    /// Writes down that the guest is about to be stopped.
    pub fn note_standstill(&self) -> Result<(), Failure> {
        write_through(&self.standstill(), &self.standstill(), b"")
    }

    /// Whether that is written down.
    pub fn has_standstill(&self) -> bool {
        self.standstill().symlink_metadata().is_ok()
    }

    /// It goes on.
    pub fn forget_standstill(&self) -> Result<(), Failure> {
        remove(&self.standstill())
    }

    /// What stands for the directory where a disk has its active path. There is no such file.
    pub fn seat(&self) -> PathBuf {
        self.directory.join(".backups")
    }

    /// Makes the directories that are missing, for nobody but the owner of `like`: QEMU may be
    /// another user than we are. The directory that the user named must be there: a disk that is
    /// not mounted has it not.
    pub fn make(&self, like: &Path) -> Result<(), Failure> {
        if !self.root.is_dir() {
            return Err(Failure::new(
                Errno::ENOENT,
                format!("there is no backup directory {}", self.root.display()),
            )
            .next("make it, or mount what it lies on"));
        }
        let owner = like.metadata().ok();
        let above = self.directory.parent().unwrap_or(&self.root);
        for directory in [above, &self.directory] {
            match DirBuilder::new().mode(0o700).create(directory) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) => {
                    return Err(Failure::io(
                        format!("create {}", directory.display()),
                        &error,
                    ));
                }
            }
            if let Some(owner) = &owner
                && owner.uid() != sys::own_ids().0
            {
                std::os::unix::fs::chown(directory, Some(owner.uid()), Some(owner.gid())).map_err(
                    |error| Failure::io(format!("give away {}", directory.display()), &error),
                )?;
            }
            // the entry of it is in the one above
            layer_file::fsync_dir(directory.parent().unwrap_or(&self.root))?;
        }
        Ok(())
    }

    /// The empty file that a backup is written to, with the owner of the disk's own.
    pub fn create(&self, unfinished: &Path, like: &Path) -> Result<File, Failure> {
        let made = match like.metadata() {
            Ok(metadata) if metadata.is_file() => layer_file::create_like(unfinished, like)?,
            Ok(_) | Err(_) => OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(unfinished)
                .map_err(|error| Failure::io(format!("create {}", unfinished.display()), &error))?,
        };
        let io = |error: &std::io::Error| {
            Failure::io(format!("protect {}", unfinished.display()), error)
        };
        let mode = made.metadata().map_err(|error| io(&error))?.mode() & 0o777 & !OTHERS;
        made.set_permissions(Permissions::from_mode(mode | 0o600))
            .map_err(|error| io(&error))?;
        Ok(made)
    }

    /// Whether a name is free: no file, no manifest, none on its way, and nothing left that stood on one of that name.
    pub fn is_free(&self, name: &str) -> Result<bool, Failure> {
        let names = [self.file(name), self.manifest(name), self.journal(name)];
        let taken = names.iter().any(|path| path.symlink_metadata().is_ok());
        Ok(!taken && standing_on_file(self, name)?.is_empty())
    }

    /// Gives a complete file its final name, if nobody has it. Done already is fine.
    pub fn complete(&self, name: &str, id: &str) -> Result<(), Failure> {
        let (from, to) = (self.unfinished(name, id), self.file(name));
        match sys::rename_new(&from, &to) {
            Ok(()) => layer_file::fsync_dir(&to),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && to.exists() => Ok(()),
            // both names were given to it, and then somebody was killed
            Err(error)
                if error.kind() == std::io::ErrorKind::AlreadyExists
                    && sys::is_one_file(&from, &to) =>
            {
                remove(&from)
            }
            Err(error) => Err(Failure::io(format!("name {}", to.display()), &error).next(
                "see what has that name; the copy is complete and gets it at the next mount",
            )),
        }
    }
}

/// Whether a path is that of a backup's file that is not complete.
pub fn is_unfinished(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.')
        && path
            .extension()
            .is_some_and(|end| end.to_string_lossy().starts_with(UNFINISHED))
}

/// Writes an object under a name at once or not at all, and makes it last.
pub(super) fn write_json(path: &Path, body: &impl Serialize) -> Result<(), Failure> {
    write_bytes(path, &json(path, body)?)
}

/// An object as it is written.
pub(super) fn json(path: &Path, body: &impl Serialize) -> Result<Vec<u8>, Failure> {
    let mut text = serde_json::to_vec_pretty(body).map_err(|error| {
        let path = path.display();
        Failure::new(Errno::EIO, format!("cannot write {path}: {error}"))
    })?;
    text.push(b'\n');
    Ok(text)
}

/// The same with bytes.
pub(super) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{}{NEW}", name.trim_start_matches('.')));
    write_through(&hidden, path, bytes)
}

/// The same, under another name until it is whole.
pub(super) fn write_through(hidden: &Path, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let doing = || format!("write {}", path.display());
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(hidden)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(hidden, path));
    if let Err(error) = written {
        // what failed is what the user must know
        let _ = std::fs::remove_file(hidden);
        return Err(Failure::io(doing(), &error));
    }
    layer_file::fsync_dir(path)
}

/// What was being written when somebody was killed. Nobody writes there now.
pub fn sweep(place: &Place) -> Result<(), Failure> {
    for entry in std::fs::read_dir(&place.directory).into_iter().flatten() {
        let Some(name) = entry
            .ok()
            .and_then(|entry| entry.file_name().into_string().ok())
        else {
            continue;
        };
        let stem = name.strip_prefix('.').and_then(|it| it.strip_suffix(NEW));
        let stem = stem.and_then(|it| it.strip_suffix(".json").or(it.strip_suffix(TREE)));
        if stem.is_some_and(valid_name) {
            remove(&place.directory.join(&name))?;
        }
    }
    Ok(())
}

/// Removes a name; gone already is fine.
pub(super) fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Ok(()) => layer_file::fsync_dir(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::io(format!("remove {}", path.display()), &error)),
    }
}
