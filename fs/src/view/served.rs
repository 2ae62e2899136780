//! A layer that our reader cannot read, served by a QEMU that can: its bytes as the reader wants them, and
//! threads that wait for them in a reader's stead, so that a server that hangs holds up nobody else.
//! It knows a served disk and its deadlines; it does not know which QEMU that is, nor the format.

use super::failure;
use crate::errno::{Errno, Failure};
use crate::nbd::{self, Seek};
use qmpfs_qcow2::ReadAt;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests that are waited for at a time: as many as a served disk has connections.
const WAITERS: usize = 4;
/// Requests that may wait for their turn; the kernel asks for far fewer.
const QUEUE_MAX: usize = 4096;
/// Who has waited so long for his turn is not made to wait for the server as well.
const TURN_DEADLINE: Duration = Duration::from_secs(30);

/// Done by a waiter; or told why not, where there is no room or no time.
type Task = Box<dyn FnOnce(Result<(), Failure>) + Send>;

/// See the module.
pub(super) struct ServedLayer {
    disk: Arc<nbd::Disk>,
    waiters: SyncSender<(Instant, Task)>,
}

impl ServedLayer {
    /// Starts the threads; they end when this is dropped.
    pub(super) fn start(disk: Arc<nbd::Disk>) -> Result<Self, Failure> {
        let (waiters, tasks) = sync_channel(QUEUE_MAX);
        let tasks = Arc::new(Mutex::new(tasks));
        for _ in 0..WAITERS {
            let tasks = Arc::clone(&tasks);
            std::thread::Builder::new()
                .name("served".into())
                .spawn(move || wait_for_others(&tasks))
                .map_err(|error| Failure::io("start a thread", &error))?;
        }
        Ok(ServedLayer { disk, waiters })
    }

    /// Whether it is this disk.
    pub(super) fn is(&self, disk: &Arc<nbd::Disk>) -> bool {
        Arc::ptr_eq(&self.disk, disk)
    }

    /// The layer as the reader sees it: a raw one.
    pub(super) fn bytes(&self) -> Arc<dyn ReadAt> {
        Arc::new(Bytes(Arc::clone(&self.disk)))
    }

    /// Where what begins at `offset` ends, and whether it is data.
    pub(super) fn stretch_at(&self, offset: u64) -> Result<(u64, bool), Failure> {
        match self.disk.seek_now(offset, Seek::Data)? {
            Some(data) if data <= offset => {
                let hole = self.disk.seek_now(offset, Seek::Hole)?;
                Ok((hole.unwrap_or(self.disk.size()), true))
            }
            Some(data) => Ok((data, false)),
            None => Ok((self.disk.size(), false)),
        }
    }

    /// Has something done that may wait for the server.
    pub(super) fn hand_over(&self, task: impl FnOnce(Result<(), Failure>) + Send + 'static) {
        match self.waiters.try_send((Instant::now(), Box::new(task))) {
            Ok(()) => {}
            Err(TrySendError::Full((_, task)) | TrySendError::Disconnected((_, task))) => {
                task(Err(
                    Failure::new(Errno::EBUSY, "too many requests at once").next("read again")
                ));
            }
        }
    }
}

fn wait_for_others(tasks: &Mutex<Receiver<(Instant, Task)>>) {
    loop {
        let next = {
            // Nothing that can panic happens under it.
            let tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.recv()
        };
        let Ok((came, task)) = next else { return };
        task(match came.elapsed() < TURN_DEADLINE {
            true => Ok(()),
            false => Err(
                Failure::new(Errno::ETIMEDOUT, "the server of a layer does not answer")
                    .next("look whether QEMU hangs, and read again"),
            ),
        });
    }
}

struct Bytes(Arc<nbd::Disk>);

impl ReadAt for Bytes {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.0.read_now(offset, buffer.len());
        // whoever unpacks it finds the failure as it was
        let bytes = read.map_err(io::Error::other)?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.size())
    }
}

/// The words of a served layer, which the reader has passed on as an error of its file.
pub(super) fn told(error: &qmpfs_qcow2::Error) -> Option<Failure> {
    let qmpfs_qcow2::Error::Io { source, .. } = error else {
        return None;
    };
    source.get_ref()?.downcast_ref::<Failure>().cloned()
}

/// A served layer as a layer of the reader.
pub(super) fn raw(served: &ServedLayer) -> Result<qmpfs_qcow2::Layer, Failure> {
    let raw = qmpfs_qcow2::RawLayer::open(served.bytes());
    raw.map(qmpfs_qcow2::Layer::Raw)
        .map_err(|error| failure(&error))
}
