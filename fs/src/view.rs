//! An open view: the bytes of one point, read from the sealed files of its chain.
//! It knows layers, locks and the qcow2 reader, and that a server can have the bytes instead; it knows
//! no FUSE, no QMP and no verb.
//! Invariants: a view's chain never changes; of QEMU's lock bytes only 100 is ever held;
//! no lock of ours is held while a file is read.

mod ahead;
mod allocated;
mod answer;
mod cache;
mod content;
mod extents;
mod layer;
mod lock;
mod mappings;
mod origins;
mod served;

pub use ahead::Cursor;
pub use allocated::{layer_allocated, layer_compressed, moves_when_committed_into};
pub use cache::{InternalRef, LayerCache, OpenChain, Pin};
pub use layer::{LayerSpec, OpenLayer, Reach, find_data_file};
pub use lock::{read_by_someone, written_by_someone};

use crate::errno::{Errno, Failure};
use crate::leases::Lease;
use crate::nbd::{self, Seek};
use extents::Extents;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// Where the bytes are.
enum Content {
    /// In files, read here.
    Chain(Arc<OpenChain>),
    /// Served by somebody else; and what tells the one from another.
    Served(Arc<nbd::Disk>, String),
}

/// The disk as it was at one instant. Read by many threads at once.
pub struct View {
    content: Content,
    /// Bytes that are data, once somebody has asked.
    allocated: OnceLock<u64>,
    /// None once it was given back.
    lease: Mutex<Option<Lease>>,
}

impl View {
    /// A view of an open chain, which keeps its point for as long as it lives.
    pub fn new(opened: Arc<OpenChain>, lease: Lease) -> View {
        View {
            content: Content::Chain(opened),
            allocated: OnceLock::new(),
            lease: Mutex::new(Some(lease)),
        }
    }

    /// A view of a disk that somebody serves, told from others by `identity`.
    pub fn served(disk: Arc<nbd::Disk>, identity: &str, lease: Lease) -> View {
        View {
            content: Content::Served(disk, identity.to_owned()),
            allocated: OnceLock::new(),
            lease: Mutex::new(Some(lease)),
        }
    }

    /// The same view, held by `pid` as well. None while its point is being removed.
    pub fn again(&self, pid: u32) -> Option<View> {
        Some(View {
            content: match &self.content {
                Content::Chain(opened) => Content::Chain(Arc::clone(opened)),
                Content::Served(disk, identity) => {
                    Content::Served(Arc::clone(disk), identity.clone())
                }
            },
            allocated: OnceLock::new(),
            lease: Mutex::new(Some(self.lease().as_ref()?.again(pid)?)),
        })
    }

    /// Gives the point back while the files of its layers may be open yet: nobody reads it any more.
    pub fn give_back(&self) {
        self.lease().take();
    }

    fn lease(&self) -> MutexGuard<'_, Option<Lease>> {
        // it is taken, or looked at: a panic elsewhere leaves it whole
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a server has some of the bytes: who must not wait asks [`View::read_later`].
    pub fn waits(&self) -> bool {
        match &self.content {
            Content::Chain(opened) => opened.served().is_some(),
            Content::Served(..) => true,
        }
    }

    /// Reads `size` bytes, fewer only at the end of the disk, on a thread that waits for the server.
    pub fn read_later(
        self: &Arc<Self>,
        offset: u64,
        size: usize,
        done: impl FnOnce(Result<Vec<u8>, Failure>) + Send + 'static,
    ) {
        if let Content::Served(disk, _) = &self.content {
            return disk.read(offset, size, done);
        }
        self.later(done, move |view| {
            let rest = view.virtual_size().saturating_sub(offset);
            let size = usize::try_from(rest).unwrap_or(usize::MAX).min(size);
            let mut bytes = vec![0; size];
            view.read(offset, &mut bytes).map(|()| bytes)
        });
    }

    /// Looks for data or a hole from `offset` on, in the same way.
    pub fn seek_later(
        self: &Arc<Self>,
        offset: u64,
        seek: Seek,
        done: impl FnOnce(Result<Option<u64>, Failure>) + Send + 'static,
    ) {
        if let Content::Served(disk, _) = &self.content {
            return disk.seek(offset, seek, done);
        }
        self.later(done, move |view| match seek {
            Seek::Data => view.seek_data(offset),
            Seek::Hole => view.seek_hole(offset).map(Some),
        });
    }

