//! What checkpoints need to know of a disk and of the VM: whose state a disk is part of, and
//! which job on the state of the whole VM is at work.

use std::time::SystemTime;

/// What a disk is to a checkpoint of the VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatePart {
    /// Its place among QEMU's devices: `loadvm` looks for the RAM on the first.
    pub place: usize,
    /// Whether it changes while the VM runs.
    pub role: Role,
}

/// Whether a checkpoint has to hold a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// The guest writes it.
    #[default]
    Written,
    /// Nobody writes it.
    ReadOnly,
    /// The firmware's flash: raw as a rule, and left out.
    Firmware,
}

/// A job on the state of the whole VM, while QEMU answers nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateJob {
    /// What it does.
    pub verb: StateVerb,
    /// The checkpoint's name.
    pub name: String,
    /// When it began.
    pub since: SystemTime,
}

/// What is done with a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateVerb {
    /// `snapshot-save`
    Save,
    /// `snapshot-load`
    Load,
    /// `snapshot-delete`
    Delete,
}

impl StateVerb {
    /// QEMU's word for it.
    pub fn word(self) -> &'static str {
        match self {
            StateVerb::Save => "snapshot-save",
            StateVerb::Load => "snapshot-load",
            StateVerb::Delete => "snapshot-delete",
        }
    }
}
