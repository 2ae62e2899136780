//! Reading a disk that somebody else serves over NBD on this host. A handful of threads with a
//! connection each do all waiting, so that whoever asks is never held up: answers come to a callback.
//! It knows bytes, holes and deadlines; it does not know whose disk it is, nor who reads it.
//! Invariants: what a server does costs the requests to it and nothing else; every request is answered.

mod connection;
mod covered;
mod error;
mod reader;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use crate::errno::{Errno, Failure};
use connection::{Connection, REQUEST_DEADLINE};
use error::Error;
use reader::Reader;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::Extent;

/// Requests in flight to one server, each on a connection of its own.
const READERS: usize = 4;
/// Requests that may wait; the kernel asks for far fewer at a time.
const QUEUE_MAX: usize = 4096;
/// How long a caller waits for an answer at most: its turn may come last before the deadline.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2 * REQUEST_DEADLINE.as_secs());

/// How an answer finds its way: called exactly once, from another thread.
type Done<T> = Box<dyn FnOnce(Result<T, Failure>) + Send>;

/// What is looked for from an offset on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte of data.
    Data,
    /// The next byte of a hole; the end of the disk is one.
    Hole,
}

enum Task {
    Read {
        offset: u64,
        length: usize,
        done: Done<Vec<u8>>,
    },
    Seek {
        offset: u64,
        seek: Seek,
        done: Done<Option<u64>>,
    },
    Allocated {
        done: Done<u64>,
    },
}

/// A disk that is served; open until this is dropped.
pub struct Disk {
    shared: Arc<Shared>,
    size: u64,
    at_end: Option<AtEnd>,
}

/// Told when nobody reads a disk any more.
type AtEnd = Box<dyn Fn() + Send + Sync>;

struct Shared {
    socket: PathBuf,
    export: String,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// What the last question for holes was answered: where it begins, and what lies there.
    looked: Mutex<Option<(u64, Vec<Extent>)>>,
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<(Instant, Task)>,
    closed: bool,
    broken: Option<String>,
}

impl Disk {
    /// Connects to an export of the server that listens at `socket`. Waits for it, seconds at most.
    pub fn open(socket: &Path, export: &str) -> Result<Disk, Failure> {
        let first = Connection::open(socket, export).map_err(|error| at(error, socket))?;
        let size = first.size();
        let shared = Arc::new(Shared {
            socket: socket.to_owned(),
            export: export.to_owned(),
            queue: Mutex::default(),
            wake: Condvar::new(),
            looked: Mutex::new(None),
        });
        // dropping it ends the readers that there are already
        let disk = Disk {
            shared,
            size,
            at_end: None,
        };
        let mut first = Some(first);
        for _ in 0..READERS {
            let mut reader = Reader {
                shared: Arc::clone(&disk.shared),
                connection: first.take(),
                size,
            };
            std::thread::Builder::new()
                .name("nbd".into())
                .spawn(move || reader.run())
                .map_err(|error| Failure::io("start a thread", &error))?;
        }
        Ok(disk)
    }

    /// The same disk; `tell` is called when it is dropped.
    pub fn at_end(mut self, tell: impl Fn() + Send + Sync + 'static) -> Disk {
        self.at_end = Some(Box::new(tell));
        self
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads `length` bytes, fewer only at the end of the disk.
    pub fn read(
        &self,
        offset: u64,
        length: usize,
        done: impl FnOnce(Result<Vec<u8>, Failure>) + Send + 'static,
    ) {
        let rest = self.size.saturating_sub(offset);
        let length = usize::try_from(rest).unwrap_or(usize::MAX).min(length);
        let done = Box::new(done);
        self.hand_over(Task::Read {
            offset,
            length,
            done,
        });
    }

    /// Looks for data or a hole from `offset` on; None when there is none to the end.
    pub fn seek(
        &self,
        offset: u64,
        seek: Seek,
        done: impl FnOnce(Result<Option<u64>, Failure>) + Send + 'static,
    ) {
        let done = Box::new(done);
        self.hand_over(Task::Seek { offset, seek, done });
    }

    /// The same, for who can wait.
    pub fn read_now(&self, offset: u64, length: usize) -> Result<Vec<u8>, Failure> {
        wait_for(|done| self.read(offset, length, done))
    }

    /// The same, for who can wait.
    pub fn seek_now(&self, offset: u64, seek: Seek) -> Result<Option<u64>, Failure> {
        wait_for(|done| self.seek(offset, seek, done))
    }

    /// Bytes of the disk that are data, for who can wait.
    pub fn allocated_now(&self) -> Result<u64, Failure> {
        wait_for(|done| {
            let done = Box::new(done);
            self.hand_over(Task::Allocated { done });
        })
    }

    /// From now on nothing is read any more: every request fails, and says why.
    pub fn break_off(&self, why: &str) {
        let mut queue = self.shared.queue();
        queue.broken.get_or_insert_with(|| why.to_owned());
        drop(queue);
        self.shared.wake.notify_all();
    }

    fn hand_over(&self, task: Task) {
        let mut queue = self.shared.queue();
        if queue.tasks.len() >= QUEUE_MAX {
            drop(queue);
            return task
                .fail(Failure::new(Errno::EBUSY, "too many requests at once").next("read again"));
        }
        queue.tasks.push_back((Instant::now(), task));
        drop(queue);
        self.shared.wake.notify_one();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.wake.notify_all();
        if let Some(tell) = &self.at_end {
            tell();
        }
    }
}

fn at(error: Error, socket: &Path) -> Failure {
    let failure = Failure::from(error);
    Failure {
        message: format!("{}: {}", socket.display(), failure.message),
        ..failure
    }
}

fn wait_for<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Result<T, Failure> {
    let (sender, answer) = std::sync::mpsc::sync_channel(1);
    ask(Box::new(move |outcome| {
        // who does not wait any more has had his deadline
        let _late = sender.send(outcome);
    }));
    match answer.recv_timeout(ANSWER_DEADLINE) {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::TimedOut.into()),
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // no change of the queue can panic halfway
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next task, and when it came; None at the end.
    fn next(&self) -> Option<(Instant, Task)> {
        let mut queue = self.queue();
        loop {
            if let Some(task) = queue.tasks.pop_front() {
                return Some(task);
            }
            if queue.closed {
                return None;
            }
            queue = self
                .wake
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn broken(&self) -> Result<(), Error> {
        match &self.queue().broken {
            Some(why) => Err(Error::Broken(why.clone())),
            None => Ok(()),
        }
    }
}

impl Task {
    fn fail(self, failure: Failure) {
        match self {
            Task::Read { done, .. } => done(Err(failure)),
            Task::Seek { done, .. } => done(Err(failure)),
            Task::Allocated { done } => done(Err(failure)),
        }
    }
}
