//! `user.qmpfs.freeze`: a guest whose filesystems are frozen.

use super::{OfInode, VERSION, open, read, shown, trouble};
use crate::errno::{Errno, Failure};
use crate::sys;
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::fs::File;
use std::path::{Path, PathBuf};

const FREEZE: &CStr = c"user.qmpfs.freeze";

/// A freeze of the guest that we owe it the end of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeMark {
    /// The layout; always 1.
    pub version: u32,
    /// The guest agent through which it was frozen.
    pub agent: String,
    /// When, RFC 3339 UTC.
    pub since: String,
    /// The inode of the file it is written on.
    pub inode: u64,
}

impl OfInode for FreezeMark {
    fn inode(&self) -> u64 {
        self.inode
    }
}

/// A file with a [`FreezeMark`], whatever its name becomes while the guest is frozen.
#[derive(Debug)]
pub struct FreezeNote {
    file: File,
    path: PathBuf,
}

impl FreezeNote {
    /// Forgets a freeze that has ended.
    pub fn clear(self) -> Result<(), Failure> {
        sys::xattr_remove(&self.file, FREEZE)
            .map_err(|error| trouble("remove", &self.path, FREEZE, &error))
    }
}

/// The freeze that is noted on a file.
pub fn read_freeze(path: &Path) -> Result<Option<(FreezeNote, FreezeMark)>, Failure> {
    let Some(mark) = read(path, FREEZE)? else {
        return Ok(None);
    };
    let (file, _) = open(path)?;
    let path = path.to_owned();
    Ok(Some((FreezeNote { file, path }, mark)))
}

/// Notes a freeze before it begins. It need not survive a power cut, which ends every freeze:
/// nothing waits for the disk here.
pub fn write_freeze(path: &Path, agent: &str, since: &str) -> Result<FreezeNote, Failure> {
    let (file, inode) = open(path)?;
    let mark = FreezeMark {
        version: VERSION,
        agent: agent.to_owned(),
        since: since.to_owned(),
        inode,
    };
    let value = serde_json::to_vec(&mark)
        .map_err(|error| Failure::new(Errno::EIO, format!("{}: {error}", shown(FREEZE))))?;
    sys::xattr_set(&file, FREEZE, &value)
        .map_err(|error| trouble("write", path, FREEZE, &error))?;
    let path = path.to_owned();
    Ok(FreezeNote { file, path })
}
