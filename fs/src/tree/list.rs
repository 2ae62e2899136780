//! What stands in which directory, by name: lookup, listing, existence and paths. Pure.

use super::{
    DiskFile, GroupKey, GroupKind, Inside, JobFile, NodeKey, PointFile, RootFile, Section,
    backup_key, checkpoint, checkpoints, external_key, find_group, find_point, group_points,
    groups, has_inside, inside::volume_note, internal_key, layer_dir_name, layer_key, live_key,
    point_place, saving, short_name,
};
use crate::model::{BackupKind, Contents, Disk, Model};

/// The directory of the disks.
const DISKS: &str = "disks";
/// The directory of the checkpoints.
const CHECKPOINTS: &str = "checkpoints";

/// The directory of the kinds of backups, of a disk or of all.
const BACKUPS: &str = "backups";

/// What the object of a group or checkpoint is called; a disk of that name has no link.
const GROUP_JSON: &str = "point.json";
/// The files that the disks of a group hold together; the same.
const GROUP_FILES: &str = "files";

/// What `name` is in the directory `parent`.
pub fn lookup(model: &Model, parent: &NodeKey, name: &str) -> Option<NodeKey> {
    entries(model, parent, Some(name)).pop().map(|(_, key)| key)
}

/// The entries of a directory: name, key, and whether it is a directory itself.
pub fn children(model: &Model, parent: &NodeKey) -> Vec<(String, NodeKey, bool)> {
    entries(model, parent, None)
        .into_iter()
        .map(|(name, key)| {
            let is_dir = key.is_dir();
            (name, key, is_dir)
        })
        .collect()
}

/// What `name` is in a section of a disk.
pub fn section_entry(disk: &Disk, section: Section, name: &str) -> Option<NodeKey> {
    let mut wanted = Wanted::new(Some(name));
    add_section(disk, section, &mut wanted);
    wanted.found.pop().map(|(_, key)| key)
}

/// Entries of a directory as they are gathered: all, or only those of one name.
struct Wanted<'a> {
    name: Option<&'a str>,
    found: Vec<(String, NodeKey)>,
}

impl<'a> Wanted<'a> {
    fn new(name: Option<&'a str>) -> Self {
        let found = Vec::new();
        Self { name, found }
    }

    fn add(&mut self, name: &str, key: impl FnOnce() -> Option<NodeKey>) {
        if self.name.is_none_or(|wanted| wanted == name)
            && let Some(key) = key()
        {
            self.found.push((name.to_owned(), key));
        }
    }
}

