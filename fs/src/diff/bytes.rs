//! Two files compared: by where their bytes come from where the mount says that, by reading where not.

use crate::digest::Content;
use crate::errno::{Errno, Failure};
use crate::origin::{self, Origin};
use crate::sys;
use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

/// Bytes that are read at once of each.
const BLOCK: usize = 1 << 20;
/// What is different is told in units of this many bytes.
const UNIT: usize = 512;

/// Whether origins of two files can be compared: in one mount alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Same {
    ByOrigin,
    ByBytes,
}

impl Same {
    pub(super) fn of(before: &File, after: &File) -> Result<Same, Failure> {
        let device = |file: &File| {
            let metadata = file.metadata();
            metadata.map_or_else(
                |error| Err(Failure::io("look at a point", &error)),
                |it| Ok(it.dev()),
            )
        };
        Ok(match device(before)? == device(after)? {
            true => Same::ByOrigin,
            false => Same::ByBytes,
        })
    }
}

pub(super) fn length(file: &File) -> Result<u64, Failure> {
    let metadata = file.metadata();
    metadata.map_or_else(
        |error| Err(Failure::io("look at it", &error)),
        |it| Ok(it.len()),
    )
}

/// What a mount says of an open file, from front to back.
struct Origins<'a> {
    file: &'a File,
    known: VecDeque<Origin>,
    are_told: bool,
}

impl<'a> Origins<'a> {
    fn new(file: &'a File, same: Same) -> Origins<'a> {
        Origins {
            file,
            known: VecDeque::new(),
            are_told: same == Same::ByOrigin,
        }
    }

    /// The stretch that begins at `at`, at most `rest` long. Never empty.
    fn at(&mut self, at: u64, rest: u64) -> Result<Origin, Failure> {
        if self.are_told && self.known.is_empty() {
            let mut message = origin::question(at, rest);
            match sys::ask(self.file, origin::REQUEST, &mut message) {
                Ok(()) => self.known = origin::answered(&message).unwrap_or_default().into(),
                // an older mount
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {}
                Err(error) => return Err(Failure::io("ask where its bytes are", &error)),
            }
            self.are_told = !self.known.is_empty();
        }
        Ok(match self.known.front() {
            Some(first) if first.length > 0 => first.at_most(rest),
            Some(_) | None => Origin::unknown(rest),
        })
    }

    fn pass(&mut self, bytes: u64) {
        if let Some(first) = self.known.front_mut() {
            *first = first.skip(bytes);
            if first.length == 0 {
                self.known.pop_front();
            }
        }
    }
}

/// Hands on each stretch that is not known to be the same in both; ends early when that says so.
fn doubtful(
    same: Same,
    (before, after): (&File, &File),
    stretch: Range<u64>,
    found: &mut dyn FnMut(Range<u64>) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let (mut ours, mut theirs) = (Origins::new(before, same), Origins::new(after, same));
    let mut at = stretch.start;
    while at < stretch.end {
        let rest = stretch.end - at;
        let (one, other) = (ours.at(at, rest)?, theirs.at(at, rest)?);
        let length = one.length.min(other.length);
        if !one.is_same(other) && !found(at..at + length)? {
            return Ok(());
        }
        ours.pass(length);
        theirs.pass(length);
        at += length;
    }
    Ok(())
}

/// Whether a stretch of both is known to be the same without reading it.
pub(super) fn come_from_one_place(
    same: Same,
    files: (&File, &File),
    stretch: Range<u64>,
) -> Result<bool, Failure> {
    let mut is_doubtful = false;
    doubtful(same, files, stretch, &mut |_| {
        is_doubtful = true;
        Ok(false)
    })?;
    Ok(!is_doubtful)
}

/// Hands on each range of bytes that is different, joined where they touch; ends early when that says so.
pub(super) fn different(
    same: Same,
    files: (&File, &File),
    stretch: Range<u64>,
    found: &mut dyn FnMut(Range<u64>) -> bool,
) -> Result<(), Failure> {
    let mut last: Option<Range<u64>> = None;
    let mut goes_on = true;
    let mut add = |range: Range<u64>| {
        match &mut last {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => {
                if let Some(last) = last.replace(range) {
                    goes_on = found(last);
                }
            }
        }
        goes_on
    };
    let mut blocks = (vec![0; BLOCK], vec![0; BLOCK]);
    doubtful(same, files, stretch, &mut |doubt| {
        read_both(files, doubt, &mut blocks, &mut add)
    })?;
    if let (Some(last), true) = (last, goes_on) {
        found(last);
    }
    Ok(())
}

fn read_both(
    (before, after): (&File, &File),
    stretch: Range<u64>,
    (ours, theirs): &mut (Vec<u8>, Vec<u8>),
    add: &mut dyn FnMut(Range<u64>) -> bool,
) -> Result<bool, Failure> {
    let mut at = stretch.start;
    while at < stretch.end {
        // Holes of both are the same.
        let next = |file: &File| Ok::<_, Failure>(file.next_data(at)?.unwrap_or(stretch.end));
        let data = next(before)?.min(next(after)?);
        if data > at {
            at = data;
            continue;
        }
        // At most a block.
        let length = (stretch.end - at).min(BLOCK as u64) as usize;
        let read = |file: &File, block: &mut [u8]| {
            let read = file.read_exact_at(block, at);
            read.map_err(|error| Failure::io(format!("read at {at}"), &error))
        };
        read(before, &mut ours[..length])?;
        read(after, &mut theirs[..length])?;
        if ours[..length] != theirs[..length] {
            let units = ours[..length]
                .chunks(UNIT)
                .zip(theirs[..length].chunks(UNIT));
            let mut place = at;
            for (one, other) in units {
                let end = place + one.len() as u64;
                if one != other && !add(place..end) {
                    return Ok(false);
                }
                place = end;
            }
        }
        at += length as u64;
    }
    Ok(true)
}

/// Whether two files of one length have other bytes.
pub(super) fn are_different(
    same: Same,
    files: (&File, &File),
    length: u64,
) -> Result<bool, Failure> {
    let mut is_different = false;
    different(same, files, 0..length, &mut |_| {
        is_different = true;
        false
    })?;
    Ok(is_different)
}

/// A file to be compared. Nothing but plain files is ever opened.
pub(super) fn open(path: &std::path::Path) -> Result<File, Failure> {
    sys::open_for_reading(path).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::EOPNOTSUPP.code() => Failure::new(
            Errno::EOPNOTSUPP,
            "it cannot be read here (encrypted, for one)",
        ),
        Some(_) | None => Failure::io("open it", &error),
    })
}
