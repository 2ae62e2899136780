//! What is written down about a point where nothing of QEMU's has a place for it: in extended
//! attributes of the files. Knows no file and no attribute.

use std::collections::BTreeMap;

/// What is kept in the extended attribute of a sealed file.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PointRecord {
    /// Random, for ever: the point's identity.
    pub id: String,
    /// The name the user gave.
    pub name: String,
    /// The instant, RFC 3339 UTC.
    pub time: String,
    /// "crash": as after a power cut; "filesystem": the guest's filesystems were frozen.
    pub consistency: String,
    /// How long they were, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<u64>,
    /// Why they were not, though that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce_error: Option<String>,
    /// The inode it was written for; a copy of the file has another and is not ours.
    pub inode: u64,
    /// The snapshot of all disks that it was taken with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupRecord>,
}

/// What a snapshot of all disks writes down on each of its points.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GroupRecord {
    /// Random, for ever: the group's identity.
    pub id: String,
    /// Its points: what the disk was called then, and the id of the point's record.
    pub members: BTreeMap<String, String>,
    /// The disks that could not take part, and why.
    pub missing: BTreeMap<String, String>,
}

/// Longest group in a record, as JSON. On ext4 the attributes of a file have 4 KiB together, and
/// while a merge runs another record stands beside the file's own.
const GROUP_MAX: usize = 640;

impl GroupRecord {
    /// The same, short enough for a record: of a crowd of disks the reasons are left out first, then
    /// the names of the missing, then of members (which are found by their own records; that one of
    /// them is gone cannot be told then).
    pub fn fitted(mut self) -> Self {
        let too_long =
            |group: &Self| serde_json::to_string(group).map_or(0, |text| text.len()) > GROUP_MAX;
        if too_long(&self) {
            self.missing.values_mut().for_each(String::clear);
        }
        while too_long(&self)
            && self
                .missing
                .pop_last()
                .or_else(|| self.members.pop_last())
                .is_some()
        {}
        self
    }
}

/// What is kept about an internal snapshot beside the image's own table.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InternalRecord {
    /// Its id in the table.
    pub id: String,
    /// Its time in the table, in nanoseconds since 1970: another one of that id has another.
    pub time: u64,
    /// As in [`PointRecord`].
    pub consistency: String,
    /// As in [`PointRecord`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<u64>,
    /// As in [`PointRecord`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce_error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{GROUP_MAX, GroupRecord};

    fn group(members: usize, missing: usize) -> GroupRecord {
        GroupRecord {
            id: "0123456789ab".into(),
            members: (0..members)
                .map(|n| (format!("disk{n}"), format!("{n:012x}")))
                .collect(),
            missing: (0..missing)
                .map(|n| (format!("raw{n}"), "it is raw ".repeat(20)))
                .collect(),
        }
    }

    #[test]
    fn a_crowd_of_disks_fits_into_an_attribute() {
        assert_eq!(group(3, 1).fitted(), group(3, 1));
        let short = group(3, 5).fitted();
        assert_eq!(short.missing.len(), 5);
        assert!(short.missing.values().all(String::is_empty));
        for crowd in [group(20, 200), group(200, 200), group(3, 1000)] {
            let fitted = crowd.clone().fitted();
            let text = serde_json::to_string(&fitted).expect("it has string keys");
            assert!(text.len() <= GROUP_MAX, "{}", text.len());
            assert_eq!(fitted.id, crowd.id);
            assert!(!fitted.members.is_empty());
        }
    }

    #[test]
    fn records_without_a_group_are_read() {
        let old = r#"{"id":"1","name":"a","time":"","consistency":"crash","inode":7,"version":1}"#;
        let record: super::PointRecord = serde_json::from_str(old).expect("as it was written");
        assert_eq!(record.group, None);
        let text = serde_json::to_string(&record).expect("it has string keys");
        assert!(!text.contains("group"), "{text}");
    }
}
