//! What can be refused before anything is done, and what the rollback will need to know.

use super::Rollback;
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, GuestDebt, RollbackJournal};
use crate::model::{Disk, Format, Layer, PointRecord};
use crate::ops::check::refuse_if_mixed;
use crate::ops::engine::Engine;
use crate::ops::nodes::lasting_name;
use crate::ops::{command_line, migration, overlay};
use crate::sys;
use crate::tree::{Found, PointKey, find_in, first_free};
use qmpbridge::Bridge;
use qmpbridge::command::QueryStatus;

/// Looks at the disk, the point and the guest.
pub(super) async fn check(
    engine: &Engine,
    bridge: &Bridge,
    disk: Disk,
    point: &PointKey,
) -> Result<Rollback, Failure> {
    migration::refuse(bridge).await?;
    let (root, file) = overlay::top_of(&disk)?;
    let active = disk.active_path.clone();
    let onto = onto(&disk, point)?;
    refuse_if_mixed(&disk.name, &disk.layers)?;
    overlay::refuse_if_full(&active)?;
    let debt = debt(engine, bridge, &disk, &onto).await?;
    let (name, time) = name(&disk);
    Ok(Rollback {
        disk: disk.name.clone(),
        root,
        size: disk.active.virtual_size,
        carried: engine.carried(&disk),
        file,
        record: PointRecord {
            id: layer_file::random_hex(),
            name: name.clone(),
            time,
            consistency: "crash".into(),
            frozen_ms: None,
            quiesce_error: None,
            inode: file.ino,
            group: None,
        },
        journal: RollbackJournal {
            version: 1,
            overlay: layer_file::alias_path(&active),
            sealed: layer_file::sealed_path(&active, &name),
            onto: onto.path.clone(),
            guest: GuestDebt::Nothing,
            inode: file.ino,
            active,
        },
        onto,
        debt,
    })
}

/// The layer that the new overlay is to stand on, by the name that it keeps.
fn onto(disk: &Disk, point: &PointKey) -> Result<Layer, Failure> {
    let found =
        find_in(disk, point).ok_or_else(|| Failure::new(Errno::ENOENT, "the point is gone"))?;
    let chain = found.layers();
    for layer in &chain {
        match layer.format {
            Format::Qcow2 | Format::Raw => {}
            Format::Other(_) => {
                return Err(Failure::new(
                    Errno::EOPNOTSUPP,
                    format!("{} is {}", layer.path.display(), layer.format.name()),
                ));
            }
        }
        if layer.file.is_none() || layer.file != sys::file_id(&layer.path).ok() {
            return Err(Failure::new(
                Errno::EOPNOTSUPP,
                format!("{} cannot be seen from here", layer.path.display()),
            ));
        }
    }
    match found {
        Found::Layer { layer, .. } => Ok(Layer {
            path: lasting_name(disk, layer),
            ..layer.clone()
        }),
        Found::Branch { branch, .. } => {
            crate::ops::open::refuse_if_written(&chain)?;
            Ok(branch.layer.clone())
        }
        // not among the names that rollback takes
        Found::Live { live, .. } => Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!("'{}' is an instant of the running disk", live.record.name),
        )),
        Found::Backup { .. } => Err(Failure::new(
            Errno::EOPNOTSUPP,
            "a disk does not stand on a backup",
        )
        .next("copy its disk.raw back, with the VM off")),
        Found::Internal { internal, .. } => {
            Err(crate::intent::rollback_to_internal(disk, internal))
        }
    }
}

/// What the guest will be owed: nothing where there is none, or where it has not run yet.
async fn debt(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
    onto: &Layer,
) -> Result<GuestDebt, Failure> {
    if engine.switched_off() {
        return Ok(GuestDebt::Nothing);
    }
    if onto.virtual_size != disk.active.virtual_size {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!(
                "the disk had {} bytes then and has {} now: it does not change its size under a running VM",
                onto.virtual_size, disk.active.virtual_size
            ),
        )
        .next("switch the VM off, mount its image file, and roll back there"));
    }
    if !bridge.supports("stop") {
        return Ok(GuestDebt::Nothing);
    }
    let line = bridge.peer_pid().and_then(command_line::arguments);
    if line.is_some_and(|line| ends_at_a_reset(&line)) {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            "the VM was started with -no-reboot: the reset that a rollback needs would end it",
        )
        .next("switch the VM off, mount its image file, and roll back there"));
    }
    Ok(match bridge.run(QueryStatus).await?.status.as_str() {
        "prelaunch" => GuestDebt::Nothing,
        "running" | "suspended" => GuestDebt::ResetAndGo,
        "save-vm" | "restore-vm" => {
            return Err(
                Failure::new(Errno::EBUSY, "the VM is being saved or loaded")
                    .next("wait for the other tool"),
            );
        }
        _ => GuestDebt::Reset,
    })
}

fn ends_at_a_reset(line: &[String]) -> bool {
    line.iter().any(|word| {
        matches!(word.as_str(), "-no-reboot" | "--no-reboot") || word.contains("reboot=shutdown")
    })
}

/// What something that was left at a time is called.
pub(in crate::ops) fn called_after(time: &str) -> String {
    let digits: String = time
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|letter| letter.is_ascii_alphanumeric())
        .collect();
    format!("rolled-back-{digits}Z")
}

/// What the active layer will be called as a point, and when that was.
fn name(disk: &Disk) -> (String, String) {
    let time = crate::render::now();
    let wanted = called_after(&time);
    // twice within a second
    let taken = |name: &str| {
        let path = layer_file::sealed_path(&disk.active_path, name);
        path.symlink_metadata().is_ok() || disk.external(name).is_some()
    };
    (first_free(&wanted, '-', taken), time)
}

#[cfg(test)]
mod tests {
    use super::{ends_at_a_reset, name};
    use crate::tree::{sample, valid_name};

    #[test]
    fn a_vm_that_ends_at_a_reset_is_known_by_its_command_line() {
        let line = |words: &str| words.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(ends_at_a_reset(&line("qemu -m 1G -no-reboot")));
        assert!(ends_at_a_reset(&line(
            "qemu -action reboot=shutdown,panic=none"
        )));
        assert!(!ends_at_a_reset(&line(
            "qemu -action reboot=reset -name no-reboot"
        )));
    }

    #[test]
    fn what_was_active_gets_a_valid_name() {
        let model = sample::two_disks();
        let (name, time) = name(model.disk("vda").expect("the sample has vda"));
        assert!(valid_name(&name), "{name}");
        assert!(
            name.starts_with("rolled-back-20") && name.ends_with('Z'),
            "{name} at {time}"
        );
        assert_eq!(name.len(), "rolled-back-20260102T030405Z".len());
    }
}
