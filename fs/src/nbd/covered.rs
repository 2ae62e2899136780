//! Which bytes of an answer have come: each must come, and only once.

use super::error::Error;
use std::collections::BTreeMap;

/// Which bytes of an answer have come.
pub(super) struct Covered {
    length: u64,
    sum: u64,
    /// From where to where.
    stretches: BTreeMap<u64, u64>,
}

impl Covered {
    pub(super) fn new(length: u64) -> Self {
        Covered {
            length,
            sum: 0,
            stretches: BTreeMap::new(),
        }
    }

    /// Takes in a stretch at `at` of the export, where `start` is the first byte asked for: its place
    /// among the bytes asked for, if it lies there and none of it has come before.
    pub(super) fn take(
        &mut self,
        at: u64,
        start: u64,
        length: u64,
    ) -> Result<std::ops::Range<usize>, Error> {
        let wrong = || Error::nonsense("bytes that were not asked for, or twice");
        let from = at.checked_sub(start).ok_or_else(wrong)?;
        let to = from.checked_add(length).ok_or_else(wrong)?;
        let before = self.stretches.range(..to).next_back();
        if length == 0 || to > self.length || before.is_some_and(|(_, end)| *end > from) {
            return Err(wrong());
        }
        self.stretches.insert(from, to);
        self.sum += length;
        // both are at most the length of a buffer
        Ok(from as usize..to as usize)
    }

    pub(super) fn whole(&self) -> Result<(), Error> {
        match self.sum == self.length {
            true => Ok(()),
            false => Err(Error::nonsense("it gave fewer bytes than were asked for")),
        }
    }
}
