//! Trees of Btrfs: nodes found by logical addresses, and their items in the order of keys.
//! Invariants: a node is what its parent says of it (address, level, first key), so that a tree has no circles;
//! keys only grow, over all nodes of a level, so that none is gone through twice.

use crate::bytes::{le16, le32, le64, slice, u8};
use crate::{Error, ReadAt};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// What a node has before its items.
const HEADER: usize = 101;
const KEY: usize = 17;
const POINTER: usize = 33;
const ITEM: usize = 25;
/// Levels of a tree, as in the kernel.
const LEVELS: u8 = 8;
/// Nodes that are kept: some megabytes.
const KEPT: usize = 256;
/// Chunks of one device: as many as a device of a petabyte has.
const CHUNKS_MAX: usize = 1 << 20;
/// Profiles that lie on one device as they are: one copy, or the first of two.
const STRIPED: u64 = 0x8 | 0x40 | 0x80 | 0x100;

/// What finds an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) fn parse(bytes: &[u8], at: usize) -> Result<Key, Error> {
        Ok(Key {
            object: le64(bytes, at)?,
            kind: u8(bytes, at + 8)?,
            offset: le64(bytes, at + 9)?,
        })
    }
}

/// Is shown an item, and says whether it wants the next one.
pub(super) type Visit<'a> = &'a mut dyn FnMut(Key, &[u8]) -> Result<ControlFlow<()>, Error>;

/// The root of a tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    pub(super) address: u64,
    pub(super) level: u8,
}

/// A stretch of logical addresses: how many bytes, and the first on the disk.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    length: u64,
    disk: u64,
}

impl Chunk {
    /// A chunk, and the length of what says so.
    pub(super) fn parse(item: &[u8]) -> Result<(Chunk, usize), Error> {
        let (length, profile) = (le64(item, 0)?, le64(item, 24)?);
        let copies = usize::from(le16(item, 44)?);
        if copies > 1 && profile & STRIPED != 0 {
            return Err(Error::Unsupported("a chunk is striped"));
        }
        if copies == 0 || length == 0 {
            return Err(Error::Corrupt("a chunk"));
        }
        let disk = le64(item, 56)?;
        Ok((Chunk { length, disk }, 48 + copies * 32))
    }
}

/// Where logical addresses are on the disk.
pub(super) struct Space {
    source: Arc<dyn ReadAt>,
    node_size: u32,
    /// Whether nodes have checksums that are known here.
    has_crc: bool,
    /// By first address.
    chunks: BTreeMap<u64, Chunk>,
    kept: Mutex<HashMap<u64, Arc<Vec<u8>>>>,
    /// By the address of a tree's root: items that are others than the tree's, and those that are gone.
    over: HashMap<u64, BTreeMap<Key, Option<Vec<u8>>>>,
}

impl Space {
    pub(super) fn new(source: Arc<dyn ReadAt>, node_size: u32, has_crc: bool) -> Space {
        Space {
            source,
            node_size,
            has_crc,
            chunks: BTreeMap::new(),
            kept: Mutex::default(),
            over: HashMap::new(),
        }
    }

    pub(super) fn add(&mut self, address: u64, chunk: Chunk) -> Result<(), Error> {
        let end = address.checked_add(chunk.length);
        if end.is_none() || self.chunks.len() >= CHUNKS_MAX {
            return Err(Error::Corrupt("a chunk"));
        }
        self.chunks.insert(address, chunk);
        Ok(())
    }

    /// Where `length` bytes from a logical address on are.
    pub(super) fn place(&self, address: u64, length: u64) -> Result<u64, Error> {
        const NONE: Error = Error::Corrupt("an address is in no chunk");
        let (start, chunk) = self.chunks.range(..=address).next_back().ok_or(NONE)?;
        let within = address - start;
        if within
            .checked_add(length)
            .is_none_or(|end| end > chunk.length)
        {
            return Err(NONE);
        }
        let place = chunk.disk.checked_add(within).ok_or(NONE)?;
        match place.checked_add(length) {
            Some(end) if end <= self.source.size() => Ok(place),
            Some(_) | None => Err(Error::Corrupt("a chunk is behind the end")),
        }
    }

    pub(super) fn bytes(&self, address: u64, length: usize) -> Result<Vec<u8>, Error> {
        self.source
            .bytes(self.place(address, length as u64)?, length)
    }

