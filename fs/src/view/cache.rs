//! Layers that are open, shared by the views that read them, and kept as they were while a merge
//! of ours rewrites their files.
//! It knows which open layer is the current one of a file; it does not know who reads it or why
//! it is kept.

use super::layer::{LayerSpec, OpenLayer, Opener, Reach};
use super::mappings::Mappings;
use super::served::ServedLayer;
use super::{failure, failure_of};
use crate::errno::{Errno, Failure};
use crate::model::{FileId, Format};
use crate::nbd;
use crate::sys;
use qmpfs_qcow2::{CacheBytes, Caches, Chain, Layer};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

/// Memory for L2 tables of all layers together: enough for 256 GiB of disk with 64 KiB clusters.
const TABLE_BYTES: usize = 32 << 20;

/// Memory for flat maps of all chains together: enough for 50 GiB of disk of 64 KiB clusters that
/// are all over the place, and for nearly any disk that is not.
const MAP_BYTES: usize = 32 << 20;

/// Memory for decompressed clusters of all layers together: for some ten readers, each with its read
/// and what is decompressed ahead of it.
const CLUSTER_BYTES: usize = 32 << 20;

/// A header may say more, and means no other second by it.
const NANOS_MAX: u32 = 999_999_999;

/// An internal snapshot as the model names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalRef {
    /// QEMU's id within the file.
    pub id: String,
    /// Its name in the snapshot table.
    pub tag: String,
}

/// The layers of one view, open and locked: the locks go with this, not with a clone of its chain.
pub struct OpenChain {
    chain: Chain,
    layers: Vec<Arc<OpenLayer>>,
    mappings: Arc<Mappings>,
}

impl OpenChain {
    /// How they are read.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The files, base first.
    pub fn layers(&self) -> &[Arc<OpenLayer>] {
        &self.layers
    }

    /// Who reads the base, where that is not us.
    pub(super) fn served(&self) -> Option<&ServedLayer> {
        self.layers.first()?.served()
    }

    pub(super) fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// When the internal snapshot of the top was taken that is called so now.
    pub fn snapshot_time(&self, at: &InternalRef) -> Result<Option<SystemTime>, Failure> {
        let Some(Layer::Qcow2(image)) = self.layers.last().map(|top| &**top.layer()) else {
            return Ok(None);
        };
        let snapshots = image.snapshots().map_err(|error| failure(&error))?;
        let called = snapshots
            .iter()
            .find(|snapshot| snapshot.id_str() == at.id && snapshot.name_str() == at.tag);
        Ok(called.map(|snapshot| {
            let nanos = snapshot.date_nanos.min(NANOS_MAX);
            SystemTime::UNIX_EPOCH + Duration::new(snapshot.date_secs.into(), nanos)
        }))
    }

    /// Whether nobody has written to any of the files since they were opened.
    pub fn unchanged(&self) -> bool {
        self.layers.iter().all(|layer| layer.unchanged())
    }
}

/// All layers that are open. A clone is another handle on the same ones.
#[derive(Clone)]
pub struct LayerCache {
    shared: Arc<Shared>,
}

struct Shared {
    /// Never held while a file is opened or read.
    files: Mutex<HashMap<FileId, Entry>>,
    /// Chains that are open at their own state, by their top.
    chains: Mutex<HashMap<FileId, Weak<OpenChain>>>,
    opener: Opener,
}

/// What is open of one file.
#[derive(Default)]
struct Entry {
    /// The one that a new view shares.
    current: Weak<OpenLayer>,
    /// Those of views from before the file was rewritten.
    older: Vec<Weak<OpenLayer>>,
    /// While a job of ours is at work on the file: the layer from before, and how many pins.
    pinned: Option<(Arc<OpenLayer>, usize)>,
}

impl Entry {
    /// What a new view shares, if there is anything.
    fn shared(&self) -> Option<Arc<OpenLayer>> {
        match &self.pinned {
            Some((pinned, _)) => Some(pinned.clone()),
            None => self.current.upgrade(),
        }
    }

    fn retire_current(&mut self) {
        self.older.push(std::mem::take(&mut self.current));
        self.older.retain(|layer| layer.strong_count() > 0);
    }

    fn is_used(&self) -> bool {
        let open = |layer: &Weak<OpenLayer>| layer.strong_count() > 0;
        self.pinned.is_some() || open(&self.current) || self.older.iter().any(open)
    }
}