/// The entries of a directory, or only those called `name`.
fn entries(model: &Model, parent: &NodeKey, name: Option<&str>) -> Vec<(String, NodeKey)> {
    let mut wanted = Wanted::new(name);
    match parent {
        NodeKey::Root if model.vm.contents == Contents::Backups => {
            for file in RootFile::OF_BACKUPS {
                wanted.add(file.name(), || Some(NodeKey::RootFile(file)));
            }
            let mut vms: Vec<&str> = shelved(model).map(|(vm, _, _)| vm).collect();
            vms.dedup();
            for vm in vms {
                wanted.add(vm, || Some(NodeKey::Vm(vm.to_owned())));
            }
        }
        NodeKey::Vm(vm) if exists(model, parent) => {
            wanted.add(DISKS, || Some(NodeKey::VmDisks(vm.clone())));
        }
        NodeKey::VmDisks(vm) => {
            for (_, name, disk) in shelved(model).filter(|(of, _, _)| of == vm) {
                wanted.add(name, || Some(NodeKey::Disk(disk.name.clone())));
            }
        }
        NodeKey::Disk(disk) if model.vm.contents == Contents::Backups => {
            if model.disk(disk).is_some() {
                let wait = DiskFile::Wait;
                wanted.add(wait.name(), || Some(NodeKey::DiskFile(disk.clone(), wait)));
                add_sections(disk, |section| *section == Section::Jobs, &mut wanted);
                wanted.add(BACKUPS, || Some(NodeKey::Backups(Some(disk.clone()))));
            }
        }
        NodeKey::Root => {
            for file in RootFile::ALL {
                wanted.add(file.name(), || Some(NodeKey::RootFile(file)));
            }
            for kind in GroupKind::ALL {
                wanted.add(kind.name(), || Some(NodeKey::Groups(kind)));
            }
            wanted.add(CHECKPOINTS, || Some(NodeKey::Checkpoints));
            wanted.add(BACKUPS, || Some(NodeKey::Backups(None)));
            wanted.add(DISKS, || Some(NodeKey::Disks));
        }
        NodeKey::Groups(kind) => {
            for group in groups(model, *kind) {
                wanted.add(&group.name, || Some(NodeKey::Group(group.key())));
            }
        }
        NodeKey::Group(key) => add_group(model, key, &mut wanted),
        NodeKey::Checkpoints => {
            let known = checkpoints(model);
            let names = known.iter().map(|known| known.name.as_str());
            for name in names.chain(saving(model)) {
                wanted.add(name, || Some(NodeKey::Checkpoint(name.to_owned())));
            }
        }
        NodeKey::Checkpoint(name) if exists(model, parent) => {
            add_checkpoint(model, name, &mut wanted);
        }
        NodeKey::Disks => {
            for disk in &model.disks {
                wanted.add(&disk.name, || Some(NodeKey::Disk(disk.name.clone())));
            }
        }
        NodeKey::Disk(disk) if model.disk(disk).is_some() => {
            for file in DiskFile::ALL {
                wanted.add(file.name(), || Some(NodeKey::DiskFile(disk.clone(), file)));
            }
            let own = |section: &Section| section.backup().is_none();
            add_sections(disk, own, &mut wanted);
            wanted.add(BACKUPS, || Some(NodeKey::Backups(Some(disk.clone()))));
        }
        NodeKey::Backups(Some(disk)) if model.disk(disk).is_some() => {
            add_sections(disk, |section| section.backup().is_some(), &mut wanted);
        }
        NodeKey::Backups(None) => {
            for kind in BackupKind::ALL.map(GroupKind::Backup) {
                wanted.add(kind.name(), || Some(NodeKey::Groups(kind)));
            }
        }
        NodeKey::Section(disk, section) => {
            if let Some(disk) = model.disk(disk) {
                add_section(disk, *section, &mut wanted);
            }
        }
        NodeKey::Point(point) => {
            if let Some(found) = find_point(model, point) {
                for file in PointFile::ALL.into_iter().filter(|file| file.is_in(&found)) {
                    wanted.add(file.name(), || {
                        Some(NodeKey::PointFile(point.clone(), file))
                    });
                }
                for inside in Inside::DIRECTORIES {
                    let there = PointFile::DiskRaw.is_in(&found);
                    wanted.add(&inside.name(), || {
                        there.then(|| NodeKey::Inside(point.clone(), inside))
                    });
                }
            }
        }
        // what is in there is on the disks
        NodeKey::Inside(..) | NodeKey::GroupFiles(_) => (),
        NodeKey::Job(disk, id) if exists(model, parent) => {
            for file in JobFile::ALL {
                wanted.add(file.name(), || {
                    Some(NodeKey::JobFile(disk.clone(), id.clone(), file))
                });
            }
        }
        // gone meanwhile
        NodeKey::Checkpoint(_)
        | NodeKey::Vm(_)
        | NodeKey::Disk(_)
        | NodeKey::Backups(Some(_))
        | NodeKey::Job(..) => (),
        // no directories
        NodeKey::RootFile(_)
        | NodeKey::GroupJson(_)
        | NodeKey::GroupLink(..)
        | NodeKey::GroupNote(..)
        | NodeKey::CheckpointJson(_)
        | NodeKey::CheckpointLink(..)
        | NodeKey::DiskFile(..)
        | NodeKey::Bitmap(..)
        | NodeKey::PointFile(..)
        | NodeKey::JobFile(..) => (),
    }
    wanted.found
}

/// The disks of a mount of backups: VM, name there, disk.
fn shelved(model: &Model) -> impl Iterator<Item = (&str, &str, &Disk)> {
    let disks = model.disks.iter();
    disks.filter_map(|disk| disk.name.split_once('/').map(|(vm, name)| (vm, name, disk)))
}

/// Those directories of a disk.
fn add_sections(disk: &str, which: impl Fn(&Section) -> bool, wanted: &mut Wanted<'_>) {
    for section in Section::ALL.into_iter().filter(which) {
        wanted.add(section.name(), || {
            Some(NodeKey::Section(disk.to_owned(), section))
        });
    }
}

fn add_group(model: &Model, key: &GroupKey, wanted: &mut Wanted<'_>) {
    let Some(group) = find_group(model, key) else {
        return;
    };
    wanted.add(GROUP_JSON, || Some(NodeKey::GroupJson(key.clone())));
    let disks = group.members.iter().map(|(disk, _)| &disk.name);
    for disk in disks.filter(|disk| ![GROUP_JSON, GROUP_FILES].contains(&disk.as_str())) {
        wanted.add(disk, || Some(NodeKey::GroupLink(key.clone(), disk.clone())));
    }
    if has_together(model, key) {
        wanted.add(GROUP_FILES, || Some(NodeKey::GroupFiles(key.clone())));
    }
}

