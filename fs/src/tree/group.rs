//! Points of all disks at one instant: which belong together, from what stands in their own records.
//! There is no other list of them: a group is there as long as one of its points is. Pure.

use super::{Found, PointKey, PointKind, Section};
use crate::model::{BackupKind, Disk, GroupRecord, Model, PointRecord};
use std::collections::HashMap;

/// What kind of points are taken of all disks at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupKind {
    /// External snapshots.
    Snapshots,
    /// Instants of the running disks.
    Live,
    /// Not in the root directory itself, but in its `backups`.
    Backup(BackupKind),
}

impl GroupKind {
    /// Those with a directory in the root directory, as listed.
    pub const ALL: [GroupKind; 2] = [GroupKind::Snapshots, GroupKind::Live];

    /// The section of a disk that lists such a point.
    pub fn section(self) -> Section {
        match self {
            GroupKind::Snapshots => Section::Snapshots,
            GroupKind::Live => Section::Live,
            GroupKind::Backup(kind) => Section::Backup(kind),
        }
    }

    /// Its directory.
    pub fn name(self) -> &'static str {
        self.section().name()
    }
}

/// Points of all disks, by identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// Where they are listed.
    pub kind: GroupKind,
    /// The id of the group in their records.
    pub id: String,
}

/// Points of all disks, as much of them as is left.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    /// Where it is listed.
    pub kind: GroupKind,
    /// Its directory's name.
    pub name: String,
    /// Its points, by disk.
    pub members: Vec<(&'a Disk, &'a PointRecord)>,
    /// What the first of them says of all.
    pub point: &'a PointRecord,
    /// The same, of the group.
    pub record: &'a GroupRecord,
}

impl Group<'_> {
    /// Members that are not there (any more), as their disks were called.
    pub fn gone(&self) -> Vec<&str> {
        let is_here = |id: &str| {
            let mut here = self.members.iter();
            here.any(|(_, record)| record.id == id)
        };
        let members = self.record.members.iter();
        members
            .filter(|(_, id)| !is_here(id))
            .map(|(disk, _)| disk.as_str())
            .collect()
    }

    /// The member of that disk.
    pub fn member(&self, disk: &str) -> Option<&PointRecord> {
        let mut members = self.members.iter();
        members
            .find(|(of, _)| of.name == disk)
            .map(|(_, point)| *point)
    }

    /// Its key.
    pub fn key(&self) -> GroupKey {
        GroupKey {
            kind: self.kind,
            id: self.record.id.clone(),
        }
    }
}

/// The records of a disk's points of a kind.
fn records(disk: &Disk, kind: GroupKind) -> Vec<&PointRecord> {
    match kind {
        GroupKind::Snapshots => {
            let beside = disk.branches.iter().map(|branch| &branch.layer);
            let layers = disk.layers.iter().filter(|layer| layer.shown());
            let records = layers.chain(beside).map(|layer| layer.record.as_ref());
            records.flatten().collect()
        }
        GroupKind::Live => disk.lives.iter().map(|live| &live.record).collect(),
        GroupKind::Backup(kind) => {
            let backups = disk.backups.iter();
            let own = backups.filter(|backup| backup.manifest.kind == kind);
            own.map(|backup| &backup.record).collect()
        }
    }
}

/// Every point that belongs to a group, and what it says of it.
fn members(
    model: &Model,
    kind: GroupKind,
) -> impl Iterator<Item = (&Disk, &PointRecord, &GroupRecord)> {
    model.disks.iter().flat_map(move |disk| {
        let records = records(disk, kind).into_iter();
        records.filter_map(move |point| Some((disk, point, point.group.as_ref()?)))
    })
}

/// All of them, oldest first on the first disk that has one.
pub fn groups(model: &Model, kind: GroupKind) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    for (disk, point, record) in members(model, kind) {
        let index = *known.entry(&record.id).or_insert(groups.len());
        match groups.get_mut(index) {
            Some(group) => group.members.push((disk, point)),
            None => groups.push(Group {
                kind,
                name: point.name.clone(),
                members: vec![(disk, point)],
                point,
                record,
            }),
        }
    }
    let mut namesakes: HashMap<String, usize> = HashMap::new();
    for group in &groups {
        *namesakes.entry(group.name.clone()).or_default() += 1;
    }
    for group in &mut groups {
        if namesakes.get(&group.name).is_some_and(|count| *count > 1) {
            group.name = told_apart(group.point, group.record);
        }
    }
    groups
}

/// Disks that come and go can bring two groups of one name together.
fn told_apart(point: &PointRecord, record: &GroupRecord) -> String {
    format!("{}.{}", point.name, record.id)
}

/// The group of that identity, without making the others.
pub fn find_group<'a>(model: &'a Model, key: &GroupKey) -> Option<Group<'a>> {
    let kind = key.kind;
    let mut own = members(model, kind).filter(|(_, _, record)| record.id == key.id);
    let (disk, point, record) = own.next()?;
    let has_namesake =
        members(model, kind).any(|(_, other, of)| other.name == point.name && of.id != record.id);
    Some(Group {
        kind,
        name: match has_namesake {
            false => point.name.clone(),
            true => told_apart(point, record),
        },
        members: std::iter::once((disk, point))
            .chain(own.map(|(disk, point, _)| (disk, point)))
            .collect(),
        point,
        record,
    })
}

