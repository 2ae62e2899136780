//! Room for a backup on its filesystem, taken before it is needed. QEMU hands a full target on to the
//! guest: what the guest writes over a place that is not copied yet is copied first, and if that fails
//! the guest's write fails (docs/decisions/0014). So the file always has room ahead of what is written,
//! and where no more can be had the job is held, or ended, before the guest meets it. Knows a file;
//! no QEMU.

use crate::errno::{Errno, Failure};
use crate::sys;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a job may write before it is looked at again, on the fastest disks there are.
const AHEAD: u64 = 256 << 20;
/// Header, first tables and what is written until the instant.
const SLACK: u64 = 4 << 20;
/// L2 and refcount entries of an image's clusters, for each byte of it, rounded up.
const TABLES: u64 = 4096;
/// However slow it seems, a guest may write so much before the next look.
const PACE_MIN: u64 = 512 << 10;
/// Looks that must still fit, or the job is slowed down.
const LOOKS: u64 = 4;
/// With less the job is held: what a guest may still write over before the next look, of a disk of some size.
const HOLD_MAX: u64 = 64 << 20;
/// The same of a small disk, as a part of it.
const HOLD_PART: u64 = 16;
/// The part of that with which the job is ended.
const END_PART: u64 = 4;
/// A job that may run out of room takes no larger part of it in a second.
const SHARE: u64 = 4;
/// But it gets on.
const SPEED_MIN: u64 = 1 << 20;

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// There is room for a while.
    Enough,
    /// There is, if it goes no faster than so many bytes a second.
    Slow(u64),
    /// Only for what the guest may need.
    Short,
    /// The next write may fail.
    None,
    /// The file has no name any more: nobody will read it.
    Removed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Room {
    file: File,
    path: PathBuf,
    /// More than this the file can never have.
    bound: u64,
    reserved: u64,
    /// Whether the filesystem can reserve; else what is free counts.
    reserves: bool,
    length: u64,
    pace: u64,
}

/// The room that an image with so many bytes of data takes, at most.
fn with_tables(data: u64) -> u64 {
    data.saturating_add(data / TABLES).saturating_add(SLACK)
}

/// The room with less of which a job is held, of a file of at most `bound` bytes.
fn hold(bound: u64) -> u64 {
    HOLD_MAX.min(bound / HOLD_PART)
}