fn add_checkpoint(model: &Model, name: &str, wanted: &mut Wanted<'_>) {
    wanted.add(GROUP_JSON, || {
        Some(NodeKey::CheckpointJson(name.to_owned()))
    });
    let Some(found) = checkpoint(model, name) else {
        return;
    };
    let disks = found.members.iter().map(|(disk, _)| &disk.name);
    for disk in disks.filter(|disk| *disk != GROUP_JSON) {
        wanted.add(disk, || {
            Some(NodeKey::CheckpointLink(name.to_owned(), disk.clone()))
        });
    }
}

fn add_section(disk: &Disk, section: Section, wanted: &mut Wanted<'_>) {
    match section {
        Section::Layers => {
            for (index, layer) in disk.layers.iter().enumerate() {
                if layer.shown() {
                    let name = layer_dir_name(index, layer);
                    wanted.add(&name, || Some(layer_key(disk, layer)));
                }
            }
        }
        Section::Snapshots => {
            let beside = disk.branches.iter().map(|branch| &branch.layer);
            let layers = disk.layers.iter().filter(|layer| layer.shown());
            for layer in layers.chain(beside) {
                if let Some(name) = layer.point_name() {
                    wanted.add(name, || external_key(disk, layer));
                }
            }
        }
        Section::Internal => {
            for internal in &disk.internals {
                wanted.add(&internal.name, || internal_key(disk, internal));
            }
        }
        Section::Live => {
            for live in &disk.lives {
                wanted.add(&live.record.name, || Some(live_key(disk, live)));
            }
        }
        Section::Bitmaps => {
            for bitmap in &disk.bitmaps {
                wanted.add(&bitmap.name, || {
                    Some(NodeKey::Bitmap(disk.name.clone(), bitmap.name.clone()))
                });
            }
        }
        Section::Backup(kind) => {
            let backups = disk.backups.iter();
            for backup in backups.filter(|backup| backup.manifest.kind == kind) {
                wanted.add(&backup.manifest.name, || Some(backup_key(disk, backup)));
            }
        }
        Section::Jobs => {
            for job in &disk.jobs {
                wanted.add(&job.id, || {
                    Some(NodeKey::Job(disk.name.clone(), job.id.clone()))
                });
            }
        }
    }
}

/// Whether the disks of a group can hold anything together: there are several that can be read.
fn has_together(model: &Model, key: &GroupKey) -> bool {
    let points = group_points(model, key);
    !points.is_empty() && points.iter().all(|point| has_inside(model, point))
}

/// Whether what `key` means is there in this model.
pub fn exists(model: &Model, key: &NodeKey) -> bool {
    match key {
        NodeKey::Root
        | NodeKey::RootFile(_)
        | NodeKey::Groups(_)
        | NodeKey::Checkpoints
        | NodeKey::Backups(None)
        | NodeKey::Disks => true,
        NodeKey::Checkpoint(name) | NodeKey::CheckpointJson(name) => {
            saving(model) == Some(name) || checkpoint(model, name).is_some()
        }
        NodeKey::CheckpointLink(name, disk) => {
            checkpoint(model, name).is_some_and(|found| found.member(disk).is_some())
        }
        NodeKey::Group(id) | NodeKey::GroupJson(id) => find_group(model, id).is_some(),
        NodeKey::GroupLink(id, disk) => {
            find_group(model, id).is_some_and(|group| group.member(disk).is_some())
        }
        NodeKey::GroupFiles(id) | NodeKey::GroupNote(id, _) => has_together(model, id),
        NodeKey::Vm(vm) | NodeKey::VmDisks(vm) => shelved(model).any(|(of, _, _)| of == vm),
        NodeKey::Disk(disk)
        | NodeKey::DiskFile(disk, _)
        | NodeKey::Section(disk, _)
        | NodeKey::Backups(Some(disk)) => model.disk(disk).is_some(),
        NodeKey::Bitmap(disk, name) => model
            .disk(disk)
            .is_some_and(|disk| disk.bitmaps.iter().any(|bitmap| bitmap.name == *name)),
        NodeKey::Point(point) => find_point(model, point).is_some(),
        NodeKey::PointFile(point, file) => {
            find_point(model, point).is_some_and(|found| file.is_in(&found))
        }
        NodeKey::Inside(point, _) => has_inside(model, point),
        NodeKey::Job(disk, id) | NodeKey::JobFile(disk, id, _) => model
            .disk(disk)
            .is_some_and(|disk| disk.jobs.iter().any(|job| job.id == *id)),
    }
}

