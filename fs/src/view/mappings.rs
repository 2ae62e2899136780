//! The files of layers in our address space, so that the kernel copies their pages to readers.
//! It knows which files are mapped and how much of them was used; it does not know what they hold.

use crate::sys::MappedFile;
use arc_swap::ArcSwapOption;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Pages of files that stay in our memory map: they cost no memory, but count as ours wherever
/// somebody looks, and taking them out costs little beside the copying of as much.
const KEPT: u64 = 64 << 20;

/// All mappings of a mount.
#[derive(Default)]
pub(super) struct Mappings {
    used: AtomicU64,
    files: Mutex<Vec<Weak<Mapping>>>,
}

/// One file, mapped while it is used.
pub(super) struct Mapping {
    file: Arc<File>,
    length: u64,
    mapped: ArcSwapOption<MappedFile>,
    /// It cannot be mapped; it can be read without.
    refused: AtomicBool,
}

impl Mappings {
    /// The first `length` bytes of a file.
    pub(super) fn enter(&self, file: Arc<File>, length: u64) -> Arc<Mapping> {
        let mapping = Arc::new(Mapping {
            file,
            length,
            mapped: ArcSwapOption::empty(),
            refused: AtomicBool::new(length == 0),
        });
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|file| file.strong_count() > 0);
        files.push(Arc::downgrade(&mapping));
        mapping
    }

    /// Says that so many bytes were handed out.
    pub(super) fn used(&self, bytes: u64) {
        if self.used.fetch_add(bytes, Ordering::Relaxed) + bytes < KEPT {
            return;
        }
        self.used.store(0, Ordering::Relaxed);
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files.iter().filter_map(Weak::upgrade) {
            // Mapped anew where it is used next, without the tables of what was used so far.
            file.mapped.store(None);
        }
    }
}

impl Mapping {
    /// The file, if the kernel can copy these bytes from where they lie.
    pub(super) fn of(&self, host: u64, length: usize) -> Option<Arc<MappedFile>> {
        if host.checked_add(length as u64)? > self.length {
            return None;
        }
        if let Some(mapped) = &*self.mapped.load() {
            return Some(Arc::clone(mapped));
        }
        if self.refused.load(Ordering::Relaxed) {
            return None;
        }
        match MappedFile::new(&self.file, self.length) {
            Ok(mapped) => {
                let mapped = Arc::new(mapped);
                self.mapped.store(Some(Arc::clone(&mapped)));
                Some(mapped)
            }
            Err(error) => {
                tracing::debug!(%error, "a layer's file is not mapped");
                self.refused.store(true, Ordering::Relaxed);
                None
            }
        }
    }
}
