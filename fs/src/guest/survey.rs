//! What is on one disk: its partitions, and what is in each.

use super::source::Disk;
use crate::errno::{Errno, Failure};
use crate::view::View;
use qmpfs_guestfs::{Error, Found, Kind, Part, Partition, Table, probe};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the data of all partitions is counted before what is left is shown as full.
const COUNTING: Duration = Duration::from_secs(1);

/// What was found on a disk.
#[derive(Debug)]
pub struct Survey {
    /// The partitions by number; a disk without a table is number 0.
    pub volumes: Vec<Volume>,
    /// What was wrong with the table and worked around.
    pub notes: Vec<String>,
}

/// One partition and what is in it.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Where it is.
    pub partition: Partition,
    /// Bytes of it that are data.
    pub allocated: u64,
    /// What is in it.
    pub found: Found,
}

impl Volume {
    /// Whether there is a reader for what is in it.
    pub fn is_readable(&self) -> bool {
        qmpfs_guestfs::is_known(self.found.kind)
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
        let found = match probe(&stretch) {
            Ok(found) => found,
            Err(Error::Io(error)) => return Err(failure(&Error::Io(error))),
            Err(_) => Found {
                kind: Kind::Unknown,
                label: String::new(),
                uuid: String::new(),
            },
        };
        let counted = view.data_bytes_in(start..start.saturating_add(length), deadline)?;
        Ok(Volume {
            partition,
            allocated: counted.unwrap_or(length),
            found,
        })
    };
    let volumes: Result<Vec<_>, _> = table.partitions.into_iter().map(volume).collect();
    Ok(Survey {
        volumes: volumes?,
        notes: table.notes,
    })
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
