//! What a point holds besides its own files: the partitions of its disk, and the filesystems in them.
//! Which there are is on the disk, not in the model: `guest` knows. Here is what does not depend on it.

use super::{NodeKey, PointFile, PointKey, find_point};
use crate::model::Model;

/// What is called after a partition in `files/`, and is no file of the guest.
const NOTE_SUFFIX: &str = ".txt";
/// The same in `partitions/`.
const RAW_SUFFIX: &str = ".raw";

/// An entry of a point that depends on what is on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Inside {
    /// `partitions/`
    Partitions,
    /// `partitions/N.raw`
    Partition(u32),
    /// `files/`
    Files,
    /// `files/N.txt`: what is to be said about a partition.
    Note(u32),
    /// `files/VG-LV.txt`: what is to be said about a logical volume of which only a part is here.
    VolumeNote(String),
}

impl Inside {
    /// The directories that every point has that can be read.
    pub const DIRECTORIES: [Inside; 2] = [Inside::Partitions, Inside::Files];

    /// Its name.
    pub fn name(&self) -> String {
        match self {
            Inside::Partitions => "partitions".to_owned(),
            Inside::Partition(number) => format!("{number}{RAW_SUFFIX}"),
            Inside::Files => "files".to_owned(),
            Inside::Note(number) => format!("{number}{NOTE_SUFFIX}"),
            Inside::VolumeNote(name) => volume_note(name),
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        match self {
            Inside::Partitions | Inside::Files => true,
            Inside::Partition(_) | Inside::Note(_) | Inside::VolumeNote(_) => false,
        }
    }

    /// The directory it stands in.
    pub fn parent(&self, point: &PointKey) -> NodeKey {
        match self {
            Inside::Partitions | Inside::Files => NodeKey::Point(point.clone()),
            Inside::Partition(_) => NodeKey::Inside(point.clone(), Inside::Partitions),
            Inside::Note(_) | Inside::VolumeNote(_) => {
                NodeKey::Inside(point.clone(), Inside::Files)
            }
        }
    }
}

/// What the text about a logical volume is called.
pub(super) fn volume_note(name: &str) -> String {
    format!("{name}{NOTE_SUFFIX}")
}

/// Whether what is inside a point can be there: it has a disk to read.
pub fn has_inside(model: &Model, point: &PointKey) -> bool {
    find_point(model, point).is_some_and(|found| PointFile::DiskRaw.is_in(&found))
}
