//! What is on one disk: its partitions, and what is in each.

use super::disks::{Disks, Home, Piece};
use super::logical::{self, Groups, Logical, Members, OnDisks, Partly};
use super::source::Disk;
use crate::errno::{Errno, Failure};
use crate::ops::EngineHandle;
use crate::view::View;
use qmpfs_guestfs::{Error, Found, Kind, Part, Partition, ReadAt, Table, probe};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the data of all partitions is counted before what is left is shown as full.
const COUNTING: Duration = Duration::from_secs(1);

/// What was found on a disk.
#[derive(Debug)]
pub struct Survey {
    /// The partitions by number; a disk without a table is number 0.
    pub volumes: Vec<Volume>,
    /// The logical volumes on them.
    pub logical: Vec<Volume>,
    /// Logical volumes of which a part is on them.
    pub partly: Vec<Partly>,
    /// What is to be said of logical volumes that cannot be read, for each in a line.
    pub logical_notes: Vec<String>,
    /// The physical volumes on them.
    pub(super) members: Members,
    /// What was wrong with the table and worked around.
    pub notes: Vec<String>,
}

/// One partition and what is in it.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Where it is; of a logical volume, its name and its length.
    pub partition: Partition,
    /// Bytes of it that are data.
    pub allocated: u64,
    /// What is in it.
    pub found: Found,
    /// Where it is, if it is a logical volume.
    pub logical: Option<Arc<Logical>>,
}

impl Volume {
    /// Whether there is a reader for what is in it.
    pub fn is_readable(&self) -> bool {
        qmpfs_guestfs::is_known(self.found.kind)
    }

    /// What the directory of its files is called.
    pub fn directory(&self) -> String {
        match self.logical {
            Some(_) => self.partition.name.clone(),
            None => self.partition.number.to_string(),
        }
    }

    /// The stretches of its disks that are `length` bytes of it from `offset` on, in order; None if some
    /// are behind its end.
    pub fn pieces(&self, offset: u64, length: u64) -> Option<Vec<Piece>> {
        let end = offset.checked_add(length)?;
        if end > self.partition.length {
            return None;
        }
        match &self.logical {
            Some(logical) => logical.pieces(offset, length),
            None => Some(vec![Piece {
                disk: 0,
                start: self.partition.start.checked_add(offset)?,
                length,
            }]),
        }
    }
}

impl Survey {
    /// The partition of a number.
    pub fn volume(&self, number: u32) -> Option<&Volume> {
        let mut volumes = self.volumes.iter();
        volumes.find(|volume| volume.partition.number == number)
    }
}

/// Looks at a disk: some blocks of the table and of each partition.
pub(super) fn survey(view: &Arc<View>) -> Result<Survey, Failure> {
    let table = Table::read(&Disk(Arc::clone(view))).map_err(|error| failure(&error))?;
    let deadline = Instant::now() + COUNTING;
    let volume = |partition: Partition| {
        let (start, length) = (partition.start, partition.length);
        let stretch = Part::new(Disk(Arc::clone(view)), start, length);
        let found = look(&stretch)?;
        let counted = view.data_bytes_in(start..start.saturating_add(length), deadline)?;
        Ok(Volume {
            partition,
            allocated: counted.unwrap_or(length),
            found,
            logical: None,
        })
    };
    let volumes: Result<Vec<_>, Failure> = table.partitions.into_iter().map(volume).collect();
    let volumes = volumes?;
    let disk = Disk(Arc::clone(view));
    let members = Members::read(&disk, &volumes).map_err(|error| failure(&error))?;
    let groups = logical::find(&[&members]);
    Ok(Survey {
        volumes,
        logical: looked_into(&groups, &[disk])?,
        partly: groups.partly,
        logical_notes: groups.notes,
        members,
        notes: table.notes,
    })
}

/// What disks of one instant hold together, and none of them alone.
#[derive(Debug)]
pub struct Whole {
    /// Logical volumes that lie on several of them.
    pub logical: Vec<Volume>,
    /// Those of which a part is on a disk that is not among them.
    pub partly: Vec<Partly>,
}

/// Looks at the logical volumes that several disks hold together. Not for the engine's own thread.
pub(super) fn whole(
    engine: &EngineHandle,
    home: &Home,
    surveys: &[Arc<Survey>],
) -> Result<Whole, Failure> {
    let members: Vec<&Members> = surveys.iter().map(|survey| &survey.members).collect();
    let groups = logical::find(&members);
    let logical = match groups.volumes.is_empty() {
        true => Vec::new(),
        false => {
            let disks: Disks = home.open(engine)?;
            let disks = disks.views().iter().map(|view| Disk(Arc::clone(view)));
            looked_into(&groups, &disks.collect::<Vec<_>>())?
        }
    };
    Ok(Whole {
        logical,
        partly: groups.partly,
    })
}

/// What is in the logical volumes of some disks.
fn looked_into(groups: &Groups, disks: &[Disk]) -> Result<Vec<Volume>, Failure> {
    let volumes = groups.volumes.iter();
    let one = |(partition, logical): &(Partition, Arc<Logical>)| {
        let stretch = OnDisks {
            disks,
            volume: logical,
        };
        Ok(Volume {
            found: look(&stretch)?,
            allocated: partition.length,
            partition: partition.clone(),
            logical: Some(Arc::clone(logical)),
        })
    };
    volumes.map(one).collect()
}

/// What is in a stretch of a disk.
fn look(stretch: &dyn ReadAt) -> Result<Found, Failure> {
    match probe(stretch) {
        Ok(found) => Ok(found),
        Err(Error::Io(error)) => Err(failure(&Error::Io(error))),
        Err(_) => Ok(Found {
            kind: Kind::Unknown,
            label: String::new(),
            uuid: String::new(),
        }),
    }
}

/// What the reader could not read, as an errno and with a next step.
pub(super) fn failure(error: &Error) -> Failure {
    let (errno, next) = match error {
        Error::Io(_) => (
            Errno::EIO,
            "read disk.raw to see which bytes cannot be had, and why",
        ),
        Error::Corrupt(_) => (
            Errno::EUCLEAN,
            "disk.raw has all bytes: check a copy of it with the filesystem's own tools",
        ),
        Error::Unsupported(_) => (
            Errno::EOPNOTSUPP,
            "guestmount or lklfuse can read it from disk.raw: see docs/TROUBLESHOOTING.md",
        ),
        Error::NotFound => (Errno::ENOENT, ""),
        Error::WrongKind => (Errno::EINVAL, ""),
    };
    let words = match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    Failure::new(errno, words).next(next)
}
