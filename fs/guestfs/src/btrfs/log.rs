//! The log of a Btrfs in use: what was synced after the last commit, as the kernel replays it at the next mount.
//! Nothing is written: items that it changes are laid over those of the subvolumes' trees, in memory.
//! Invariant: what is not understood, or too much, is an error, and then nothing of the log is seen.

mod extents;
mod items;
mod links;

use super::content::EXTENT_DATA;
use super::names::{DIR_INDEX, XATTR_ITEM};
use super::tree::{Key, Root, Space};
use super::{INODE_ITEM, ROOT_ITEM, all};
use crate::Error;
use crate::bytes::{le32, le64, slice, u8};
use crate::filesystem::FileKind;
use items::{DAMAGE, INODE_EXTREF, INODE_REF, entries, inode_key, write};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

/// The object that the roots of the logs are listed under.
const LOGS: u64 = u64::MAX - 5;
const DIR_LOG_INDEX: u8 = 72;
/// Bytes of all logs together, of what they change, and of all names of the directories that they change: some hundred
/// thousand items, which take seconds.
const BYTES_MAX: usize = 48 << 20;
/// Steps of a replay, of some ten nanoseconds: names of one inode or extents of one file lead to the square of them.
const STEPS_MAX: usize = 100_000_000;
/// Bytes of an item that are a step.
const STEP: usize = 32;
/// The longest extent that the kernel makes, and some more.
const EXTENT_MAX: u64 = 256 << 20;

/// Lays the logs over the trees of the subvolumes.
pub(super) fn replay(
    space: &mut Space,
    logs: Root,
    subvolumes: &[(u64, Root)],
    sector: u64,
) -> Result<(), Error> {
    let key = |offset| Key {
        object: LOGS,
        kind: ROOT_ITEM,
        offset,
    };
    let mut found = Vec::new();
    space.each(logs, (key(0), key(u64::MAX)), &mut |key, item| {
        let root = Root {
            address: le64(item, 176)?,
            level: u8(item, 238)?,
        };
        found.push((key.offset, root));
        Ok(ControlFlow::Continue(()))
    })?;
    let mut room = BYTES_MAX;
    let steps = Cell::new(STEPS_MAX);
    for (number, log) in found {
        let subvolume = subvolumes.binary_search_by_key(&number, |it| it.0);
        // Of one that was removed since.
        let Ok(at) = subvolume else {
            continue;
        };
        let mut items = Vec::new();
        let ends = (all(0, 0).0, all(u64::MAX, u8::MAX).1);
        space.each(log, ends, &mut |key, item| {
            room = room.checked_sub(item.len() + 64).ok_or(TOO_MUCH)?;
            items.push((key, item.to_vec()));
            Ok(ControlFlow::Continue(()))
        })?;
        let mut replay = Replay {
            space: &mut *space,
            root: subvolumes[at].1,
            log: items.into_iter().collect(),
            sector,
            names: HashMap::new(),
            room: &mut room,
            steps: &steps,
            touched: BTreeSet::new(),
        };
        replay.all()?;
    }
    Ok(())
}

const TOO_MUCH: Error = Error::Unsupported("its log is too large");

/// A name of a directory: its place, and what it names.
type Named = (u64, Key);

struct Replay<'a> {
    space: &'a mut Space,
    /// The subvolume's tree, with what was changed so far.
    root: Root,
    log: BTreeMap<Key, Vec<u8>>,
    sector: u64,
    /// Names of the directories that were searched.
    names: HashMap<u64, HashMap<Vec<u8>, Named>>,
    room: &'a mut usize,
    steps: &'a Cell<usize>,
    /// Inodes whose numbers of names, sizes and blocks have to be counted again.
    touched: BTreeSet<u64>,
}