/// The points of all disks that it was taken with.
pub fn group_of<'a>(model: &'a Model, found: &Found<'_>) -> Option<Group<'a>> {
    let (kind, record) = match found {
        Found::Layer { layer, .. } => (GroupKind::Snapshots, layer.record.as_ref()?),
        Found::Branch { branch, .. } => (GroupKind::Snapshots, branch.layer.record.as_ref()?),
        Found::Live { live, .. } => (GroupKind::Live, &live.record),
        Found::Backup { backup, .. } => (GroupKind::Backup(backup.manifest.kind), &backup.record),
        Found::Internal { .. } => return None,
    };
    let id = record.group.as_ref()?.id.clone();
    find_group(model, &GroupKey { kind, id })
}

/// The points of a group, by the names of their disks. None while one is not there any more, or was the only one.
pub fn group_points(model: &Model, key: &GroupKey) -> Vec<PointKey> {
    let Some(group) = find_group(model, key).filter(|group| group.members.len() > 1) else {
        return Vec::new();
    };
    let kind = match key.kind {
        GroupKind::Snapshots => PointKind::External,
        GroupKind::Live => PointKind::Live,
        GroupKind::Backup(kind) => PointKind::Backup(kind),
    };
    let members = group.members.iter();
    let point = |(disk, record): &(&Disk, &PointRecord)| PointKey {
        disk: disk.name.clone(),
        kind,
        identity: record.id.clone(),
    };
    members.map(point).collect()
}

/// Where the link to a member leads.
pub fn link_target(model: &Model, key: &GroupKey, disk: &str) -> Option<String> {
    let group = find_group(model, key)?;
    let point = group.member(disk)?;
    let (section, name) = (key.kind.name(), &point.name);
    Some(match key.kind {
        GroupKind::Snapshots | GroupKind::Live => format!("../../disks/{disk}/{section}/{name}"),
        GroupKind::Backup(_) => format!("../../../disks/{disk}/backups/{section}/{name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::{Group, GroupKey, GroupKind, find_group, group_points, groups, link_target};
    use crate::model::Model;
    use crate::tree::sample;

    fn key(id: &str) -> GroupKey {
        GroupKey {
            kind: GroupKind::Snapshots,
            id: id.into(),
        }
    }

    fn group_called<'a>(model: &'a Model, name: &str) -> Option<Group<'a>> {
        groups(model, GroupKind::Snapshots)
            .into_iter()
            .find(|group| group.name == name)
    }

    #[test]
    fn points_of_one_instant_are_found_by_their_records() {
        let model = sample::two_disks_at_one_instant();
        let found = groups(&model, GroupKind::Snapshots);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "all");
        let disks: Vec<_> = found[0]
            .members
            .iter()
            .map(|(disk, _)| disk.name.as_str())
            .collect();
        assert_eq!(disks, ["vda", "vdc"]);
        assert!(found[0].gone().is_empty());
        assert_eq!(
            link_target(&model, &key("group-all"), "vdc").as_deref(),
            Some("../../disks/vdc/snapshots/all")
        );
        assert_eq!(link_target(&model, &key("group-all"), "vdb"), None);
        let points = group_points(&model, &key("group-all"));
        assert_eq!(points.len(), 2);
        for point in &points {
            assert!(
                crate::tree::find_point(&model, point).is_some(),
                "{point:?}"
            );
        }
    }

    #[test]
    fn a_member_that_was_removed_is_named() {
        let mut model = sample::two_disks_at_one_instant();
        model.disks[2].layers[0].leaving = true;
        let group = find_group(&model, &key("group-all")).expect("vda is left");
        assert_eq!(group.gone(), ["vdc"]);
        assert!(group_points(&model, &key("group-all")).is_empty());
        model.disks[0]
            .layers
            .retain(|layer| !layer.path.ends_with("web1.all.qcow2"));
        assert!(groups(&model, GroupKind::Snapshots).is_empty());
    }

    #[test]
    fn a_disk_that_has_another_name_now_is_still_the_member() {
        let mut model = sample::two_disks_at_one_instant();
        model.disks[2].name = "sdb".into();
        let group = find_group(&model, &key("group-all")).expect("it is there");
        assert!(group.gone().is_empty());
        assert!(group.member("sdb").is_some());
    }

    #[test]
    fn groups_of_one_name_are_told_apart() {
        let mut model = sample::two_disks_at_one_instant();
        let record = model.disks[2].layers[0].record.as_mut().expect("a record");
        record.group.as_mut().expect("a group").id = "other".into();
        let names: Vec<_> = groups(&model, GroupKind::Snapshots)
            .into_iter()
            .map(|group| group.name)
            .collect();
        assert_eq!(names, ["all.group-all", "all.other"]);
        for name in names {
            assert_eq!(
                group_called(&model, &name).map(|group| group.name),
                Some(name)
            );
        }
        assert!(group_called(&model, "all").is_none());
        model.disks[0].layers.pop();
        let left = group_called(&model, "all").expect("one is left");
        assert_eq!(left.record.id, "other");
    }
}
