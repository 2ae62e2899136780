//! What can be done through this mount, as vm.json says it: what QEMU has the commands for, beside
//! whoever else manages the VM, with the options of this mount.

use super::engine::Engine;
use super::{backup, live};
use crate::intent::Reach;
use qmpbridge::Bridge;

pub(super) const SEAL: &[&str] = &[
    "blockdev-snapshot",
    "blockdev-reopen",
    "blockdev-create",
    "transaction",
];

pub(super) const INTERNAL: &[&str] = &["blockdev-snapshot-internal-sync"];
pub(super) const MERGE: &[&str] = &["block-stream", "block-commit"];

/// The names of all that can be done.
pub(super) fn of(engine: &Engine, bridge: &Bridge) -> Vec<String> {
    let verbs = engine.config.verbs;
    let may_go_back = verbs.live_rollback || engine.switched_off();
    let all: [(&str, Reach, bool, &[&str]); 11] = [
        ("snapshots", Reach::Chain, true, SEAL),
        ("all-disks", Reach::Chain, true, SEAL),
        ("internal", Reach::Beside, true, INTERNAL),
        ("live", Reach::Beside, true, &live::NEEDS),
        ("merge", Reach::Chain, true, MERGE),
        (
            "checkpoints",
            Reach::Beside,
            true,
            &["snapshot-save", "snapshot-delete"],
        ),
        ("rollback", Reach::Chain, may_go_back, SEAL),
        ("backups", Reach::Chain, verbs.backups, &backup::NEEDS),
        (
            "backups-of-all-disks",
            Reach::Chain,
            verbs.backups,
            &backup::NEEDS,
        ),
        (
            "mirrors",
            Reach::Chain,
            verbs.backups,
            &backup::MIRROR_NEEDS,
        ),
        (
            "mirrors-of-all-disks",
            Reach::Chain,
            verbs.backups,
            &backup::MIRRORS_NEED,
        ),
    ];
    let manager = engine.manager();
    all.into_iter()
        .filter(|(_, reach, wanted, commands)| {
            *wanted
                && !verbs.read_only
                && reach.is_allowed(manager, verbs)
                && commands.iter().all(|command| bridge.supports(command))
        })
        .map(|(name, ..)| name.to_owned())
        .collect()
}
