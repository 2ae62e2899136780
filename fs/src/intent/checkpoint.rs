//! What mkdir and rmdir in checkpoints/ mean: all disks of the VM with its RAM. Pure.

use super::{Effect, Intent, Verbs, allowed, connected, fit};
use crate::errno::{Errno, Failure};
use crate::model::{Disk, Model, Role};
use crate::tree::{Checkpoint, checkpoint, saving};

/// What `mkdir checkpoints/name` means.
pub(super) fn mkdir(model: &Model, verbs: Verbs, name: &str) -> Result<Intent, Failure> {
    allowed(verbs, Effect::Makes)?;
    fit(name)?;
    if name.bytes().all(|letter| letter.is_ascii_digit()) {
        return Err(Failure::new(
            Errno::EINVAL,
            format!("'{name}' is a number, and QEMU may load the snapshot that has it for its id instead"),
        )
        .next("put a letter in the name"));
    }
    free(model, name)?;
    connected(model)?;
    a_vm(model)?;
    complete(&model.disks)?;
    Ok(Intent::TakeCheckpoint {
        name: name.to_owned(),
    })
}

/// What `rmdir checkpoints/name` means.
pub(super) fn rmdir(model: &Model, name: &str) -> Result<Intent, Failure> {
    if saving(model) == Some(name) {
        return Err(
            Failure::new(Errno::EBUSY, format!("'{name}' is just being saved"))
                .next("wait for it: cat wait"),
        );
    }
    let found = checkpoint(model, name)
        .ok_or_else(|| Failure::new(Errno::ENOENT, format!("there is no checkpoint '{name}'")))?;
    removable(&found)?;
    Ok(Intent::DeleteCheckpoint {
        name: name.to_owned(),
    })
}

/// What a line written to `rollback` means: `NAME`, or as a shell completes it, `checkpoints/NAME/`.
pub(super) fn write(model: &Model, verbs: Verbs, line: &str) -> Result<Intent, Failure> {
    let name = line.strip_prefix("checkpoints/").unwrap_or(line);
    let name = name.strip_suffix('/').unwrap_or(name);
    let found = checkpoint(model, name).ok_or_else(|| {
        Failure::new(Errno::ENOENT, format!("there is no checkpoint '{name}'"))
            .next("see which there are: ls checkpoints; one disk goes back by disks/DISK/rollback")
    })?;
    loadable(&found)?;
    connected(model)?;
    a_vm(model)?;
    complete(&model.disks)?;
    if !verbs.live_rollback {
        return Err(Failure::new(
            Errno::EPERM,
            "the VM is on, and would go on from another moment",
        )
        .next("mount with -o live_rollback; or switch the VM off and start it with -loadvm"));
    }
    Ok(Intent::LoadCheckpoint {
        name: name.to_owned(),
    })
}

/// QEMU would load this one, and all of it: one that fails may have changed half of the disks.
pub(crate) fn loadable(found: &Checkpoint<'_>) -> Result<(), Failure> {
    match found.why_not_loadable() {
        None => Ok(()),
        Some(why) => Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!("the VM cannot go back to '{}': {why}", found.name),
        )
        .next(format!(
            "copy the disks out: cp --sparse=always checkpoints/{}/DISK/disk.raw NEW.raw",
            found.name
        ))),
    }
}

/// The name is free in every disk: QEMU looks for it in each.
pub(crate) fn free(model: &Model, name: &str) -> Result<(), Failure> {
    let taken = |disk: &&Disk| {
        let mut known = disk.internals.iter();
        known.any(|it| it.tag == name || it.name == name || it.id == name)
    };
    let disk = model.disks.iter().find(taken);
    if let Some(disk) = disk {
        return Err(Failure::new(
            Errno::EEXIST,
            format!("'{name}' is taken in disks/{}/internal", disk.name),
        )
        .next("choose another name, or remove that one first"));
    }
    if checkpoint(model, name).is_some() || saving(model) == Some(name) {
        return Err(
            Failure::new(Errno::EEXIST, format!("'{name}' is taken")).next("choose another name")
        );
    }
    Ok(())
}

/// A storage daemon has neither RAM nor the command.
fn a_vm(model: &Model) -> Result<(), Failure> {
    if model.vm.run_state.is_some() {
        return Ok(());
    }
    Err(Failure::new(
        Errno::EOPNOTSUPP,
        "there is no VM here that has RAM: the images are in a storage daemon",
    )
    .next("for the disks alone: mkdir snapshots/NAME"))
}

