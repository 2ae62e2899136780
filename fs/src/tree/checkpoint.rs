//! Checkpoints: internal snapshots of several disks that were taken together with the RAM. They
//! are found in the disks' own snapshot tables, whoever made them: one name and one instant, and
//! the state of the VM in one of them. There is no other list. Pure.

use super::{first_free, internal_key};
use crate::model::{Disk, Internal, Model, Role, StateVerb};
use std::time::SystemTime;

/// One instant of the whole VM, as much of it as is there.
#[derive(Debug, Clone)]
pub struct Checkpoint<'a> {
    /// Its directory's name.
    pub name: String,
    /// What QEMU calls it.
    pub tag: &'a str,
    /// The instant.
    pub time: SystemTime,
    /// Its parts, by disk.
    pub members: Vec<(&'a Disk, &'a Internal)>,
    /// The part that holds the RAM.
    pub state: (&'a Disk, &'a Internal),
    /// Disks of the VM that it has no part of and ought to.
    pub absent: Vec<&'a Disk>,
}

impl<'a> Checkpoint<'a> {
    fn of(model: &'a Model, state: (&'a Disk, &'a Internal), name: String) -> Self {
        let (tag, time) = (state.1.tag.as_str(), state.1.time);
        let part = |disk: &'a Disk| {
            let mut here = shown(disk);
            let internal = here.find(|it| it.tag == tag && it.time == time)?;
            Some((disk, internal))
        };
        let members: Vec<_> = model.disks.iter().filter_map(part).collect();
        let absent = model.disks.iter().filter(|disk| {
            let has_part = members.iter().any(|(member, _)| member.name == disk.name);
            disk.state_part.role == Role::Written && !has_part
        });
        Checkpoint {
            name,
            tag,
            time,
            absent: absent.collect(),
            members,
            state,
        }
    }

    /// The part of that disk.
    pub fn member(&self, disk: &str) -> Option<&'a Internal> {
        let mut members = self.members.iter();
        members
            .find(|(of, _)| of.name == disk)
            .map(|(_, internal)| *internal)
    }

    /// Why the VM cannot go back to it; None when it can.
    pub fn why_not_loadable(&self) -> Option<String> {
        if self.tag.bytes().all(|letter| letter.is_ascii_digit()) {
            return Some("its name is a number, which QEMU takes for the id of a snapshot".into());
        }
        if let Some(disk) = self.absent.first() {
            return Some(format!("disk '{}' has no part of it", disk.name));
        }
        self.members
            .iter()
            .find_map(|(disk, internal)| self.hindered_by(disk, internal))
    }

    /// What of one disk keeps QEMU from loading it, or from loading the right one.
    fn hindered_by(&self, disk: &Disk, internal: &Internal) -> Option<String> {
        let name = &disk.name;
        if let Some(layer) = internal.layer {
            let file = disk.layers.get(layer)?.path.display();
            return Some(format!(
                "its part of disk '{name}' lies inside the sealed layer {file}: a snapshot was taken after it"
            ));
        }
        if let Some(bitmap) = disk.bitmaps.first() {
            return Some(format!(
                "disk '{name}' has the dirty bitmap '{}', with which QEMU loads no state (rm disks/{name}/bitmaps/* takes it away; the next incremental backup then copies the whole disk)",
                bitmap.tag
            ));
        }
        self.is_confused(disk, internal).then(|| {
            format!(
                "disk '{name}' has another snapshot that QEMU takes for '{}'",
                self.tag
            )
        })
    }

    /// Whether QEMU, which looks for a snapshot by its id first and then for the first of its
    /// name, would take another one than this.
    pub fn is_confused(&self, disk: &Disk, internal: &Internal) -> bool {
        let others = disk
            .internals
            .iter()
            .filter(|it| it.layer == internal.layer);
        let mut others = others.filter(|it| it.id != internal.id);
        others.any(|it| it.id == self.tag || it.tag == self.tag)
    }
}

/// The internal snapshots of a disk that are listed.
fn shown(disk: &Disk) -> impl Iterator<Item = &Internal> {
    let internals = disk.internals.iter();
    internals.filter(|internal| internal_key(disk, internal).is_some())
}

/// All of them, by the disk that holds the RAM.
pub fn checkpoints(model: &Model) -> Vec<Checkpoint<'_>> {
    let mut found: Vec<Checkpoint<'_>> = Vec::new();
    for disk in &model.disks {
        for internal in shown(disk).filter(|internal| internal.vm_state_size > 0) {
            let taken = |name: &str| found.iter().any(|known| known.name == name);
            let name = first_free(&internal.name, '.', taken);
            found.push(Checkpoint::of(model, (disk, internal), name));
        }
    }
    let leaving = model.vm.state_job.as_ref();
    let leaving = leaving.filter(|job| job.verb == StateVerb::Delete);
    found.retain(|known| leaving.is_none_or(|job| job.name != known.name));
    found
}