impl Room {
    /// Takes what is expected to be needed, of a disk of `virtual_size`.
    pub(super) fn take(path: &Path, expected: u64, virtual_size: u64) -> Result<Room, Failure> {
        let io =
            |error: &io::Error| Failure::io(format!("reserve room for {}", path.display()), error);
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| io(&error))?;
        let tables = virtual_size / TABLES;
        let bound = with_tables(virtual_size).saturating_add(tables);
        let needed = with_tables(expected.min(virtual_size))
            .saturating_add(tables)
            .saturating_add(hold(bound));
        let length = file.metadata().map_err(|error| io(&error))?.len();
        let mut room = Room {
            file,
            path: path.to_owned(),
            bound,
            reserved: length,
            reserves: true,
            length,
            pace: PACE_MIN,
        };
        if room.extend(needed).map_err(|error| io(&error))? {
            return Ok(room);
        }
        let free = room.free().unwrap_or(0);
        Err(Failure::new(
            Errno::ENOSPC,
            format!("the backup may need {needed} bytes, {free} are free"),
        )
        .next("make room in the backup directory, then try again"))
    }

    /// Bytes a second beyond which a job could run out of room between two looks; None where it
    /// cannot run out at all.
    pub(super) fn speed_limit(&self) -> Option<u64> {
        if self.reserves && self.reserved >= self.bound {
            return None;
        }
        let left = self
            .margin()
            .saturating_add(if self.reserves { self.free()? } else { 0 });
        Some((left / SHARE).max(SPEED_MIN))
    }

    /// Looks how far the file has grown, and takes more where it can be had.
    pub(super) fn tend(&mut self) -> State {
        let length = match self.file.metadata() {
            Ok(metadata) if metadata.nlink() == 0 => return State::Removed,
            Ok(metadata) => metadata.len(),
            Err(_) => return State::Short,
        };
        self.pace = self.pace.max(length.saturating_sub(self.length));
        self.length = length;
        let ahead = |bytes: u64| length.saturating_add(bytes).min(self.bound);
        let (wanted, needed) = (ahead(AHEAD), ahead(self.pace * LOOKS));
        if self.reserves && self.reserved >= wanted {
            return State::Enough;
        }
        for more in [ahead(AHEAD * 2), wanted, needed] {
            if matches!(self.extend(more), Ok(true)) {
                return State::Enough;
            }
        }
        self.state(length, self.margin())
    }

    /// How it stands where no more can be had.
    fn state(&self, length: u64, margin: u64) -> State {
        let left = self.bound.saturating_sub(length);
        let hold = hold(self.bound);
        if margin >= left.min((self.pace * LOOKS).max(hold)) {
            State::Enough
        } else if margin >= hold {
            // a second has as many looks as must fit
            State::Slow(margin)
        } else if margin >= hold / END_PART {
            State::Short
        } else {
            State::None
        }
    }

    /// What may still be written.
    fn margin(&self) -> u64 {
        match self.reserves {
            true => self.reserved.saturating_sub(self.length),
            false => self.free().unwrap_or(0),
        }
    }

    fn free(&self) -> Option<u64> {
        sys::free_bytes(self.path.parent()?).ok()
    }

    /// Whether there is room for a file of that length.
    fn extend(&mut self, length: u64) -> io::Result<bool> {
        let had = match self.reserves {
            true => self.reserved,
            false => self.length,
        };
        // asked before it is taken: what is not enough would still be taken from others
        let more = length.saturating_sub(had);
        if self.free().is_none_or(|free| free < more) {
            return Ok(false);
        }
        if !self.reserves {
            return Ok(true);
        }
        match sys::reserve_beyond(&self.file, length) {
            Ok(()) => {
                self.reserved = self.reserved.max(length);
                Ok(true)
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => Ok(false),
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => {
                    self.reserves = false;
                    Ok(true)
                }
                _ => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AHEAD, Room, SLACK, State};
    use crate::errno::Errno;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn what_is_expected_is_there_and_more_is_taken_as_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        std::fs::write(&path, [0; 1024]).unwrap();
        let mut room = Room::take(&path, 8 << 20, 1 << 40).unwrap();
        assert!(room.reserved >= (8 << 20) + SLACK);
        assert_eq!(room.file.metadata().unwrap().len(), 1024);
        assert!(room.speed_limit().is_some());
        assert_eq!(room.tend(), State::Enough);
        assert!(room.reserved >= AHEAD);
        assert!(room.file.metadata().unwrap().blocks() * 512 >= AHEAD);
    }

    #[test]
    fn a_small_disk_is_reserved_whole_and_needs_no_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        std::fs::write(&path, [0; 1024]).unwrap();
        let mut room = Room::take(&path, 1 << 20, 8 << 20).unwrap();
        assert_eq!(room.tend(), State::Enough);
        assert_eq!(room.speed_limit(), None);
        assert!(room.reserved < 16 << 20, "no more than it can need");
    }

    #[test]
    fn where_no_more_can_be_had_it_goes_slower_then_stands_then_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        std::fs::write(&path, [0; 1024]).unwrap();
        let mut room = Room::take(&path, 1 << 20, 4 << 30).unwrap();
        room.pace = 8 << 20;
        assert_eq!(room.state(0, 100 << 20), State::Enough);
        room.pace = 64 << 20;
        assert_eq!(room.state(0, 100 << 20), State::Slow(100 << 20));
        assert_eq!(room.state(0, 20 << 20), State::Short);
        assert_eq!(room.state(0, 1 << 20), State::None);
        // with room for all that can come nothing is held
        assert_eq!(room.state(room.bound - (1 << 20), 1 << 20), State::Enough);
    }

    #[test]
    fn more_than_there_is_cannot_be_had() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        std::fs::write(&path, [0; 1024]).unwrap();
        let failure = Room::take(&path, 1 << 60, 1 << 60).unwrap_err();
        assert!(
            matches!(failure.errno, Errno::ENOSPC | Errno::EIO),
            "{failure}"
        );
    }
}