/// A VM goes back as a whole or not at all: every disk that changes has to be in it.
pub(crate) fn complete(disks: &[Disk]) -> Result<(), Failure> {
    let written = |disk: &&Disk| disk.state_part.role == Role::Written;
    let unable = disks
        .iter()
        .filter(written)
        .find_map(|disk| Some((disk, disk.no_snapshots.as_ref()?)));
    if let Some((disk, why)) = unable {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!(
                "a checkpoint holds every disk the guest writes, and disk '{}' takes no internal snapshot: {why}",
                disk.name
            ),
        )
        .next("for the other disks alone: mkdir snapshots/NAME"));
    }
    if disks.iter().any(|disk| written(&disk)) {
        return Ok(());
    }
    Err(Failure::new(
        Errno::EOPNOTSUPP,
        "this VM has no disk whose image could hold its state",
    ))
}

/// No part lies where nobody may write, and QEMU would remove no other one.
pub(crate) fn removable(found: &Checkpoint<'_>) -> Result<(), Failure> {
    for (disk, part) in &found.members {
        if let Some(layer) = part.layer.and_then(|layer| disk.layers.get(layer)) {
            let snapshot = layer.point_name().unwrap_or("NAME");
            return Err(Failure::new(
                Errno::EOPNOTSUPP,
                format!(
                    "its part of disk '{}' lies inside the sealed {}, which nobody may write",
                    disk.name,
                    layer.path.display()
                ),
            )
            .next(format!(
                "it goes with that file: rmdir disks/{}/snapshots/{snapshot}",
                disk.name
            )));
        }
        let mut others = disk.internals.iter().filter(|it| it.layer == part.layer);
        if others.any(|it| it.id != part.id && it.tag == part.tag) {
            return Err(Failure::new(
                Errno::EOPNOTSUPP,
                format!(
                    "disk '{}' has two snapshots called '{}', and QEMU removes the first",
                    disk.name, part.tag
                ),
            )
            .next("remove the other one in its internal/ first"));
        }
    }
    Ok(())
}

/// A part of a checkpoint does not go by itself.
pub(super) fn part_of(found: &Checkpoint<'_>) -> Failure {
    Failure::new(
        Errno::EBUSY,
        format!("it is part of the checkpoint '{}'", found.name),
    )
    .next(format!("rmdir checkpoints/{}", found.name))
}

#[cfg(test)]
mod tests {
    use super::{mkdir, rmdir};
    use crate::errno::Errno;
    use crate::intent::Intent;
    use crate::intent::tests::ALL;
    use crate::model::{Model, Role};
    use crate::tree::sample;

    fn whole() -> Model {
        let mut model = sample::a_checkpoint();
        model.disks[1].state_part.role = Role::ReadOnly;
        model
    }

    fn errno(model: &Model, name: &str) -> Result<Intent, Errno> {
        mkdir(model, ALL, name).map_err(|failure| failure.errno)
    }

    #[test]
    fn a_checkpoint_wants_a_free_name_and_every_disk() {
        let take = Intent::TakeCheckpoint { name: "new".into() };
        assert_eq!(errno(&whole(), "new"), Ok(take));
        for (name, refused) in [
            ("ready", Errno::EEXIST),
            ("clean", Errno::EEXIST),
            ("12", Errno::EINVAL),
            ("a b", Errno::EINVAL),
        ] {
            assert_eq!(errno(&whole(), name), Err(refused), "{name}");
        }
        assert_eq!(
            errno(&sample::a_checkpoint(), "new"),
            Err(Errno::EOPNOTSUPP),
            "vdb is raw"
        );
        let mut daemon = whole();
        daemon.vm.run_state = None;
        assert_eq!(errno(&daemon, "new"), Err(Errno::EOPNOTSUPP));
        let mut none = whole();
        none.disks.clear();
        assert_eq!(errno(&none, "new"), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn a_part_in_a_sealed_layer_stays() {
        assert!(rmdir(&whole(), "ready").is_ok());
        assert_eq!(
            rmdir(&whole(), "no").map_err(|it| it.errno),
            Err(Errno::ENOENT)
        );
        let mut model = whole();
        model.disks[2].internals[0].layer = Some(0);
        let refused = rmdir(&model, "ready").expect_err("it is sealed");
        assert_eq!(refused.errno, Errno::EOPNOTSUPP);
        assert!(
            refused.next.ends_with("disks/vdc/snapshots/all"),
            "{refused}"
        );
    }
}