/// The directory it stands in; the root is its own.
pub fn parent(key: &NodeKey) -> NodeKey {
    match key {
        NodeKey::Groups(GroupKind::Backup(_)) => NodeKey::Backups(None),
        NodeKey::Root
        | NodeKey::RootFile(_)
        | NodeKey::Groups(GroupKind::Snapshots | GroupKind::Live)
        | NodeKey::Checkpoints
        | NodeKey::Backups(None)
        | NodeKey::Disks => NodeKey::Root,
        NodeKey::Checkpoint(_) => NodeKey::Checkpoints,
        NodeKey::CheckpointJson(name) | NodeKey::CheckpointLink(name, _) => {
            NodeKey::Checkpoint(name.clone())
        }
        NodeKey::Group(key) => NodeKey::Groups(key.kind),
        NodeKey::GroupJson(id) | NodeKey::GroupLink(id, _) | NodeKey::GroupFiles(id) => {
            NodeKey::Group(id.clone())
        }
        NodeKey::GroupNote(id, _) => NodeKey::GroupFiles(id.clone()),
        NodeKey::Vm(_) => NodeKey::Root,
        NodeKey::VmDisks(vm) => NodeKey::Vm(vm.clone()),
        NodeKey::Disk(disk) => match disk.split_once('/') {
            Some((vm, _)) => NodeKey::VmDisks(vm.to_owned()),
            None => NodeKey::Disks,
        },
        NodeKey::Section(disk, Section::Backup(_)) => NodeKey::Backups(Some(disk.clone())),
        NodeKey::DiskFile(disk, _) | NodeKey::Section(disk, _) | NodeKey::Backups(Some(disk)) => {
            NodeKey::Disk(disk.clone())
        }
        NodeKey::Bitmap(disk, _) => NodeKey::Section(disk.clone(), Section::Bitmaps),
        NodeKey::Point(point) => NodeKey::Section(point.disk.clone(), point.kind.section()),
        NodeKey::PointFile(point, _) => NodeKey::Point(point.clone()),
        NodeKey::Inside(point, inside) => inside.parent(point),
        NodeKey::Job(disk, _) => NodeKey::Section(disk.clone(), Section::Jobs),
        NodeKey::JobFile(disk, id, _) => NodeKey::Job(disk.clone(), id.clone()),
    }
}

/// The path below the mount point, for the log; "/" is the root. A point that is gone is shown
/// by its identity.
pub fn path_of(model: &Model, key: &NodeKey) -> String {
    let name = match key {
        NodeKey::Root => return "/".to_owned(),
        NodeKey::RootFile(file) => return format!("/{}", file.name()),
        NodeKey::Groups(kind) => kind.name().to_owned(),
        NodeKey::Disks => return format!("/{DISKS}"),
        NodeKey::Checkpoints => return format!("/{CHECKPOINTS}"),
        NodeKey::Checkpoint(name) => name.clone(),
        NodeKey::Group(id) => match find_group(model, id) {
            Some(group) => group.name,
            None => format!("({})", id.id),
        },
        NodeKey::GroupJson(_) | NodeKey::CheckpointJson(_) => GROUP_JSON.to_owned(),
        NodeKey::GroupLink(_, disk) | NodeKey::CheckpointLink(_, disk) => disk.clone(),
        NodeKey::GroupFiles(_) => GROUP_FILES.to_owned(),
        NodeKey::GroupNote(_, name) => volume_note(name),
        NodeKey::Vm(vm) => return format!("/{vm}"),
        NodeKey::VmDisks(_) => DISKS.to_owned(),
        NodeKey::Disk(disk) => short_name(disk).to_owned(),
        NodeKey::DiskFile(_, file) => file.name().to_owned(),
        NodeKey::Section(_, section) => section.name().to_owned(),
        NodeKey::Backups(None) => return format!("/{BACKUPS}"),
        NodeKey::Backups(Some(_)) => BACKUPS.to_owned(),
        NodeKey::Bitmap(_, name) => name.clone(),
        NodeKey::Point(point) => match point_place(model, point) {
            Some((_, _, name)) => name,
            None => format!("({})", point.identity),
        },
        NodeKey::PointFile(_, file) => file.name().to_owned(),
        NodeKey::Inside(_, inside) => inside.name(),
        NodeKey::Job(_, id) => id.clone(),
        NodeKey::JobFile(_, _, file) => file.name().to_owned(),
    };
    match parent(key) {
        NodeKey::Root => format!("/{name}"),
        above => format!("{}/{name}", path_of(model, &above)),
    }
}

