//! The files of layers in our address space, so that the kernel copies their pages to readers.
//! It knows which files are mapped and how much of them was used; it does not know what they hold.

use crate::sys::MappedFile;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Pages of files that stay in our memory map: they cost no memory, but count as ours wherever
/// somebody looks, and taking them out costs little beside the copying of as much.
const KEPT: u64 = 64 << 20;

/// All mappings of a mount.
#[derive(Default)]
pub(super) struct Mappings {
    used: AtomicU64,
    files: Mutex<Vec<Weak<MappedFile>>>,
}

impl Mappings {
    /// Maps a file of this length, if that can be done; it can be read without.
    pub(super) fn map(&self, file: &File, length: u64) -> Option<Arc<MappedFile>> {
        let mapped = match MappedFile::new(file, length) {
            Ok(mapped) => Arc::new(mapped),
            Err(error) => {
                tracing::debug!(%error, "a layer's file is not mapped");
                return None;
            }
        };
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|file| file.strong_count() > 0);
        files.push(Arc::downgrade(&mapped));
        Some(mapped)
    }

    /// Says that so many bytes were handed out.
    pub(super) fn used(&self, bytes: u64) {
        if self.used.fetch_add(bytes, Ordering::Relaxed) + bytes < KEPT {
            return;
        }
        self.used.store(0, Ordering::Relaxed);
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files.iter().filter_map(Weak::upgrade) {
            file.release_pages();
        }
    }
}
