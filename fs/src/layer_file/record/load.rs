//! `user.qmpfs.load`: a VM on its way back to a checkpoint.

use super::{OfInode, clear, read, write};
use crate::errno::Failure;
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::path::Path;

const LOAD: &CStr = c"user.qmpfs.load";

/// A VM on its way back to a checkpoint, on the active file whose image holds the RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadJournal {
    /// The layout; always 1.
    pub version: u32,
    /// The checkpoint that is loaded.
    pub tag: String,
    /// The checkpoint of what was before.
    pub back: String,
    /// What QEMU was told last.
    pub step: LoadStep,
    /// By this job.
    pub job: String,
    /// The QEMU that was told.
    pub qemu: QemuIdentity,
    /// We stopped the VM and owe it a `cont`.
    pub resume: bool,
    /// The inode of the file it is written on.
    pub inode: u64,
}

/// By what a QEMU is known from another one on the same monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuIdentity {
    /// Who answers at the socket. Over TCP nobody is seen, and behind a proxy it is the proxy.
    pub pid: Option<i32>,
    /// The thread of the guest's first processor, as QEMU says it; in a container it may be the same again.
    pub processor: Option<i64>,
}

/// How far a VM is on its way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadStep {
    /// What is now is saved; nothing is loaded.
    Save,
    /// The checkpoint is loaded.
    Load,
    /// That failed, and what was before is loaded again.
    Back,
}

impl OfInode for LoadJournal {
    fn inode(&self) -> u64 {
        self.inode
    }
}

/// A load that was begun.
pub fn read_load(path: &Path) -> Result<Option<LoadJournal>, Failure> {
    read(path, LOAD)
}

/// Writes down a load before each of its steps.
pub fn write_load(path: &Path, journal: &LoadJournal) -> Result<(), Failure> {
    write(path, LOAD, journal)
}

/// Forgets a load that has ended.
pub fn clear_load(path: &Path) -> Result<(), Failure> {
    clear(path, LOAD)
}