/// Keeps layers as they are; see [`LayerCache::pin`].
#[must_use = "a pin that is dropped keeps nothing"]
pub struct Pin {
    cache: LayerCache,
    files: Vec<FileId>,
}

impl Default for LayerCache {
    fn default() -> Self {
        LayerCache::new(Reach::Guarded)
    }
}

impl LayerCache {
    /// Nothing open yet; data files are looked for within `reach`.
    pub fn new(reach: Reach) -> Self {
        let caches = Caches::new(TABLE_BYTES, CLUSTER_BYTES).with_map_bytes(MAP_BYTES);
        LayerCache {
            shared: Arc::new(Shared {
                files: Mutex::default(),
                chains: Mutex::default(),
                opener: Opener {
                    caches: Arc::new(caches),
                    mappings: Arc::default(),
                    reach,
                },
            }),
        }
    }

    /// Bytes in memory, by what they hold.
    pub fn sizes(&self) -> CacheBytes {
        self.shared.opener.caches.bytes_of_each()
    }

    /// Opens a chain, base first: its top's own state, or an internal snapshot of the top.
    pub fn open(
        &self,
        chain: &[LayerSpec],
        at: Option<&InternalRef>,
    ) -> Result<Arc<OpenChain>, Failure> {
        self.open_over(None, chain, at)
    }

    /// The same over a layer that is served, if there is one: it stands for all below as well.
    pub fn open_over(
        &self,
        base: Option<(&LayerSpec, &Arc<nbd::Disk>)>,
        chain: &[LayerSpec],
        at: Option<&InternalRef>,
    ) -> Result<Arc<OpenChain>, Failure> {
        let base = base.map(|(spec, disk)| self.served(spec, disk));
        let upper = chain.iter().map(|spec| self.layer(spec));
        let layers = base
            .into_iter()
            .chain(upper)
            .collect::<Result<Vec<_>, _>>()?;
        let open = |chain, layers| {
            Arc::new(OpenChain {
                chain,
                layers,
                mappings: self.shared.opener.mappings.clone(),
            })
        };
        let mut readers: Vec<_> = layers.iter().map(|layer| layer.layer().clone()).collect();
        if let (Some(at), Some(spec), Some(top)) = (at, chain.last(), layers.last()) {
            readers.pop();
            readers.push(Arc::new(internal(spec, top, at)?));
            return Ok(open(Chain::new(readers), layers));
        }
        let Some(top) = layers.last().map(|top| top.id()) else {
            return Ok(open(Chain::new(readers), layers));
        };
        // Who reads the same layers shares the map of them.
        let mut chains = self
            .shared
            .chains
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = chains.get(&top).and_then(Weak::upgrade)
            && known.layers.len() == layers.len()
            && known
                .layers
                .iter()
                .zip(&layers)
                .all(|(a, b)| Arc::ptr_eq(a, b))
        {
            return Ok(known);
        }
        let opened = open(Chain::new(readers), layers);
        chains.retain(|_, chain| chain.strong_count() > 0);
        chains.insert(top, Arc::downgrade(&opened));
        Ok(opened)
    }

    /// Opens all layers that can be read and keeps them: until the pin is dropped, what is opened
    /// uses these layers and the maps made now, whatever is written to the files. Afterwards
    /// opens read the files anew, and older views go on with what they have. `source` is the layer
    /// that our own job commits if it runs already: it is opened without a lock.
    pub fn pin(&self, chain: &[LayerSpec], source: Option<FileId>) -> Result<Pin, Failure> {
        let mut pin = Pin {
            cache: self.clone(),
            files: Vec::new(),
        };
        for spec in chain
            .iter()
            .filter(|spec| !matches!(spec.format, Format::Other(_)))
        {
            let layer = if source.is_some() && spec.file == source {
                Arc::new(self.shared.opener.open_unlocked(spec)?)
            } else {
                self.layer(spec)?
            };
            let mut files = self.files();
            let entry = files.entry(layer.id()).or_default();
            // Whoever pinned first has the older map, and it is as right as ours.
            entry.pinned.get_or_insert((layer.clone(), 0)).1 += 1;
            pin.files.push(layer.id());
        }
        Ok(pin)
    }

