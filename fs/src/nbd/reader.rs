//! One of the threads that do the waiting: it takes a task, asks its connection, and answers.

use super::connection::{Connection, REQUEST_DEADLINE};
use super::error::Error;
use super::wire::Extent;
use super::{Seek, Shared, Task};
use crate::errno::Failure;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// How much is asked about in one question for holes: its answer is kept for the next ones.
const LOOK: u64 = 1 << 30;

/// A thread with its connection.
pub(super) struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Option<Connection>,
    pub(super) size: u64,
}

impl Reader {
    pub(super) fn run(&mut self) {
        while let Some((came, task)) = self.shared.next() {
            // what waited behind a server that hangs is not made to wait once more
            let deadline = came + REQUEST_DEADLINE;
            match task {
                Task::Read {
                    offset,
                    length,
                    done,
                } => {
                    let mut bytes = vec![0; length];
                    let read = self.ask(deadline, |connection| {
                        connection.read(offset, &mut bytes, deadline)
                    });
                    done(read.map(|()| bytes).map_err(Failure::from));
                }
                Task::Seek { offset, seek, done } => {
                    done(self.seek(offset, seek, deadline).map_err(Failure::from));
                }
                Task::Allocated { done } => {
                    done(self.allocated(deadline).map_err(Failure::from));
                }
            }
        }
    }

    /// Asks once; on a new connection if the old one was found broken.
    fn ask<T>(
        &mut self,
        deadline: Instant,
        mut question: impl FnMut(&mut Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {
            self.shared.broken()?;
            if deadline <= Instant::now() {
                return Err(Error::TimedOut);
            }
            let (mut connection, is_new) = match self.connection.take() {
                Some(connection) => (connection, false),
                None => (self.connect()?, true),
            };
            let answer = question(&mut connection);
            // an answer from while it broke is none
            self.shared.broken()?;
            match answer {
                Err(Error::Io(error)) if !is_new => {
                    tracing::debug!(%error, "connecting again");
                }
                answer => {
                    if answer
                        .as_ref()
                        .err()
                        .is_none_or(Error::spares_the_connection)
                    {
                        self.connection = Some(connection);
                    }
                    return answer;
                }
            }
        }
    }

    fn connect(&self) -> Result<Connection, Error> {
        let connection = Connection::open(&self.shared.socket, &self.shared.export)?;
        if connection.size() != self.size {
            return Err(Error::nonsense("its export has another size than before"));
        }
        Ok(connection)
    }

    /// What lies at `offset`, which is before the end, and how far.
    fn extent(&mut self, offset: u64, deadline: Instant) -> Result<Extent, Error> {
        let shared = Arc::clone(&self.shared);
        let mut looked = shared.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(extent) = looked.as_ref().and_then(|looked| known(looked, offset)) {
            return Ok(extent);
        }
        drop(looked);
        let found = self.ask(deadline, |connection| {
            connection.extents(offset, LOOK, deadline)
        })?;
        let first = found.first().copied();
        looked = shared.looked.lock().unwrap_or_else(PoisonError::into_inner);
        *looked = Some((offset, found));
        first.ok_or_else(|| Error::nonsense("a status that tells of nothing"))
    }

    fn seek(&mut self, offset: u64, seek: Seek, deadline: Instant) -> Result<Option<u64>, Error> {
        let mut at = offset;
        while at < self.size {
            let extent = self.extent(at, deadline)?;
            if extent.data == (seek == Seek::Data) {
                return Ok(Some(at));
            }
            at += extent.length;
        }
        Ok((seek == Seek::Hole && offset < self.size).then_some(self.size))
    }

    fn allocated(&mut self, deadline: Instant) -> Result<u64, Error> {
        let (mut sum, mut at) = (0, 0);
        while at < self.size {
            let extent = self.extent(at, deadline)?;
            if extent.data {
                sum += extent.length;
            }
            at += extent.length;
        }
        Ok(sum)
    }
}

/// What was told of `offset`.
fn known((start, extents): &(u64, Vec<Extent>), offset: u64) -> Option<Extent> {
    let mut at = *start;
    if offset < at {
        return None;
    }
    for extent in extents {
        let end = at + extent.length;
        if offset < end {
            return Some(Extent {
                length: end - offset,
                data: extent.data,
            });
        }
        at = end;
    }
    None
}