#[cfg(test)]
mod tests {
    use super::{children, exists, lookup, parent, path_of};
    use crate::model::Model;
    use crate::tree::{GroupKey, GroupKind, NodeKey, RootFile, Section, sample};

    fn names(model: &Model, key: &NodeKey) -> Vec<String> {
        children(model, key)
            .into_iter()
            .map(|(name, _, _)| name)
            .collect()
    }

    fn section(section: Section) -> NodeKey {
        NodeKey::Section("vda".into(), section)
    }

    #[test]
    fn the_sections_list_what_the_contract_says() {
        let model = sample::two_disks();
        assert_eq!(
            names(&model, &NodeKey::Root),
            [
                "vm.json",
                "log",
                "events",
                "metrics",
                "README.txt",
                "rollback",
                "wait",
                "snapshots",
                "live",
                "checkpoints",
                "backups",
                "disks"
            ]
        );
        let backups = NodeKey::Backups(None);
        let kinds = ["full", "incremental", "top", "mirror"];
        assert_eq!(names(&model, &backups), kinds);
        let own = NodeKey::Backups(Some("vda".into()));
        assert_eq!(names(&model, &own), kinds);
        let full = lookup(&model, &backups, "full").expect("it is listed");
        assert_eq!(path_of(&model, &full), "/backups/full");
        assert_eq!(parent(&full), backups);
        assert_eq!(names(&model, &NodeKey::Disks), ["vda", "vdb"]);
        assert_eq!(
            names(&model, &section(Section::Layers)),
            ["0-base", "1-web1.before"]
        );
        assert_eq!(names(&model, &section(Section::Snapshots)), ["before"]);
        assert_eq!(names(&model, &section(Section::Internal)), ["clean"]);
        assert_eq!(names(&model, &section(Section::Jobs)), ["qmpfs-stream-1"]);
    }

    #[test]
    fn what_is_leaving_is_listed_nowhere() {
        let mut model = sample::two_disks();
        model.disks[0].layers[1].leaving = true;
        assert_eq!(names(&model, &section(Section::Layers)), ["0-base"]);
        assert!(names(&model, &section(Section::Snapshots)).is_empty());
        assert_eq!(lookup(&model, &section(Section::Snapshots), "before"), None);
    }

    #[test]
    fn a_group_lists_its_members_as_links() {
        let model = sample::two_disks_at_one_instant();
        assert_eq!(
            names(&model, &NodeKey::Groups(GroupKind::Snapshots)),
            ["all"]
        );
        let group =
            lookup(&model, &NodeKey::Groups(GroupKind::Snapshots), "all").expect("it is listed");
        let key = |id: &str| GroupKey {
            kind: GroupKind::Snapshots,
            id: id.into(),
        };
        assert_eq!(group, NodeKey::Group(key("group-all")));
        assert_eq!(names(&model, &group), ["point.json", "vda", "vdc", "files"]);
        assert_eq!(lookup(&model, &group, "vdb"), None);
        assert!(!exists(&model, &NodeKey::Group(key("gone"))));
    }

    #[test]
    fn every_listed_entry_is_looked_up_under_its_path() {
        let model = sample::two_disks_at_one_instant();
        let mut waiting = vec![NodeKey::Root];
        let mut seen = 0;
        while let Some(directory) = waiting.pop() {
            for (name, key, is_dir) in children(&model, &directory) {
                assert_eq!(
                    lookup(&model, &directory, &name).as_ref(),
                    Some(&key),
                    "{name}"
                );
                assert_eq!(parent(&key), directory);
                assert!(exists(&model, &key));
                assert_eq!(key.is_dir(), is_dir);
                let path = path_of(&model, &key);
                assert!(path.ends_with(&name) && path.starts_with('/'), "{path}");
                if is_dir {
                    waiting.push(key);
                }
                seen += 1;
            }
        }
        assert!(seen > 40, "{seen}");
        assert_eq!(path_of(&model, &section(Section::Jobs)), "/disks/vda/jobs");
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let model = sample::two_disks();
        assert_eq!(lookup(&model, &NodeKey::Root, "nothing"), None);
        assert_eq!(lookup(&model, &NodeKey::Disks, "vdz"), None);
        assert_eq!(
            lookup(&model, &NodeKey::Disk("vdz".into()), "disk.json"),
            None
        );
        assert_eq!(
            lookup(&model, &NodeKey::RootFile(RootFile::VmJson), "x"),
            None
        );
        assert!(!exists(&model, &NodeKey::Job("vda".into(), "gone".into())));
        assert!(children(&model, &NodeKey::Disk("vdz".into())).is_empty());
    }
}
