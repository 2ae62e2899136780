//! Open files and directories. A text and a listing are fixed when they are opened, `log` and
//! `events` grow, a view is held open (and with it its lease) until its last reader closes it.

use super::guest_extents::Extents;
use super::pages::Habit;
use crate::guest::{Disks, Number, Tree};
use crate::ops::WaitScope;
use crate::report::{Reader, Stream};
use crate::tree::{NodeKey, PointKey};
use crate::view::{Cursor, View};
use fuser::{BackingId, FileHandle, FileType};
use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

/// What a file descriptor of the kernel stands for.
pub(super) enum Handle {
    /// A text, as it was when it was opened.
    Text(Vec<u8>),
    /// `log` or `events`, and how far its reader is.
    Lines(Stream, Mutex<Reader>),
    /// A `wait` file.
    Wait {
        /// Whose work.
        scope: WaitScope,
        /// The final state, once it is known.
        text: OnceLock<String>,
    },
    /// A control file open for writing: each write is a verb.
    Control {
        /// Which file.
        key: NodeKey,
        /// What a reader sees, as it was when it was opened.
        text: Vec<u8>,
    },
    /// A `disk.raw`, or a partition of one.
    View(OpenView),
    /// A file of a guest.
    GuestFile(GuestFile),
    /// A directory of a guest.
    GuestDirectory {
        /// The tree it is in.
        tree: Arc<Tree>,
        /// Which one.
        number: Number,
        /// Its names, as far as they were asked for.
        names: Mutex<Names>,
    },
    /// A directory's names as they were when it was opened.
    Directory(Vec<Entry>),
}

/// A `disk.raw`, or a partition of one, that is open.
pub(super) struct OpenView {
    /// The disk's bytes.
    pub(super) view: Arc<View>,
    /// Which of them are the file's.
    pub(super) window: Window,
    /// The partition it is, if it is not the whole disk.
    pub(super) partition: Option<u32>,
    /// Where the bytes read of its disk are counted.
    pub(super) bytes_read: Arc<AtomicU64>,
    /// Which point, for the log.
    pub(super) point: PointKey,
    /// Its file, if the kernel reads that by itself.
    pub(super) backing: Option<Arc<BackingId>>,
    /// Where its reader is.
    pub(super) cursor: Cursor,
    /// How it reads.
    pub(super) habit: Habit,
    /// What it reads, for the pages of the kernel.
    pub(super) files: u64,
    /// Whether a failed read was written down already; one line says it.
    pub(super) complained: AtomicBool,
}

impl OpenView {
    /// The whole disk, from its beginning.
    pub(super) fn new(view: Arc<View>, point: PointKey, bytes_read: Arc<AtomicU64>) -> Self {
        Self {
            window: Window {
                start: 0,
                length: view.virtual_size(),
            },
            partition: None,
            bytes_read,
            point,
            backing: None,
            cursor: Cursor::default(),
            habit: Habit::default(),
            files: view.fingerprint(),
            complained: AtomicBool::new(false),
            view,
        }
    }
}

/// A stretch of a disk that is read as a file.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) length: u64,
}

impl Window {
    /// Where on the disk `size` bytes of the file are, fewer at its end.
    pub(super) fn on_disk(self, offset: u64, size: u32) -> (u64, u32) {
        let rest = self.length.saturating_sub(offset);
        let size = u32::try_from(rest).unwrap_or(u32::MAX).min(size);
        (self.start.saturating_add(offset), size)
    }

    /// An offset of the disk as one of the file; its end for what lies behind it.
    pub(super) fn in_file(self, at: u64) -> u64 {
        at.saturating_sub(self.start).min(self.length)
    }
}

/// A file of a guest that is open.
pub(super) struct GuestFile {
    /// The filesystem it is in.
    pub(super) tree: Arc<Tree>,
    /// The disks it is on.
    pub(super) disks: Disks,
    /// Which node of the filesystem.
    pub(super) node: u64,
    /// Its bytes.
    pub(super) size: u64,
    /// Where they are on the disk.
    pub(super) extents: Extents,
    /// Where its reader is.
    pub(super) cursor: Cursor,
    /// Where the bytes read of the disk are counted.
    pub(super) bytes_read: Arc<AtomicU64>,
}

/// Names of a guest's directory.
pub(super) struct Names {
    /// They, `.` and `..` first.
    pub(super) entries: Vec<Entry>,
    /// Where to go on; None at the end.
    pub(super) next: Option<u64>,
    /// Answers that brought none.
    pub(super) empty: usize,
    /// Letters of all of them.
    pub(super) bytes: usize,
}

/// One name of a directory.
pub(super) struct Entry {
    pub(super) ino: u64,
    pub(super) kind: FileType,
    pub(super) name: OsString,
}

/// The table of open handles.
#[derive(Default)]
pub(super) struct Handles {
    last: AtomicU64,
    table: RwLock<HashMap<u64, Arc<Handle>>>,
}

impl Handles {
    /// Takes a handle in.
    pub(super) fn insert(&self, handle: Handle) -> FileHandle {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.table
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, Arc::new(handle));
        FileHandle(number)
    }

    /// The handle, while it is open.
    pub(super) fn get(&self, number: FileHandle) -> Option<Arc<Handle>> {
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number.0)
            .cloned()
    }

    /// Closes it. The last reader's reference drops the view, outside the table's lock.
    pub(super) fn remove(&self, number: FileHandle) -> Option<Arc<Handle>> {
        self.table
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&number.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Handle, Handles};

    #[test]
    fn a_handle_lives_until_it_is_removed() {
        let handles = Handles::default();
        let first = handles.insert(Handle::Text(b"a".to_vec()));
        let second = handles.insert(Handle::Directory(Vec::new()));
        assert_ne!(first, second);
        assert!(matches!(handles.get(first).as_deref(), Some(Handle::Text(text)) if text == b"a"));
        handles.remove(first);
        assert!(handles.get(first).is_none());
        assert!(handles.get(second).is_some());
    }
}