    /// Has a question answered by a thread that may wait, where there is one.
    fn later<T: 'static>(
        self: &Arc<Self>,
        done: impl FnOnce(Result<T, Failure>) + Send + 'static,
        question: impl FnOnce(&View) -> Result<T, Failure> + Send + 'static,
    ) {
        let view = Arc::clone(self);
        match self.opened().and_then(OpenChain::served) {
            Some(served) => served.hand_over(move |turn| done(turn.and_then(|()| question(&view)))),
            None => done(question(self)),
        }
    }

    /// Opens a chain, base first, at its top's own state or at an internal snapshot of the top.
    pub fn open(
        cache: &LayerCache,
        chain: &[LayerSpec],
        at: Option<&InternalRef>,
        lease: Lease,
    ) -> Result<View, Failure> {
        Ok(View::new(cache.open(chain, at)?, lease))
    }

    /// Bytes of the disk.
    pub fn virtual_size(&self) -> u64 {
        match &self.content {
            Content::Chain(opened) => opened.chain().virtual_size(),
            Content::Served(disk, _) => disk.size(),
        }
    }

    /// The file whose bytes are the view's, first to last, if there is one.
    pub fn as_file(&self) -> Option<&File> {
        match self.opened()?.layers() {
            [only] => only.as_file(self.virtual_size()),
            _ => None,
        }
    }

    /// The next offset, from `offset` on, where there is data; None when there is none to the end.
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>, Failure> {
        match &self.content {
            Content::Chain(opened) => Extents::new(opened)
                .next(offset, true)
                .map_err(|error| failure(&error)),
            Content::Served(disk, _) => disk.seek_now(offset, Seek::Data),
        }
    }

    /// The next offset, from `offset` on, where there is a hole. The end of the disk is one.
    pub fn seek_hole(&self, offset: u64) -> Result<u64, Failure> {
        let hole = match &self.content {
            Content::Chain(opened) => Extents::new(opened)
                .next(offset, false)
                .map_err(|error| failure(&error))?,
            Content::Served(disk, _) => disk.seek_now(offset, Seek::Hole)?,
        };
        Ok(hole.unwrap_or_else(|| self.virtual_size()))
    }

    /// Bytes of the disk that are data. The first call walks all tables; the answer is kept.
    pub fn allocated_bytes(&self) -> Result<u64, Failure> {
        if let Some(known) = self.allocated.get() {
            return Ok(*known);
        }
        let bytes = match &self.content {
            Content::Chain(opened) => Extents::new(opened)
                .data_bytes()
                .map_err(|error| failure(&error))?,
            Content::Served(disk, _) => disk.allocated_now()?,
        };
        Ok(*self.allocated.get_or_init(|| bytes))
    }

    /// Fills `buffer` from `offset`; all of it must be on the disk.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        let length = match &self.content {
            Content::Chain(opened) => {
                let read = opened.chain().read_at(buffer, offset);
                read.map_err(|error| failure(&error))?
            }
            Content::Served(disk, _) => {
                let bytes = disk.read_now(offset, buffer.len())?;
                let length = bytes.len().min(buffer.len());
                buffer[..length].copy_from_slice(&bytes[..length]);
                length
            }
        };
        match length == buffer.len() {
            true => Ok(()),
            false => Err(Failure::new(Errno::EIO, "the disk ends before that")),
        }
    }

    /// Bytes of a stretch that are data; None where counting takes longer than until `deadline`, or
    /// would be asked of a server.
    pub fn data_bytes_in(
        &self,
        stretch: Range<u64>,
        deadline: Instant,
    ) -> Result<Option<u64>, Failure> {
        match &self.content {
            Content::Chain(opened) => Extents::new(opened)
                .data_bytes_in(stretch, deadline)
                .map_err(|error| failure(&error)),
            Content::Served(..) => Ok(None),
        }
    }

    /// What the files of the view were when it was opened: the same number, the same bytes.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match &self.content {
            Content::Chain(opened) => {
                for layer in opened.layers() {
                    layer.stamps().hash(&mut hasher);
                }
            }
            Content::Served(_, identity) => identity.hash(&mut hasher),
        }
        hasher.finish()
    }

    /// The layers that are read, base first. None where somebody else reads them.
    pub fn opened(&self) -> Option<&OpenChain> {
        match &self.content {
            Content::Chain(opened) => Some(opened),
            Content::Served(..) => None,
        }
    }
}

/// What the reader could not read, in its own words.
fn failure(error: &qmpfs_qcow2::Error) -> Failure {
    if let Some(told) = served::told(error) {
        return told;
    }
    let errno = match error {
        qmpfs_qcow2::Error::Io { .. } => Errno::EIO,
        qmpfs_qcow2::Error::Corrupt(_) => Errno::EUCLEAN,
        qmpfs_qcow2::Error::Unsupported(_) => Errno::EOPNOTSUPP,
    };
    let words = match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let next = match error {
        qmpfs_qcow2::Error::Io { .. } => "see what the host says of its disk: dmesg",
        qmpfs_qcow2::Error::Corrupt(_) => "check it with the VM off: qemu-img check",
        qmpfs_qcow2::Error::Unsupported(_) => {
            "with the VM off, qemu-img convert -O qcow2 makes an image that is read"
        }
    };
    Failure::new(errno, words).next(next)
}

/// The same of a file that has a name.
pub(crate) fn failure_of(path: &std::path::Path, error: &qmpfs_qcow2::Error) -> Failure {
    let failure = failure(error);
    Failure::new(
        failure.errno,
        format!("{}: {}", path.display(), failure.message),
    )
    .next(failure.next)
}

#[cfg(test)]
mod tests;
