//! The verbs, understood: what is to be done, to which disk, under which name. Data, and how the log
//! calls it.

use super::JobCommand;
use crate::model::BackupKind;
use crate::tree::{PointKey, disk_path};

/// A verb, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// `mkdir snapshots/NAME`
    TakeGroup {
        /// The name of all its points.
        name: String,
    },
    /// `rmdir snapshots/NAME`
    DeleteGroup {
        /// Its identity: of two that have one name, the one that was meant.
        id: String,
        /// Its name in the tree.
        name: String,
    },
    /// `mkdir checkpoints/NAME`
    TakeCheckpoint {
        /// The name.
        name: String,
    },
    /// `rmdir checkpoints/NAME`
    DeleteCheckpoint {
        /// The name.
        name: String,
    },
    /// `echo NAME > rollback`
    LoadCheckpoint {
        /// The name.
        name: String,
    },
    /// `mkdir disks/DISK/snapshots/NAME`
    TakeExternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `rmdir disks/DISK/snapshots/NAME`
    DeleteExternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `rmdir disks/DISK/layers/NAME` of a layer that qmpfs did not make
    ReleaseLayer {
        /// The disk's name.
        disk: String,
        /// Which layer (`tree::layer_identity`).
        identity: String,
        /// What it is called in layers/.
        name: String,
    },
    /// `mkdir disks/DISK/internal/NAME`
    TakeInternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `rmdir disks/DISK/internal/NAME`
    DeleteInternal {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `mkdir disks/DISK/live/NAME`
    TakeLive {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `mkdir live/NAME`
    TakeLives {
        /// The name of all its points.
        name: String,
    },
    /// `rmdir live/NAME`
    DeleteLives {
        /// Its identity.
        id: String,
        /// Its name in the tree.
        name: String,
    },
    /// `rmdir disks/DISK/live/NAME`
    DeleteLive {
        /// The disk's name.
        disk: String,
        /// The point's identity.
        id: String,
        /// The point's name.
        name: String,
    },
    /// `echo NAME > disks/DISK/rollback`
    Rollback {
        /// The disk's name.
        disk: String,
        /// The point's name, with the directory it stands in.
        name: String,
        /// The point.
        point: PointKey,
    },
    /// `rmdir disks/DISK/snapshots/NAME` of a point beside the chain
    DeleteBranch {
        /// The disk's name.
        disk: String,
        /// The point's name.
        name: String,
    },
    /// `mkdir disks/DISK/backups/KIND/NAME`
    TakeBackup {
        /// The disk's name.
        disk: String,
        /// What is copied.
        kind: BackupKind,
        /// The backup's name.
        name: String,
    },
    /// `rmdir disks/DISK/backups/KIND/NAME`
    DeleteBackup {
        /// The disk's name.
        disk: String,
        /// Where it is listed.
        kind: BackupKind,
        /// The backup's name.
        name: String,
        /// Its identity.
        id: String,
    },
    /// `mkdir backups/KIND/NAME`
    TakeBackups {
        /// What is copied.
        kind: BackupKind,
        /// The name of all of them.
        name: String,
    },
    /// `rmdir backups/KIND/NAME`
    DeleteBackups {
        /// Where it is listed.
        kind: BackupKind,
        /// Its identity.
        id: String,
        /// Its name in the tree.
        name: String,
    },
    /// `rm disks/DISK/bitmaps/NAME`
    DeleteBitmap {
        /// The disk's name.
        disk: String,
        /// Its name in the tree.
        name: String,
    },
    /// `rmdir disks/DISK` of a disk that was unplugged
    CloseDisk {
        /// The disk's name.
        disk: String,
    },
    /// `rmdir disks/DISK/jobs/ID`
    CancelJob {
        /// The disk's name.
        disk: String,
        /// QEMU's job id.
        id: String,
    },
    /// A line written to `disks/DISK/jobs/ID/ctl`
    ControlJob {
        /// The disk's name.
        disk: String,
        /// QEMU's job id.
        id: String,
        /// What the line says.
        command: JobCommand,
    },
}

impl Intent {
    /// Whether a point that somebody may have open is to go.
    pub fn takes_a_point_away(&self) -> bool {
        matches!(
            self,
            Intent::DeleteGroup { .. }
                | Intent::DeleteCheckpoint { .. }
                | Intent::DeleteExternal { .. }
                | Intent::DeleteBranch { .. }
                | Intent::ReleaseLayer { .. }
                | Intent::DeleteInternal { .. }
                | Intent::DeleteLives { .. }
                | Intent::DeleteLive { .. }
                | Intent::DeleteBackups { .. }
                | Intent::DeleteBackup { .. }
        )
    }

    /// The verb and the path it was asked of, for the log.
    pub fn describe(&self) -> (&'static str, String) {
        match self {
            Intent::TakeGroup { name } => ("mkdir", format!("/snapshots/{name}")),
            Intent::DeleteGroup { name, .. } => ("rmdir", format!("/snapshots/{name}")),
            Intent::TakeCheckpoint { name } => ("mkdir", format!("/checkpoints/{name}")),
            Intent::DeleteCheckpoint { name } => ("rmdir", format!("/checkpoints/{name}")),
            Intent::LoadCheckpoint { name } => ("write", format!("/rollback '{name}'")),
            Intent::TakeExternal { disk, name } => {
                ("mkdir", format!("/disks/{disk}/snapshots/{name}"))
            }
            Intent::Rollback { disk, name, .. } => {
                ("write", format!("/disks/{disk}/rollback '{name}'"))
            }
            Intent::DeleteExternal { disk, name } | Intent::DeleteBranch { disk, name } => {
                ("rmdir", format!("/disks/{disk}/snapshots/{name}"))
            }
            Intent::ReleaseLayer { disk, name, .. } => {
                ("rmdir", format!("/disks/{disk}/layers/{name}"))
            }
            Intent::TakeInternal { disk, name } => {
                ("mkdir", format!("/disks/{disk}/internal/{name}"))
            }
            Intent::DeleteInternal { disk, name } => {
                ("rmdir", format!("/disks/{disk}/internal/{name}"))
            }
            Intent::TakeLives { name } => ("mkdir", format!("/live/{name}")),
            Intent::DeleteLives { name, .. } => ("rmdir", format!("/live/{name}")),
            Intent::TakeLive { disk, name } => ("mkdir", format!("/disks/{disk}/live/{name}")),
            Intent::DeleteLive { disk, name, .. } => {
                ("rmdir", format!("/disks/{disk}/live/{name}"))
            }
            Intent::TakeBackup { disk, kind, name } => (
                "mkdir",
                format!("/disks/{disk}/backups/{}/{name}", kind.name()),
            ),
            Intent::DeleteBackup {
                disk, kind, name, ..
            } => (
                "rmdir",
                format!("{}/backups/{}/{name}", disk_path(disk), kind.name()),
            ),
            Intent::TakeBackups { kind, name } => {
                ("mkdir", format!("/backups/{}/{name}", kind.name()))
            }
            Intent::DeleteBackups { kind, name, .. } => {
                ("rmdir", format!("/backups/{}/{name}", kind.name()))
            }
            Intent::DeleteBitmap { disk, name } => ("rm", format!("/disks/{disk}/bitmaps/{name}")),
            Intent::CloseDisk { disk } => ("rmdir", disk_path(disk)),
            Intent::CancelJob { disk, id } => ("rmdir", format!("{}/jobs/{id}", disk_path(disk))),
            Intent::ControlJob { disk, id, command } => (
                "write",
                format!("{}/jobs/{id}/ctl '{command}'", disk_path(disk)),
            ),
        }
    }
}
