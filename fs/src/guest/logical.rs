//! Logical volumes of LVM2 on the partitions of some disks of one instant: which there are, and where their bytes
//! are. Those of one disk are its own; those that lie on several are of all together.

use super::Volume;
use super::disks::Piece;
use qmpfs_guestfs::lvm::{Group, Layout, Physical};
use qmpfs_guestfs::{Error, Kind, Part, Partition, ReadAt};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;

/// Logical volumes are numbered from here on, behind all partitions. Nobody sees these numbers.
const FIRST: u32 = 1 << 16;
/// Logical volumes of one disk that are shown.
const VOLUMES_MAX: usize = 1024;
/// Volume groups of one disk that are looked at.
const GROUPS_MAX: usize = 16;
/// The longest name of one that a directory can have, with what a note adds to it.
const NAME_MAX: usize = 251;

/// Where the bytes of a logical volume are.
#[derive(Debug)]
pub struct Logical {
    layout: Layout,
    /// The disk of each physical volume, and its first byte there.
    starts: HashMap<String, (usize, u64)>,
}

impl Logical {
    /// The stretches of the disks that are `length` bytes from `offset` on; None if some are behind the end.
    pub(super) fn pieces(&self, offset: u64, length: u64) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < length {
            let piece = self
                .layout
                .piece(offset.checked_add(done)?, length - done)?;
            let (disk, start) = *self.starts.get(piece.uuid)?;
            pieces.push(Piece {
                disk,
                start: start.checked_add(piece.start)?,
                length: piece.length,
            });
            done += piece.length;
        }
        Some(pieces)
    }
}

/// Disks as one of their logical volumes has them.
pub(super) struct OnDisks<'a, S> {
    pub(super) disks: &'a [S],
    pub(super) volume: &'a Logical,
}

impl<S: ReadAt> ReadAt for OnDisks<'_, S> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let pieces = self.volume.pieces(offset, buffer.len() as u64);
        let mut rest = buffer;
        for piece in pieces.ok_or(io::ErrorKind::UnexpectedEof)? {
            // They are as long together as the buffer is.
            let (here, after) = rest.split_at_mut(piece.length as usize);
            let disk = self.disks.get(piece.disk);
            disk.ok_or(io::ErrorKind::UnexpectedEof)?
                .read_at(piece.start, here)?;
            rest = after;
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.volume.layout.length()
    }
}

/// The physical volumes of a disk, and what they say of their groups.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// First byte and length of each.
    places: HashMap<String, (u64, u64)>,
    /// The newest account of each group.
    groups: HashMap<String, Group>,
    /// What could not be read, in words.
    notes: Vec<String>,
}

impl Members {
    /// Reads those on the partitions of a disk.
    pub(super) fn read<S: ReadAt>(disk: &S, partitions: &[Volume]) -> Result<Members, Error> {
        let mut found = Members::default();
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
            found.places.insert(physical.uuid, (start, length));
            if let Some(group) = physical.group {
                let is_known = found.groups.contains_key(&group.uuid);
                if !is_known && found.groups.len() >= GROUPS_MAX {
                    let words = "its volume group is one too many on this disk";
                    found.notes.push(format!("partition {number}: {words}"));
                    continue;
                }
                add(&mut found.groups, group);
            }
        }
        Ok(found)
    }
}

/// Keeps the account of a group that was written last.
fn add(groups: &mut HashMap<String, Group>, group: Group) {
    let known = groups.get(&group.uuid);
    if known.is_none_or(|known| known.sequence < group.sequence) {
        groups.insert(group.uuid.clone(), group);
    }
}

/// A logical volume of which a part is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partly {
    /// As it is called in `files/`.
    pub name: String,
    /// Its bytes.
    pub length: u64,
    /// The devices, as the guest called them, that the rest is on.
    pub elsewhere: Vec<String>,
}

