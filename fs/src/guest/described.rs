//! `filesystems` of point.json: what is in each partition, as far as somebody has looked. Pure.

use super::Volume;
use qmpfs_guestfs::{Journal, Kind, is_known};
use serde::Serialize;

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Described {
    /// Its number, as in `partitions/` and `files/`; 0 is the disk that has no table; None for a logical volume.
    partition: Option<u32>,
    /// What a logical volume is called in `files/`.
    volume: Option<String>,
    /// As blkid calls it.
    #[serde(rename = "type")]
    kind: &'static str,
    label: Option<String>,
    uuid: Option<String>,
    /// Its first byte on the disk; None for a logical volume.
    start: Option<u64>,
    size: u64,
    /// `clean`, `replayed`, `partly` or `left`; None until its files were looked at.
    log: Option<&'static str>,
    /// Why its files cannot be shown, if that was tried.
    error: Option<String>,
}

/// What is known of one filesystem from its reader.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) journal: Option<Journal>,
    pub(super) trouble: Option<String>,
}

/// These partitions and volumes; `read` tells what the reader of each has said.
pub(super) fn described<'a>(
    volumes: impl Iterator<Item = &'a Volume>,
    read: impl Fn(&Volume) -> Read,
) -> Vec<Described> {
    let one = |volume: &Volume| {
        let Read { journal, trouble } = read(volume);
        Described {
            partition: volume.logical.is_none().then_some(volume.partition.number),
            volume: volume.logical.as_ref().map(|_| volume.directory()),
            kind: volume.found.kind.name(),
            label: text(&volume.found.label),
            uuid: text(&volume.found.uuid),
            start: volume.logical.is_none().then_some(volume.partition.start),
            size: volume.partition.length,
            log: journal.map(word),
            error: trouble,
        }
    };
    volumes.map(one).collect()
}

fn text(said: &str) -> Option<String> {
    (!said.is_empty()).then(|| said.to_owned())
}

fn word(journal: Journal) -> &'static str {
    match journal {
        Journal::Clean => "clean",
        Journal::Replayed => "replayed",
        Journal::Partly => "partly",
        Journal::Left => "left",
    }
}

/// The filesystems whose files are shown.
pub fn readable() -> Vec<&'static str> {
    let known = Kind::ALL.into_iter().filter(|kind| is_known(*kind));
    known.map(Kind::name).collect()
}

#[cfg(test)]
mod tests {
    use super::{Read, described, readable};
    use crate::guest::Volume;
    use qmpfs_guestfs::{Found, Journal, Kind, Partition};

    fn volume(number: u32, kind: Kind, label: &str) -> Volume {
        Volume {
            partition: Partition {
                number,
                start: 1 << 20,
                length: 5 << 20,
                kind: String::new(),
                name: String::new(),
            },
            allocated: 0,
            found: Found {
                kind,
                label: label.into(),
                uuid: String::new(),
            },
            logical: None,
        }
    }

    #[test]
    fn what_nobody_has_looked_at_is_not_called_clean() {
        let volumes = [volume(1, Kind::Ext4, "root"), volume(2, Kind::Xfs, "")];
        let all = described(volumes.iter(), |volume| Read {
            journal: (volume.partition.number == 1).then_some(Journal::Replayed),
            trouble: None,
        });
        let json = serde_json::to_value(&all).expect("plain values");
        assert_eq!(json[0]["type"], "ext4");
        assert_eq!(json[0]["label"], "root");
        assert_eq!(json[0]["log"], "replayed");
        assert_eq!(json[1]["partition"], 2);
        assert!(json[1]["log"].is_null() && json[1]["label"].is_null());
        assert!(readable().contains(&"ext4") && !readable().contains(&"swap"));
    }
}