/// The one of that name.
pub fn checkpoint<'a>(model: &'a Model, name: &str) -> Option<Checkpoint<'a>> {
    checkpoints(model)
        .into_iter()
        .find(|known| known.name == name)
}

/// The one that an internal snapshot is part of.
pub fn checkpoint_of<'a>(
    model: &'a Model,
    disk: &str,
    internal: &Internal,
) -> Option<Checkpoint<'a>> {
    checkpoints(model).into_iter().find(|known| {
        let part = known.member(disk);
        part.is_some_and(|part| part.id == internal.id && part.layer == internal.layer)
    })
}

/// The name of one that is being made.
pub fn saving(model: &Model) -> Option<&str> {
    let job = model.vm.state_job.as_ref()?;
    let is_new = job.verb == StateVerb::Save && checkpoint(model, &job.name).is_none();
    is_new.then_some(&job.name)
}

/// Where the link to a part leads.
pub fn checkpoint_link(model: &Model, name: &str, disk: &str) -> Option<String> {
    let found = checkpoint(model, name)?;
    let part = found.member(disk)?;
    Some(format!("../../disks/{disk}/internal/{}", part.name))
}

#[cfg(test)]
mod tests {
    use super::{checkpoint, checkpoint_link, checkpoint_of, checkpoints, saving};
    use crate::model::{Bitmap, Model, Role, StateJob, StateVerb};
    use crate::tree::{NodeKey, children, sample};
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn parts_of_one_name_and_instant_belong_together() {
        let model = sample::a_checkpoint();
        let found = checkpoint(&model, "ready").expect("it is there");
        let disks: Vec<_> = found.members.iter().map(|(disk, _)| &disk.name).collect();
        assert_eq!(disks, ["vda", "vdc"]);
        assert_eq!(found.state.0.name, "vda");
        assert_eq!(found.absent.len(), 1, "vdb is raw and is written");
        assert_eq!(
            checkpoint_link(&model, "ready", "vdc").as_deref(),
            Some("../../disks/vdc/internal/ready")
        );
        let vdc = model.disk("vdc").expect("the sample has vdc");
        let of = checkpoint_of(&model, "vdc", &vdc.internals[0]).expect("it is a part");
        assert_eq!(of.name, "ready");
    }

    #[test]
    fn snapshots_without_ram_are_none() {
        assert!(checkpoints(&sample::two_disks()).is_empty());
        let mut model = sample::a_checkpoint();
        model.disks[2].internals[0].time += Duration::from_nanos(1);
        let found = checkpoint(&model, "ready").expect("the RAM is there");
        assert_eq!(found.members.len(), 1);
        assert_eq!(found.absent.len(), 2);
    }

    fn loadable() -> Model {
        let mut model = sample::a_checkpoint();
        model.disks[1].state_part.role = Role::Firmware;
        model
    }

    fn why_not(model: &Model) -> Option<String> {
        checkpoint(model, "ready")
            .expect("it is there")
            .why_not_loadable()
    }

    #[test]
    fn what_qemu_would_mistake_or_leave_half_loaded_is_not_loadable() {
        assert_eq!(why_not(&loadable()), None);
        assert!(why_not(&sample::a_checkpoint()).is_some_and(|why| why.contains("vdb")));
        let mut model = loadable();
        model.disks[2].bitmaps.push(Bitmap {
            name: "b0".into(),
            tag: "b0".into(),
            granularity: 65536,
            count: 0,
            recording: true,
            persistent: true,
            busy: false,
            inconsistent: false,
            end_mark: None,
        });
        assert!(why_not(&model).is_some_and(|why| why.contains("b0")));
        let mut model = loadable();
        model.disks[2].internals[0].layer = Some(0);
        assert!(why_not(&model).is_some_and(|why| why.contains("sealed")));
        let mut model = loadable();
        let mut other = model.disks[0].internals[0].clone();
        other.id = "ready".into();
        model.disks[0].internals.push(other);
        assert!(why_not(&model).is_some_and(|why| why.contains("another")));
    }

    #[test]
    fn one_at_work_is_shown_and_one_that_leaves_is_not() {
        let mut model = sample::a_checkpoint();
        let job = |verb, name: &str| {
            Some(StateJob {
                verb,
                name: name.into(),
                since: UNIX_EPOCH,
            })
        };
        model.vm.state_job = job(StateVerb::Save, "next");
        let names = |model: &Model| -> Vec<String> {
            let listed = children(model, &NodeKey::Checkpoints);
            listed.into_iter().map(|(name, ..)| name).collect()
        };
        assert_eq!(names(&model), ["ready", "next"]);
        let next = children(&model, &NodeKey::Checkpoint("next".into()));
        assert_eq!(next.len(), 1, "point.json");
        model.vm.state_job = job(StateVerb::Delete, "ready");
        assert!(names(&model).is_empty());
        assert_eq!(saving(&model), None);
    }
}
