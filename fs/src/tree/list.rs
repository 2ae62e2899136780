//! What stands in which directory, by name: lookup, listing, existence and paths. Pure.

use super::{
    DiskFile, JobFile, NodeKey, PointFile, Section, external_key, find_group, find_point,
    group_called, groups, internal_key, layer_dir_name, layer_key, point_place,
};
use crate::model::{Disk, Model};

/// The files of the root directory.
const ROOT_FILES: [(&str, NodeKey); 6] = [
    ("vm.json", NodeKey::VmJson),
    ("log", NodeKey::Log),
    ("events", NodeKey::Events),
    ("metrics", NodeKey::Metrics),
    ("README.txt", NodeKey::Readme),
    ("wait", NodeKey::Wait),
];

/// The directories of the root directory.
const ROOT_DIRECTORIES: [(&str, NodeKey); 2] =
    [("snapshots", NodeKey::Snapshots), ("disks", NodeKey::Disks)];

/// What a group's own object is called; a disk of that name has no link.
const GROUP_JSON: &str = "point.json";

/// What `name` is in the directory `parent`.
pub fn lookup(model: &Model, parent: &NodeKey, name: &str) -> Option<NodeKey> {
    match parent {
        NodeKey::Root => {
            let mut entries = ROOT_FILES.iter().chain(&ROOT_DIRECTORIES);
            entries
                .find(|(entry, _)| *entry == name)
                .map(|(_, key)| key.clone())
        }
        NodeKey::Snapshots => {
            group_called(model, name).map(|group| NodeKey::Group(group.record.id.clone()))
        }
        NodeKey::Group(id) => in_group(model, id)
            .into_iter()
            .find(|(entry, _)| entry == name)
            .map(|(_, key)| key),
        NodeKey::Disks => model
            .disk(name)
            .map(|disk| NodeKey::Disk(disk.name.clone())),
        NodeKey::Disk(disk) => {
            let disk = model.disk(disk)?.name.clone();
            let file = DiskFile::ALL.into_iter().find(|file| file.name() == name);
            if let Some(file) = file {
                return Some(NodeKey::DiskFile(disk, file));
            }
            let section = Section::ALL
                .into_iter()
                .find(|section| section.name() == name)?;
            Some(NodeKey::Section(disk, section))
        }
        NodeKey::Section(disk, section) => section_entry(model.disk(disk)?, *section, name),
        NodeKey::Point(point) => {
            find_point(model, point)?;
            let file = PointFile::ALL
                .into_iter()
                .find(|file| file.name() == name)?;
            Some(NodeKey::PointFile(point.clone(), file))
        }
        NodeKey::Job(disk, id) => {
            exists(model, parent).then_some(())?;
            let file = JobFile::ALL.into_iter().find(|file| file.name() == name)?;
            Some(NodeKey::JobFile(disk.clone(), id.clone(), file))
        }
        NodeKey::VmJson
        | NodeKey::Log
        | NodeKey::Events
        | NodeKey::Metrics
        | NodeKey::Readme
        | NodeKey::Wait
        | NodeKey::GroupJson(_)
        | NodeKey::GroupLink(..)
        | NodeKey::DiskFile(..)
        | NodeKey::PointFile(..)
        | NodeKey::JobFile(..) => None,
    }
}

