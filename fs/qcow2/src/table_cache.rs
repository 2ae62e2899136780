//! Bounded caches for L2 tables, decompressed clusters and flat maps, shared by many images.
//!
//! Knows: owners, host offsets, and how many bytes it may keep.
//! Does not know: what a table says. Values are immutable once in.
//! Invariant: the lock covers a lookup or an insertion, never a read of a file.
//! Lock order: this is the last lock; nothing else is taken under it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lru::LruCache;

use crate::flat_map::Room;
use crate::units::HostOffset;

/// Enough tables for 128 GiB of a disk with 64 KiB clusters.
const DEFAULT_TABLE_BYTES: usize = 16 << 20;
/// Enough for each of a few readers to stay within one compressed cluster of 2 MiB.
const DEFAULT_CLUSTER_BYTES: usize = 8 << 20;

/// The caches of one image, or of as many images as they are given to.
pub struct Caches {
    pub(crate) tables: BoundedCache<[u64]>,
    pub(crate) clusters: BoundedCache<DecompressedCluster>,
    pub(crate) maps: Arc<Room>,
}

impl Caches {
    /// Caches that keep at most so many bytes of L2 tables and of decompressed clusters.
    pub fn new(table_bytes: usize, cluster_bytes: usize) -> Caches {
        Caches {
            tables: BoundedCache::new(table_bytes),
            clusters: BoundedCache::new(cluster_bytes),
            maps: Arc::default(),
        }
    }

    /// The same with room for this many bytes of flat maps of chains.
    pub fn with_map_bytes(self, bytes: usize) -> Caches {
        Caches {
            maps: Arc::new(Room::new(bytes)),
            ..self
        }
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        let CacheBytes {
            tables,
            clusters,
            maps,
        } = self.bytes_of_each();
        tables.saturating_add(clusters).saturating_add(maps)
    }

    /// Bytes held now, by what they hold.
    pub fn bytes_of_each(&self) -> CacheBytes {
        CacheBytes {
            tables: self.tables.bytes(),
            clusters: self.clusters.bytes(),
            maps: self.maps.bytes(),
        }
    }
}

/// Bytes in each of the caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheBytes {
    /// L2 tables.
    pub tables: usize,
    /// Decompressed clusters.
    pub clusters: usize,
    /// Flat maps of chains.
    pub maps: usize,
}

impl Default for Caches {
    fn default() -> Caches {
        Caches::new(DEFAULT_TABLE_BYTES, DEFAULT_CLUSTER_BYTES)
    }
}

/// A cluster that is decompressed, or being decompressed: who comes second waits for the first.
/// None if it could not be.
pub(crate) type DecompressedCluster = OnceLock<Option<Arc<[u8]>>>;

/// Whose entries these are: a file as it was when an image was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner(u64);

impl Owner {
    /// An owner that nobody was before.
    pub(crate) fn new() -> Owner {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Owner(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Where a value was made from: of whom, at which place, of how many bytes of the file.
pub(crate) type Key = (Owner, HostOffset, u32);

/// Values by place, least recently used out first.
pub(crate) struct BoundedCache<T: ?Sized> {
    max_bytes: usize,
    state: Mutex<State<T>>,
}

struct State<T: ?Sized> {
    entries: LruCache<Key, Entry<T>>,
    bytes: usize,
}

struct Entry<T: ?Sized> {
    value: Arc<T>,
    bytes: usize,
}

impl<T: ?Sized> BoundedCache<T> {
    fn new(max_bytes: usize) -> BoundedCache<T> {
        let state = State {
            entries: LruCache::unbounded(),
            bytes: 0,
        };
        BoundedCache {
            max_bytes,
            state: Mutex::new(state),
        }
    }

    pub(crate) fn get(&self, key: Key) -> Option<Arc<T>> {
        let mut state = self.lock();
        let entry = state.entries.get(&key)?;
        Some(Arc::clone(&entry.value))
    }

    /// Whether it is there, without using it.
    pub(crate) fn contains(&self, key: Key) -> bool {
        self.lock().entries.contains(&key)
    }

    /// What is there, or else `value`, which counts as so many bytes and is in the cache now if it
    /// fits at all.
    pub(crate) fn get_or_insert(
        &self,
        key: Key,
        bytes: usize,
        value: impl FnOnce() -> Arc<T>,
    ) -> Arc<T> {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get(&key) {
            return Arc::clone(&entry.value);
        }
        let value = value();
        if bytes > self.max_bytes {
            return value;
        }
        state.bytes = state.bytes.saturating_add(bytes);
        let entry = Entry {
            value: Arc::clone(&value),
            bytes,
        };
        state.entries.put(key, entry);
        while state.bytes > self.max_bytes {
            let Some((_, old)) = state.entries.pop_lru() else {
                break;
            };
            state.bytes = state.bytes.saturating_sub(old.bytes);
        }
        value
    }

    pub(crate) fn remove(&self, key: Key) {
        let mut state = self.lock();
        if let Some(old) = state.entries.pop(&key) {
            state.bytes = state.bytes.saturating_sub(old.bytes);
        }
    }

    fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A panic elsewhere cannot leave the map half changed in a way that matters: it is a cache.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
