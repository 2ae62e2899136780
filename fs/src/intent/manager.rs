//! What may be done to a VM that somebody else manages. Pure.

use super::{Intent, Verbs};
use crate::errno::{Errno, Failure};
use crate::model::{Manager, Model};

/// What a verb does to what libvirt believes of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Other files or nodes would be the disk than those libvirt knows: its next snapshot would
    /// stand on a layer that the guest has left.
    Chain,
    /// libvirt does not know of it and is not misled.
    Beside,
}

impl Reach {
    /// Whether that may be done to a VM that has this manager.
    pub fn is_allowed(self, manager: Option<Manager>, verbs: Verbs) -> bool {
        match (manager, self) {
            (None, Reach::Chain | Reach::Beside) => true,
            (Some(Manager::Libvirt), Reach::Beside) => verbs.coexist,
            (Some(Manager::Libvirt), Reach::Chain) => false,
        }
    }
}

/// Whether a verb may be done to a VM that somebody else manages.
pub fn suits_the_manager(model: &Model, verbs: Verbs, intent: &Intent) -> Result<(), Failure> {
    let (reach, instead) = match intent {
        Intent::TakeGroup { name } | Intent::TakeExternal { name, .. } => (
            Reach::Chain,
            format!(
                "virsh snapshot-create-as {} {name} --disk-only",
                model.vm.name
            ),
        ),
        Intent::DeleteGroup { .. }
        | Intent::DeleteExternal { .. }
        | Intent::DeleteBranch { .. }
        | Intent::ReleaseLayer { .. } => (
            Reach::Chain,
            format!("virsh blockcommit or virsh blockpull {}", model.vm.name),
        ),
        Intent::TakeInternal { name, .. } => (
            Reach::Beside,
            format!("virsh snapshot-create-as {} {name}", model.vm.name),
        ),
        Intent::DeleteInternal { name, .. } => (
            Reach::Beside,
            format!("virsh snapshot-delete {} {name}", model.vm.name),
        ),
        Intent::TakeLive { .. }
        | Intent::DeleteLive { .. }
        | Intent::TakeLives { .. }
        | Intent::DeleteLives { .. } => (
            Reach::Beside,
            format!("virsh backup-begin {}", model.vm.name),
        ),
        Intent::TakeCheckpoint { name } => (
            Reach::Beside,
            format!("virsh snapshot-create-as {} {name}", model.vm.name),
        ),
        Intent::DeleteCheckpoint { name } => (
            Reach::Beside,
            format!("virsh snapshot-delete {} {name}", model.vm.name),
        ),
        Intent::LoadCheckpoint { name } => (
            Reach::Chain,
            format!("virsh snapshot-revert {} {name}", model.vm.name),
        ),
        Intent::Rollback { name, .. } => (
            Reach::Chain,
            format!("virsh snapshot-revert {} {name}", model.vm.name),
        ),
        Intent::TakeBackup { .. }
        | Intent::TakeBackups { .. }
        | Intent::DeleteBackup { .. }
        | Intent::DeleteBackups { .. }
        | Intent::DeleteBitmap { .. } => (
            // the filter of a job, and bitmaps, that libvirt does not know stand in its jobs' way
            Reach::Chain,
            format!("virsh backup-begin {}", model.vm.name),
        ),
        Intent::CloseDisk { disk } => (
            Reach::Chain,
            format!("virsh detach-disk {} {disk}", model.vm.name),
        ),
        // a mirror of ours cannot have begun: it would be of the chain
        Intent::CancelJob { .. } | Intent::ControlJob { .. } => (
            Reach::Beside,
            format!("virsh blockjob {} DISK --abort", model.vm.name),
        ),
    };
    if reach.is_allowed(model.vm.manager, verbs) {
        return Ok(());
    }
    Err(match reach {
        Reach::Beside => Failure::new(
            Errno::EPERM,
            "libvirt manages this VM, and the mount only shows it",
        )
        .next(format!("{instead}; or mount with -o coexist")),
        Reach::Chain => Failure::new(
            Errno::EPERM,
            "libvirt manages this VM and would lose track of its disk",
        )
        .next(instead),
    })
}