/// The entries of a directory: name, key, and whether it is a directory itself.
pub fn children(model: &Model, parent: &NodeKey) -> Vec<(String, NodeKey, bool)> {
    let entries: Vec<(String, NodeKey)> = match parent {
        NodeKey::Root => {
            let entries = ROOT_FILES.iter().chain(&ROOT_DIRECTORIES);
            entries
                .map(|(name, key)| ((*name).to_owned(), key.clone()))
                .collect()
        }
        NodeKey::Snapshots => groups(model)
            .into_iter()
            .map(|group| (group.name, NodeKey::Group(group.record.id.clone())))
            .collect(),
        NodeKey::Group(id) => in_group(model, id),
        NodeKey::Disks => model
            .disks
            .iter()
            .map(|disk| (disk.name.clone(), NodeKey::Disk(disk.name.clone())))
            .collect(),
        NodeKey::Disk(disk) if model.disk(disk).is_some() => {
            let files = DiskFile::ALL.map(|file| {
                (
                    file.name().to_owned(),
                    NodeKey::DiskFile(disk.clone(), file),
                )
            });
            let sections = Section::ALL.map(|section| {
                (
                    section.name().to_owned(),
                    NodeKey::Section(disk.clone(), section),
                )
            });
            files.into_iter().chain(sections).collect()
        }
        NodeKey::Section(disk, section) => model
            .disk(disk)
            .map(|disk| in_section(disk, *section, None))
            .unwrap_or_default(),
        NodeKey::Point(point) if find_point(model, point).is_some() => PointFile::ALL
            .map(|file| {
                (
                    file.name().to_owned(),
                    NodeKey::PointFile(point.clone(), file),
                )
            })
            .into_iter()
            .collect(),
        NodeKey::Job(disk, id) if exists(model, parent) => JobFile::ALL
            .map(|file| {
                (
                    file.name().to_owned(),
                    NodeKey::JobFile(disk.clone(), id.clone(), file),
                )
            })
            .into_iter()
            .collect(),
        NodeKey::Disk(_)
        | NodeKey::Point(_)
        | NodeKey::Job(..)
        | NodeKey::VmJson
        | NodeKey::Log
        | NodeKey::Events
        | NodeKey::Metrics
        | NodeKey::Readme
        | NodeKey::Wait
        | NodeKey::GroupJson(_)
        | NodeKey::GroupLink(..)
        | NodeKey::DiskFile(..)
        | NodeKey::PointFile(..)
        | NodeKey::JobFile(..) => Vec::new(),
    };
    entries
        .into_iter()
        .map(|(name, key)| {
            let is_dir = key.is_dir();
            (name, key, is_dir)
        })
        .collect()
}

/// The entries of a group.
fn in_group(model: &Model, id: &str) -> Vec<(String, NodeKey)> {
    let Some(group) = find_group(model, id) else {
        return Vec::new();
    };
    let links = group
        .members
        .iter()
        .map(|(disk, _)| disk.name.clone())
        .filter(|disk| disk != GROUP_JSON)
        .map(|disk| (disk.clone(), NodeKey::GroupLink(id.to_owned(), disk)));
    [(GROUP_JSON.to_owned(), NodeKey::GroupJson(id.to_owned()))]
        .into_iter()
        .chain(links)
        .collect()
}

/// What `name` is in a section of a disk.
pub fn section_entry(disk: &Disk, section: Section, name: &str) -> Option<NodeKey> {
    in_section(disk, section, Some(name))
        .pop()
        .map(|(_, key)| key)
}

/// The entries of a section, or only those called `wanted`.
fn in_section(disk: &Disk, section: Section, wanted: Option<&str>) -> Vec<(String, NodeKey)> {
    let fits = |name: &str| wanted.is_none_or(|wanted| wanted == name);
    match section {
        Section::Layers => {
            let layers = disk
                .layers
                .iter()
                .enumerate()
                .filter(|(_, layer)| layer.shown());
            layers
                .map(|(index, layer)| (layer_dir_name(index, layer), layer))
                .filter(|(name, _)| fits(name))
                .map(|(name, layer)| (name, layer_key(disk, layer)))
                .collect()
        }
        Section::Snapshots => disk
            .layers
            .iter()
            .filter(|layer| layer.shown())
            .chain(disk.branches.iter().map(|branch| &branch.layer))
            .filter_map(|layer| Some((layer.point_name()?, external_key(disk, layer)?)))
            .filter(|(name, _)| fits(name))
            .map(|(name, key)| (name.to_owned(), key))
            .collect(),
        Section::Internal => disk
            .internals
            .iter()
            .filter(|internal| fits(&internal.name))
            .filter_map(|internal| Some((internal.name.clone(), internal_key(disk, internal)?)))
            .collect(),
        Section::Jobs => disk
            .jobs
            .iter()
            .filter(|job| fits(&job.id))
            .map(|job| {
                (
                    job.id.clone(),
                    NodeKey::Job(disk.name.clone(), job.id.clone()),
                )
            })
            .collect(),
    }
}