impl Replay<'_> {
    /// In the kernel's order: inodes, names that directories have, all else.
    fn all(&mut self) -> Result<(), Error> {
        let items: Vec<(Key, Vec<u8>)> = self.log.clone().into_iter().collect();
        // An inode without names was removed while it was open.
        let is_nameless = |(key, item): &&(Key, Vec<u8>)| {
            key.kind == INODE_ITEM && le32(item, 40).is_ok_and(|it| it == 0)
        };
        let nameless = items.iter().filter(is_nameless).map(|(key, _)| key.object);
        let nameless: HashSet<u64> = nameless.collect();
        let kept = || {
            let items = items.iter();
            items.filter(|(key, _)| !nameless.contains(&key.object))
        };
        for (key, item) in kept().filter(|(key, _)| key.kind == INODE_ITEM) {
            self.inode(*key, item)?;
        }
        for (key, item) in kept().filter(|(key, _)| key.kind == DIR_INDEX) {
            self.name(*key, item)?;
        }
        for (key, item) in kept() {
            match key.kind {
                XATTR_ITEM => self.put(*key, item.clone())?,
                INODE_REF | INODE_EXTREF => self.references(*key, item)?,
                EXTENT_DATA => self.extent(*key, item)?,
                _ => {}
            }
        }
        for inode in std::mem::take(&mut self.touched) {
            self.count(inode)?;
        }
        Ok(())
    }

    /// Counts what takes time.
    fn spend(&self, steps: usize) -> Result<(), Error> {
        let left = self.steps.get().checked_sub(steps).ok_or(TOO_MUCH)?;
        self.steps.set(left);
        Ok(())
    }

    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, Error> {
        self.space.get(self.root, key)
    }

    fn put(&mut self, key: Key, item: Vec<u8>) -> Result<(), Error> {
        *self.room = self.room.checked_sub(item.len() + 64).ok_or(TOO_MUCH)?;
        self.space.lay_over(self.root, key, Some(item));
        Ok(())
    }

    fn remove(&mut self, key: Key) -> Result<(), Error> {
        *self.room = self.room.checked_sub(64).ok_or(TOO_MUCH)?;
        self.space.lay_over(self.root, key, None);
        Ok(())
    }

    /// All items of an object that are of a kind.
    fn items(&self, object: u64, kind: u8) -> Result<Vec<(Key, Vec<u8>)>, Error> {
        let (mut found, mut bytes) = (Vec::new(), 0);
        self.space
            .each(self.root, all(object, kind), &mut |key, item| {
                self.spend(1 + item.len() / STEP)?;
                bytes += item.len() + 64;
                if bytes > BYTES_MAX {
                    return Err(TOO_MUCH);
                }
                found.push((key, item.to_vec()));
                Ok(ControlFlow::Continue(()))
            })?;
        Ok(found)
    }

    fn mode(&self, inode: u64) -> Result<Option<u32>, Error> {
        let item = self.get(inode_key(inode))?;
        item.map(|item| le32(&item, 52)).transpose()
    }

    /// The items of the log of an object that are of a kind.
    fn logged(&self, object: u64, kind: u8) -> impl Iterator<Item = (&Key, &Vec<u8>)> {
        let (from, to) = all(object, kind);
        self.log.range(from..=to)
    }

    fn inode(&mut self, key: Key, item: &[u8]) -> Result<(), Error> {
        let inode = key.object;
        self.attributes_gone(inode)?;
        let kind = FileKind::of_mode(le32(item, 52)?);
        let before = self.get(key)?;
        if kind == Some(FileKind::Directory) && before.is_some() {
            self.names_gone(inode)?;
        }
        match before {
            // Only that it exists was logged; of a file that was synced before, its size as well.
            Some(mut before) if le64(item, 0)? == 0 => {
                let size = slice(item, 16, 8)?;
                if kind == Some(FileKind::File) && le64(item, 16)? != 0 {
                    write(&mut before, 16, size)?;
                    self.put(key, before)?;
                }
            }
            // How many blocks it has is counted where there are some.
            before => {
                let mut after = item.to_vec();
                let bytes = before.map_or(Ok(0), |before| le64(&before, 24))?;
                write(&mut after, 24, &bytes.to_le_bytes())?;
                self.put(key, after)?;
            }
        }
        self.touched.insert(inode);
        if kind == Some(FileKind::File) {
            let item = self.get(key)?.ok_or(DAMAGE)?;
            let end = le64(&item, 16)?.checked_next_multiple_of(self.sector);
            self.drop_extents(inode, end.ok_or(DAMAGE)?, u64::MAX)?;
        }
        Ok(())
    }

    /// Takes attributes away that the log does not have.
    fn attributes_gone(&mut self, inode: u64) -> Result<(), Error> {
        let mut kept = HashSet::new();
        for (_, item) in self.logged(inode, XATTR_ITEM) {
            kept.extend(entries(item)?.into_iter().map(|(_, name, _)| name));
        }
        for (key, item) in self.items(inode, XATTR_ITEM)? {
            let mut left = Vec::new();
            for (_, name, whole) in entries(&item)? {
                if kept.contains(&name) {
                    left.extend(whole);
                }
            }
            match left.len() {
                0 => self.remove(key)?,
                length if length < item.len() => self.put(key, left)?,
                _ => {}
            }
        }
        Ok(())
    }
}