/// What was found on all physical volumes.
#[derive(Default)]
pub(super) struct Groups {
    /// Those that can be read, and are not looked into yet.
    pub(super) volumes: Vec<(Partition, Arc<Logical>)>,
    /// Those of which a part is here.
    pub(super) partly: Vec<Partly>,
    /// What is to be said of others, for each in a line.
    pub(super) notes: Vec<String>,
}

/// Finds the logical volumes of some disks: of one those that lie on it alone, of several those that lie on more
/// than one of them.
pub(super) fn find(disks: &[&Members]) -> Groups {
    let mut found = Groups::default();
    let (mut places, mut groups) = (HashMap::new(), HashMap::new());
    for (index, disk) in disks.iter().enumerate() {
        found.notes.extend(disk.notes.iter().cloned());
        for (uuid, (start, length)) in &disk.places {
            // The same on two disks is a copy: which of them the guest takes nobody can tell.
            let is_copy = places.insert(uuid.clone(), (index, *start, *length));
            if is_copy.is_some_and(|(other, ..)| other != index) {
                found
                    .notes
                    .push("a physical volume is there twice".to_owned());
                return found;
            }
        }
        disk.groups
            .values()
            .for_each(|group| add(&mut groups, group.clone()));
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by(|a, b| (&a.name, &a.uuid).cmp(&(&b.name, &b.uuid)));
    let mut names = HashSet::new();
    for group in groups {
        let devices = group.physical.iter();
        let devices = devices.map(|member| (&*member.uuid, member.device.as_str()));
        let devices = devices.collect();
        for logical in group.logical {
            let name = name(&group.name, &logical.name);
            let layout = match logical.layout {
                Ok(layout) => layout,
                Err(kind) => {
                    let why = format!("{name}: its kind, {kind}, is not read here");
                    found.notes.push(why);
                    continue;
                }
            };
            let has_place = found.volumes.len() < VOLUMES_MAX
                && found.partly.len() < VOLUMES_MAX
                && name.len() <= NAME_MAX;
            let placed = placed(layout, &places, &devices);
            let of = |placed: &Placed| match placed {
                Placed::Here(_, count) => disks.len() == 1 || *count > 1,
                Placed::Partly(..) | Placed::Elsewhere | Placed::Not(_) => true,
            };
            if !of(&placed) {
                continue;
            }
            match placed {
                Placed::Elsewhere => found.notes.push(format!("{name}: it is on another disk")),
                Placed::Not(why) => found.notes.push(format!("{name}: {why}")),
                Placed::Here(..) | Placed::Partly(..)
                    if !has_place || !names.insert(name.clone()) =>
                {
                    found
                        .notes
                        .push(format!("{name}: one of that name is shown already"));
                }
                Placed::Partly(length, elsewhere) => found.partly.push(Partly {
                    name,
                    length,
                    elsewhere,
                }),
                Placed::Here(logical, _) => {
                    let partition = Partition {
                        number: FIRST + found.volumes.len() as u32,
                        start: 0,
                        length: logical.layout.length(),
                        kind: String::new(),
                        name,
                    };
                    found.volumes.push((partition, Arc::new(logical)));
                }
            }
        }
    }
    found.notes.truncate(VOLUMES_MAX);
    found
}

/// As it is called in `/dev/mapper`.
fn name(group: &str, logical: &str) -> String {
    let part = |name: &str| name.replace('-', "--");
    format!("{}-{}", part(group), part(logical))
}

/// Where a volume is.
enum Placed {
    /// On these disks, and on how many of them.
    Here(Logical, usize),
    /// Of so many bytes, some of them on devices that are not here.
    Partly(u64, Vec<String>),
    Elsewhere,
    /// Why it cannot be shown.
    Not(String),
}

fn placed(
    layout: Layout,
    places: &HashMap<String, (usize, u64, u64)>,
    devices: &HashMap<&str, &str>,
) -> Placed {
    let (mut disks, mut elsewhere) = (HashSet::new(), BTreeSet::new());
    for (area, length) in layout.areas() {
        let Some((disk, _, room)) = places.get(&*area.uuid) else {
            elsewhere.insert(*devices.get(&*area.uuid).unwrap_or(&""));
            continue;
        };
        let end = area.start.checked_add(length);
        if end.is_none_or(|end| end > *room) {
            return Placed::Not("a part of it lies behind the end of its partition".to_owned());
        }
        disks.insert(*disk);
    }
    match (elsewhere.is_empty(), disks.is_empty()) {
        (false, true) => Placed::Elsewhere,
        (false, false) => {
            let elsewhere = elsewhere.into_iter().map(str::to_owned).collect();
            Placed::Partly(layout.length(), elsewhere)
        }
        (true, _) => {
            let starts = places.iter();
            let starts = starts.map(|(uuid, (disk, start, _))| (uuid.clone(), (*disk, *start)));
            let starts = starts.collect();
            Placed::Here(Logical { layout, starts }, disks.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Members, find, name};
    use qmpfs_guestfs::lvm::Group;

    #[test]
    fn names_are_those_of_the_device_mapper() {
        assert_eq!(name("debian-vg", "root"), "debian--vg-root");
        assert_eq!(name("a", "b-c"), "a-b--c");
    }

    /// A disk with a physical volume of that uuid, of a group with one volume on each of two disks, and one on both.
    fn disk(uuid: &str, sequence: u32) -> Members {
        let volume = |name: &str, stripes: &str| {
            format!(
                "{name} {{ status = [\"VISIBLE\"] segment1 {{ type = \"striped\" start_extent = 0 \
                 extent_count = 4 stripe_size = 8 stripes = [{stripes}] }} }}\n"
            )
        };
        let text = format!(
            "vg {{ id = \"g\" seqno = {sequence} extent_size = 8 physical_volumes {{\n\
             pv0 {{ id = \"a\" device = \"/dev/vda1\" pe_start = 0 pe_count = 10 }}\n\
             pv1 {{ id = \"b\" device = \"/dev/vdb1\" pe_start = 0 pe_count = 10 }} }}\n\
             logical_volumes {{ {} {} {} }} }}",
            volume("one", "\"pv0\", 0"),
            volume("two", "\"pv1\", 0"),
            volume("both", "\"pv0\", 4, \"pv1\", 4"),
        );
        let group = Group::parse(text.as_bytes()).expect("it is right");
        Members {
            places: [(uuid.to_owned(), (1000, 10 << 12))].into(),
            groups: [(group.uuid.clone(), group)].into(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn volumes_are_of_one_disk_or_of_all_together() {
        let (a, b) = (disk("a", 1), disk("b", 2));
        let names = |disks: &[&Members]| {
            let found = find(disks);
            let volumes = found.volumes.into_iter().map(|(it, _)| it.name);
            volumes.collect::<Vec<_>>()
        };
        assert_eq!(names(&[&a]), ["vg-one"]);
        assert_eq!(names(&[&b]), ["vg-two"]);
        assert_eq!(names(&[&a, &b]), ["vg-both"]);
        let alone = find(&[&a]);
        let [partly] = &alone.partly[..] else {
            panic!("one");
        };
        assert_eq!(
            (partly.name.as_str(), &partly.elsewhere[..]),
            ("vg-both", &["/dev/vdb1".to_owned()][..])
        );
        assert_eq!(alone.notes, ["vg-two: it is on another disk"]);
        let together = find(&[&a, &b]);
        let pieces = together.volumes[0].1.pieces(4096, 8192).expect("within");
        let pieces: Vec<_> = pieces
            .iter()
            .map(|it| (it.disk, it.start, it.length))
            .collect();
        assert_eq!(
            pieces,
            [(1, 1000 + 4 * 4096, 4096), (0, 1000 + 5 * 4096, 4096)]
        );
        assert!(
            find(&[&a, &disk("a", 1)]).volumes.is_empty(),
            "a copy of the disk"
        );
    }
}