    /// Gives the lock of a file back, because our own job needs it. Views go on reading, and
    /// while the file is pinned nothing opens (and locks) it again.
    pub fn unlock(&self, file: FileId) {
        let open: Vec<_> = {
            let files = self.files();
            let Some(entry) = files.get(&file) else {
                return;
            };
            let weak = entry
                .older
                .iter()
                .chain([&entry.current])
                .filter_map(Weak::upgrade);
            weak.chain(entry.pinned.iter().map(|(layer, _)| layer.clone()))
                .collect()
        };
        open.iter().for_each(|layer| layer.unlock());
    }

    /// A layer that is served: the one that others read, or a new one.
    fn served(&self, spec: &LayerSpec, disk: &Arc<nbd::Disk>) -> Result<Arc<OpenLayer>, Failure> {
        let known = spec
            .file
            .and_then(|file| self.files().get(&file).and_then(Entry::shared));
        if let Some(known) = known
            && known.served().is_some_and(|served| served.is(disk))
        {
            return Ok(known);
        }
        let opener = &self.shared.opener;
        let opened = opener.open_served(&spec.path, spec.file, Arc::clone(disk))?;
        let opened = Arc::new(opened);
        let mut files = self.files();
        let entry = files.entry(opened.id()).or_default();
        entry.retire_current();
        entry.current = Arc::downgrade(&opened);
        Ok(opened)
    }

    /// One layer: the pinned one, the current one, or a newly opened one.
    pub(super) fn layer(&self, spec: &LayerSpec) -> Result<Arc<OpenLayer>, Failure> {
        let file = match spec.file {
            Some(file) => file,
            None => sys::file_id(&spec.path).map_err(|error| {
                Failure::io(format_args!("look at {}", spec.path.display()), &error)
            })?,
        };
        let (known, pinned) = {
            let files = self.files();
            let entry = files.get(&file);
            (
                entry.and_then(Entry::shared),
                entry.is_some_and(|entry| entry.pinned.is_some()),
            )
        };
        // what a server reads is nothing for who wants to read the file
        let ours = known.filter(|known| known.served().is_none());
        if let Some(known) = ours
            && (pinned || known.unchanged())
        {
            return Ok(known);
        }
        let opened = Arc::new(self.shared.opener.open(spec)?);
        let mut files = self.files();
        // Files whose layers are all closed are swept here, so that the map is bounded by what is open.
        files.retain(|_, entry| entry.is_used());
        let entry = files.entry(opened.id()).or_default();
        // Somebody may have been quicker; then there is one of it all the same.
        match entry.shared() {
            Some(known)
                if known.served().is_none()
                    && (entry.pinned.is_some() || known.stamps() == opened.stamps()) =>
            {
                Ok(known)
            }
            Some(_) | None => {
                entry.retire_current();
                entry.current = Arc::downgrade(&opened);
                Ok(opened)
            }
        }
    }

    fn files(&self) -> MutexGuard<'_, HashMap<FileId, Entry>> {
        // No change of the map can panic halfway.
        self.shared
            .files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut done = Vec::new();
        let mut files = self.cache.files();
        for file in &self.files {
            let Some(entry) = files.get_mut(file) else {
                continue;
            };
            let Some((_, pins)) = &mut entry.pinned else {
                continue;
            };
            *pins -= 1;
            if *pins == 0 {
                done.extend(entry.pinned.take());
                // What comes next must not take the old map for the current one.
                entry.retire_current();
            }
        }
        drop(files);
        // Only now: the last user of a file closes it.
        drop(done);
    }
}

fn internal(spec: &LayerSpec, top: &OpenLayer, at: &InternalRef) -> Result<Layer, Failure> {
    let gone = || {
        Failure::new(
            Errno::ENOENT,
            format!(
                "{} has no internal snapshot '{}' (id {}) any more",
                spec.path.display(),
                at.tag,
                at.id
            ),
        )
        .next("see which there are: ls internal")
    };
    let Layer::Qcow2(image) = &**top.layer() else {
        return Err(gone());
    };
    let words = |error: qmpfs_qcow2::Error| {
        if error.is_snapshot_gone() {
            gone()
        } else {
            failure_of(&spec.path, &error)
        }
    };
    let snapshots = image.snapshots().map_err(words)?;
    let snapshot = snapshots
        .iter()
        .find(|snapshot| snapshot.id_str() == at.id && snapshot.name_str() == at.tag)
        .ok_or_else(gone)?;
    image.at_snapshot(snapshot).map(Layer::Qcow2).map_err(words)
}