/// Whether what `key` means is there in this model.
pub fn exists(model: &Model, key: &NodeKey) -> bool {
    match key {
        NodeKey::Root
        | NodeKey::VmJson
        | NodeKey::Log
        | NodeKey::Events
        | NodeKey::Metrics
        | NodeKey::Readme
        | NodeKey::Wait
        | NodeKey::Snapshots
        | NodeKey::Disks => true,
        NodeKey::Group(id) | NodeKey::GroupJson(id) => find_group(model, id).is_some(),
        NodeKey::GroupLink(id, disk) => {
            find_group(model, id).is_some_and(|group| group.member(disk).is_some())
        }
        NodeKey::Disk(disk) | NodeKey::DiskFile(disk, _) | NodeKey::Section(disk, _) => {
            model.disk(disk).is_some()
        }
        NodeKey::Point(point) | NodeKey::PointFile(point, _) => find_point(model, point).is_some(),
        NodeKey::Job(disk, id) | NodeKey::JobFile(disk, id, _) => model
            .disk(disk)
            .is_some_and(|disk| disk.jobs.iter().any(|job| job.id == *id)),
    }
}

/// The directory it stands in; the root is its own.
pub fn parent(key: &NodeKey) -> NodeKey {
    match key {
        NodeKey::Root
        | NodeKey::VmJson
        | NodeKey::Log
        | NodeKey::Events
        | NodeKey::Metrics
        | NodeKey::Readme
        | NodeKey::Wait
        | NodeKey::Snapshots
        | NodeKey::Disks => NodeKey::Root,
        NodeKey::Group(_) => NodeKey::Snapshots,
        NodeKey::GroupJson(id) | NodeKey::GroupLink(id, _) => NodeKey::Group(id.clone()),
        NodeKey::Disk(_) => NodeKey::Disks,
        NodeKey::DiskFile(disk, _) | NodeKey::Section(disk, _) => NodeKey::Disk(disk.clone()),
        NodeKey::Point(point) => NodeKey::Section(point.disk.clone(), point.kind.section()),
        NodeKey::PointFile(point, _) => NodeKey::Point(point.clone()),
        NodeKey::Job(disk, _) => NodeKey::Section(disk.clone(), Section::Jobs),
        NodeKey::JobFile(disk, id, _) => NodeKey::Job(disk.clone(), id.clone()),
    }
}

/// The path below the mount point, for the log; "/" is the root. A point that is gone is shown
/// by its identity.
pub fn path_of(model: &Model, key: &NodeKey) -> String {
    let name = match key {
        NodeKey::Root => return "/".to_owned(),
        NodeKey::VmJson
        | NodeKey::Log
        | NodeKey::Events
        | NodeKey::Metrics
        | NodeKey::Readme
        | NodeKey::Wait => {
            let entry = ROOT_FILES.iter().find(|(_, file)| file == key);
            return entry
                .map(|(name, _)| format!("/{name}"))
                .unwrap_or_default();
        }
        NodeKey::Snapshots => return "/snapshots".to_owned(),
        NodeKey::Disks => return "/disks".to_owned(),
        NodeKey::Group(id) => match find_group(model, id) {
            Some(group) => group.name,
            None => format!("({id})"),
        },
        NodeKey::GroupJson(_) => GROUP_JSON.to_owned(),
        NodeKey::GroupLink(_, disk) => disk.clone(),
        NodeKey::Disk(disk) => disk.clone(),
        NodeKey::DiskFile(_, file) => file.name().to_owned(),
        NodeKey::Section(_, section) => section.name().to_owned(),
        NodeKey::Point(point) => match point_place(model, point) {
            Some((_, _, name)) => name,
            None => format!("({})", point.identity),
        },
        NodeKey::PointFile(_, file) => file.name().to_owned(),
        NodeKey::Job(_, id) => id.clone(),
        NodeKey::JobFile(_, _, file) => file.name().to_owned(),
    };
    format!("{}/{name}", path_of(model, &parent(key)))
}

#[cfg(test)]
mod tests {
    use super::{children, exists, lookup, parent, path_of};
    use crate::model::Model;
    use crate::tree::{NodeKey, Section, sample};

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
                "wait",
                "snapshots",
                "disks"
            ]
        );
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
        assert_eq!(names(&model, &NodeKey::Snapshots), ["all"]);
        let group = lookup(&model, &NodeKey::Snapshots, "all").expect("it is listed");
        assert_eq!(group, NodeKey::Group("group-all".into()));
        assert_eq!(names(&model, &group), ["point.json", "vda", "vdc"]);
        assert_eq!(lookup(&model, &group, "vdb"), None);
        assert!(!exists(&model, &NodeKey::Group("gone".into())));
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
        assert_eq!(lookup(&model, &NodeKey::VmJson, "x"), None);
        assert!(!exists(&model, &NodeKey::Job("vda".into(), "gone".into())));
        assert!(children(&model, &NodeKey::Disk("vdz".into())).is_empty());
    }
}
