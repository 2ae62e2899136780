//! Views that are one raw file: the kernel reads the file itself, and asks us for nothing.
//! It knows the kernel's rule that an inode which is open like that has one file for all who open
//! it; it does not know which views are raw.

use crate::tree::PointKey;
use crate::view::View;
use fuser::{BackingId, ReplyOpen};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Files that the kernel reads by itself.
#[derive(Default)]
pub(super) struct Passthrough {
    /// The kernel can do it (6.9), and we may ask it to.
    offered: AtomicBool,
    open: Mutex<HashMap<PointKey, Weak<BackingId>>>,
}

impl Passthrough {
    /// Says that the kernel can do it.
    pub(super) fn offer(&self) {
        self.offered.store(true, Ordering::Relaxed);
    }

    /// Registers the file of a view with the kernel, if it is one that can be read like that. It
    /// is to be kept as long as the view is open.
    pub(super) fn register(
        &self,
        point: &PointKey,
        view: &View,
        reply: &ReplyOpen,
    ) -> Option<Arc<BackingId>> {
        let file = view.as_file()?;
        if !self.offered.load(Ordering::Relaxed) {
            return None;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = open.get(point).and_then(Weak::upgrade) {
            return Some(known);
        }
        match reply.open_backing(file) {
            Ok(backing) => {
                let backing = Arc::new(backing);
                open.retain(|_, backing| backing.strong_count() > 0);
                open.insert(point.clone(), Arc::downgrade(&backing));
                Some(backing)
            }
            Err(error) => {
                // Only root may, and not every filesystem can.
                tracing::debug!(%error, "a raw layer is read through us");
                None
            }
        }
    }
}