    fn node(&self, root: Root) -> Result<Arc<Vec<u8>>, Error> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = kept.get(&root.address) {
            check(node, root)?;
            return Ok(Arc::clone(node));
        }
        let node = self.bytes(root.address, self.node_size as usize)?;
        let sum = crc32c::crc32c(slice(&node, 32, node.len().saturating_sub(32))?);
        if self.has_crc && sum != le32(&node, 0)? {
            return Err(Error::Corrupt("the checksum of a node"));
        }
        check(&node, root)?;
        if kept.len() >= KEPT {
            kept.clear();
        }
        let node = Arc::new(node);
        kept.insert(root.address, Arc::clone(&node));
        Ok(node)
    }

    /// Puts an item into a tree, or takes it out, in memory.
    pub(super) fn lay_over(&mut self, root: Root, key: Key, item: Option<Vec<u8>>) {
        self.over.entry(root.address).or_default().insert(key, item);
    }

    /// Forgets all that was put into trees.
    pub(super) fn uncover(&mut self) {
        self.over.clear();
    }

    /// Shows the items of a tree between two keys, both included, until `visit` has enough.
    pub(super) fn each(
        &self,
        root: Root,
        (from, to): (Key, Key),
        visit: Visit<'_>,
    ) -> Result<(), Error> {
        let Some(over) = self.over.get(&root.address) else {
            return self.on_disk(root, (from, to), visit);
        };
        if from > to {
            return Ok(());
        }
        let mut waiting = over.range(from..=to).peekable();
        let mut reached = ControlFlow::Continue(());
        self.on_disk(root, (from, to), &mut |key, item| {
            while let Some((its, item)) = waiting.next_if(|(its, _)| **its < key) {
                if let Some(item) = item {
                    reached = visit(*its, item)?;
                }
                if reached.is_break() {
                    return Ok(reached);
                }
            }
            reached = match waiting.next_if(|(its, _)| **its == key) {
                Some((_, Some(item))) => visit(key, item)?,
                Some((_, None)) => ControlFlow::Continue(()),
                None => visit(key, item)?,
            };
            Ok(reached)
        })?;
        for (key, item) in waiting {
            if reached.is_break() {
                break;
            }
            if let Some(item) = item {
                reached = visit(*key, item)?;
            }
        }
        Ok(())
    }

    fn on_disk(&self, root: Root, (from, to): (Key, Key), visit: Visit<'_>) -> Result<(), Error> {
        if root.level >= LEVELS {
            return Err(Error::Corrupt("a tree is too high"));
        }
        let mut seen = [None; LEVELS as usize];
        let _reached = self.below(root, None, (from, to), &mut seen, visit)?;
        Ok(())
    }

    /// `seen` has the last key of each level.
    fn below(
        &self,
        root: Root,
        first: Option<Key>,
        (from, to): (Key, Key),
        seen: &mut [Option<Key>; LEVELS as usize],
        visit: Visit<'_>,
    ) -> Result<ControlFlow<()>, Error> {
        let node = self.node(root)?;
        let count = le32(&node, 96)? as usize;
        let width = if root.level == 0 { ITEM } else { POINTER };
        if count > (node.len() - HEADER) / width {
            return Err(Error::Corrupt("a node has more items than room"));
        }
        let key = |index: usize| Key::parse(&node, HEADER + index * width);
        if count > 0 && first.is_some_and(|first| key(0).is_ok_and(|its| its != first)) {
            return Err(Error::Corrupt("a node is not what led to it"));
        }
        // The last child that may have the first key, or the first item that has it.
        let mut index = search(count, |index| Ok(key(index)? < from))?;
        if root.level > 0 {
            index = match index < count && key(index)? == from {
                true => index,
                false => index.saturating_sub(1),
            };
        }
        let level = usize::from(root.level);
        while index < count {
            let its = key(index)?;
            if its > to {
                return Ok(ControlFlow::Break(()));
            }
            if seen[level].is_some_and(|last| its <= last) {
                return Err(Error::Corrupt("the keys of a tree are out of order"));
            }
            seen[level] = Some(its);
            let at = HEADER + index * width + KEY;
            let reached = match root.level.checked_sub(1) {
                None => {
                    let (start, length) =
                        (le32(&node, at)? as usize, le32(&node, at + 4)? as usize);
                    let start = start.saturating_add(HEADER);
                    visit(its, slice(&node, start, length)?)?
                }
                Some(level) => {
                    let address = le64(&node, at)?;
                    self.below(Root { address, level }, Some(its), (from, to), seen, visit)?
                }
            };
            if reached.is_break() {
                return Ok(reached);
            }
            index += 1;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The item of a key.
    pub(super) fn get(&self, root: Root, key: Key) -> Result<Option<Vec<u8>>, Error> {
        let mut found = None;
        self.each(root, (key, key), &mut |_, item| {
            found = Some(item.to_vec());
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

fn check(node: &[u8], root: Root) -> Result<(), Error> {
    match le64(node, 48)? == root.address && u8(node, 100)? == root.level {
        true => Ok(()),
        false => Err(Error::Corrupt("a node is not what led to it")),
    }
}

/// How many of `count` are before what is looked for; they come first.
fn search(count: usize, is_before: impl Fn(usize) -> Result<bool, Error>) -> Result<usize, Error> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        match is_before(middle)? {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    Ok(low)
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Chunk, HEADER, ITEM, Key, LEVELS, Root, Space};
    use std::ops::ControlFlow;
    use std::sync::Arc;

    const NODE: usize = 4096;

    pub(in crate::btrfs) fn key(object: u64, kind: u8, offset: u64) -> Key {
        Key {
            object,
            kind,
            offset,
        }
    }

    /// A node of a level with these keys, and what each leads to: an address, or an item.
    fn node(address: usize, level: u8, keys: &[Key], below: &[Vec<u8>]) -> Vec<u8> {
        let mut node = vec![0; NODE];
        node[48..56].copy_from_slice(&(address as u64).to_le_bytes());
        node[96..100].copy_from_slice(&(keys.len() as u32).to_le_bytes());
        node[100] = level;
        let (mut at, mut end) = (HEADER, NODE);
        for (key, below) in keys.iter().zip(below) {
            let mut head = key.object.to_le_bytes().to_vec();
            head.push(key.kind);
            head.extend(key.offset.to_le_bytes());
            if level == 0 {
                end -= below.len();
                head.extend(((end - HEADER) as u32).to_le_bytes());
                head.extend((below.len() as u32).to_le_bytes());
                node[end..end + below.len()].copy_from_slice(below);
            } else {
                head.extend(below);
                head.extend([0; 8]);
            }
            node[at..at + head.len()].copy_from_slice(&head);
            at += head.len();
        }
        node
    }

    fn space(disk: Vec<u8>) -> Space {
        let length = disk.len() as u64;
        let mut space = Space::new(Arc::new(disk), NODE as u32, false);
        let chunk = Chunk { length, disk: 0 };
        space.add(0, chunk).expect("a chunk");
        space
    }

    /// A tree of one node with these items.
    pub(in crate::btrfs) fn tree(items: &[(Key, Vec<u8>)]) -> (Space, Root) {
        let (keys, items): (Vec<Key>, Vec<Vec<u8>>) = items.iter().cloned().unzip();
        assert!(items.len() * ITEM < NODE / 2, "they fit");
        let root = Root {
            address: 0,
            level: 0,
        };
        (space(node(0, 0, &keys, &items)), root)
    }

    /// Each is what its parent says of it, and the ways through them are 26,000,000,000.
    #[test]
    fn nodes_that_lead_to_the_same_ones_are_refused() {
        const WIDTH: usize = 100;
        let address = |level: u8, index: usize| (usize::from(level) * WIDTH + index) * NODE;
        let mut disk = Vec::new();
        for level in 0..LEVELS {
            for first in 0..WIDTH {
                let last = if level == 0 { first + 1 } else { WIDTH };
                let keys: Vec<Key> = (first..last).map(|it| key(it as u64, 1, 0)).collect();
                let below = (first..last).map(|it| match level.checked_sub(1) {
                    Some(level) => (address(level, it) as u64).to_le_bytes().to_vec(),
                    None => vec![1],
                });
                let below: Vec<Vec<u8>> = below.collect();
                disk.extend(node(address(level, first), level, &keys, &below));
            }
        }
        let root = Root {
            address: address(LEVELS - 1, 0) as u64,
            level: LEVELS - 1,
        };
        let mut seen = 0;
        let all = (key(0, 0, 0), key(u64::MAX, u8::MAX, u64::MAX));
        let walked = space(disk).each(root, all, &mut |_, _| {
            seen += 1;
            Ok(ControlFlow::Continue(()))
        });
        assert!(walked.is_err() && seen <= WIDTH, "{seen}");
    }
}
