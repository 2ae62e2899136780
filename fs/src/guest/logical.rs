//! Logical volumes of LVM2 on the partitions of one disk: which there are, and where their bytes are.

use super::Volume;
use qmpfs_guestfs::lvm::{Group, Layout, Physical};
use qmpfs_guestfs::{Error, Kind, Part, Partition, ReadAt};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

/// Logical volumes are numbered from here on, behind all partitions. Nobody sees these numbers.
const FIRST: u32 = 1 << 16;
/// Logical volumes of one disk that are shown.
const VOLUMES_MAX: usize = 1024;
/// The longest name of one that a directory can have.
const NAME_MAX: usize = 255;

/// Where the bytes of a logical volume are.
#[derive(Debug)]
pub struct Logical {
    layout: Layout,
    /// The first byte on the disk of each physical volume.
    starts: HashMap<String, u64>,
}

impl Logical {
    /// The stretches of the disk that are `length` bytes from `offset` on; None if some are behind the end.
    pub(super) fn pieces(&self, offset: u64, length: u64) -> Option<Vec<(u64, u64)>> {
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < length {
            let piece = self
                .layout
                .piece(offset.checked_add(done)?, length - done)?;
            let start = self.starts.get(piece.uuid)?.checked_add(piece.start)?;
            pieces.push((start, piece.length));
            done += piece.length;
        }
        Some(pieces)
    }
}

/// A disk as one of its logical volumes has it.
pub(super) struct OnDisk<'a, S> {
    pub(super) disk: &'a S,
    pub(super) volume: &'a Logical,
}

impl<S: ReadAt> ReadAt for OnDisk<'_, S> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let pieces = self.volume.pieces(offset, buffer.len() as u64);
        let mut rest = buffer;
        for (start, length) in pieces.ok_or(io::ErrorKind::UnexpectedEof)? {
            // They are as long together as the buffer is.
            let (here, after) = rest.split_at_mut(length as usize);
            self.disk.read_at(start, here)?;
            rest = after;
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.volume.layout.length()
    }
}

/// What was found on all physical volumes of a disk.
#[derive(Default)]
pub(super) struct Groups {
    /// Those that can be read, and are not looked into yet.
    pub(super) volumes: Vec<(Partition, Arc<Logical>)>,
    /// What is to be said of those that cannot, for each in a line.
    pub(super) notes: Vec<String>,
}

/// Finds the logical volumes on the partitions of a disk.
pub(super) fn find<S: ReadAt>(disk: &S, partitions: &[Volume]) -> Result<Groups, Error> {
    let mut found = Groups::default();
    let (mut places, mut groups) = (HashMap::new(), HashMap::<String, Group>::new());
    let members = partitions.iter();
    for member in members.filter(|volume| volume.found.kind == Kind::Lvm2) {
        let Partition {
            number,
            start,
            length,
            ..
        } = member.partition;
        let physical = match Physical::read(&Part::new(disk, start, length)) {
            Ok(physical) => physical,
            Err(Error::Io(error)) => return Err(Error::Io(error)),
            Err(error) => {
                found.notes.push(format!("partition {number}: {error}"));
                continue;
            }
        };
        places.insert(physical.uuid, (start, length));
        if let Some(group) = physical.group {
            let known = groups.get(&group.uuid);
            if known.is_none_or(|known| known.sequence < group.sequence) {
                groups.insert(group.uuid.clone(), group);
            }
        }
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by(|a, b| (&a.name, &a.uuid).cmp(&(&b.name, &b.uuid)));
    let mut names = HashSet::new();
    for group in groups {
        for logical in group.logical {
            let name = name(&group.name, &logical.name);
            let layout = logical
                .layout
                .map_err(|kind| format!("its kind, {kind}, is not read here"));
            let placed = layout.and_then(|layout| placed(layout, &places));
            let has_place = found.volumes.len() < VOLUMES_MAX && name.len() <= NAME_MAX;
            match placed {
                Ok(logical) if has_place && names.insert(name.clone()) => {
                    let partition = Partition {
                        number: FIRST + found.volumes.len() as u32,
                        start: 0,
                        length: logical.layout.length(),
                        kind: String::new(),
                        name,
                    };
                    found.volumes.push((partition, Arc::new(logical)));
                }
                Ok(_) => found
                    .notes
                    .push(format!("{name}: one of that name is shown already")),
                Err(why) => found.notes.push(format!("{name}: {why}")),
            }
        }
    }
    found.notes.truncate(VOLUMES_MAX);
    Ok(found)
}

/// As it is called in `/dev/mapper`.
fn name(group: &str, logical: &str) -> String {
    let part = |name: &str| name.replace('-', "--");
    format!("{}-{}", part(group), part(logical))
}

/// A volume all of whose bytes are on this disk; or why it is not shown.
fn placed(layout: Layout, places: &HashMap<String, (u64, u64)>) -> Result<Logical, String> {
    for (area, length) in layout.areas() {
        let Some((_, room)) = places.get(&area.uuid) else {
            return Err("a part of it is on another disk".to_owned());
        };
        let end = area.start.checked_add(length);
        if end.is_none_or(|end| end > *room) {
            return Err("a part of it lies behind the end of its partition".to_owned());
        }
    }
    let starts = places
        .iter()
        .map(|(uuid, (start, _))| (uuid.clone(), *start));
    Ok(Logical {
        layout,
        starts: starts.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn names_are_those_of_the_device_mapper() {
        assert_eq!(name("debian-vg", "root"), "debian--vg-root");
        assert_eq!(name("a", "b-c"), "a-b--c");
    }
}
