//! The log of a Btrfs in use: what was synced after the last commit, as the kernel replays it at the next mount.
//! Nothing is written: items that it changes are laid over those of the subvolumes' trees, in memory.
//! Invariant: what is not understood, or too much, is an error, and then nothing of the log is seen.

use super::content::{EXTENT_DATA, INLINE};
use super::names::{DIR_INDEX, HEADER as ENTRY, XATTR_ITEM};
use super::tree::{Key, Root, Space};
use super::{INODE_ITEM, ROOT_ITEM, all};
use crate::Error;
use crate::bytes::{le16, le32, le64, slice, u8};
use crate::filesystem::FileKind;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

/// The object that the roots of the logs are listed under.
const LOGS: u64 = u64::MAX - 5;
const INODE_REF: u8 = 12;
const INODE_EXTREF: u8 = 13;
const DIR_LOG_INDEX: u8 = 72;
/// Bytes of all logs together, of what they change, and of all names of the directories that they change: some hundred
/// thousand items, which take seconds.
const BYTES_MAX: usize = 48 << 20;
/// The longest extent that the kernel makes, and some more.
const EXTENT_MAX: u64 = 256 << 20;
/// Before the name in a reference, and in one of the second kind.
const REF: usize = 10;
const EXTREF: usize = 18;

const DAMAGE: Error = Error::Corrupt("its log");

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
            touched: BTreeSet::new(),
        };
        replay.all()?;
    }
    Ok(())
}

const TOO_MUCH: Error = Error::Unsupported("its log is too large");

/// A name of a directory: its place, and what it names.
type Named = (u64, Key);

/// One name of an inode: the directory, its place there, and the name.
type Reference = (u64, u64, Vec<u8>);

/// An entry of a directory, or an extended attribute: where it leads, its name, and all of it.
type Entry = (Key, Vec<u8>, Vec<u8>);

struct Replay<'a> {
    space: &'a mut Space,
    /// The subvolume's tree, with what was changed so far.
    root: Root,
    log: BTreeMap<Key, Vec<u8>>,
    sector: u64,
    /// Names of the directories that were searched.
    names: HashMap<u64, HashMap<Vec<u8>, Named>>,
    room: &'a mut usize,
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

    /// Takes names away that the log does not have, where it has all of a range.
    fn names_gone(&mut self, directory: u64) -> Result<(), Error> {
        let mut ranges = Vec::new();
        for (key, item) in self.logged(directory, DIR_LOG_INDEX) {
            ranges.push((key.offset, le64(item, 0)?));
        }
        if ranges.is_empty() {
            return Ok(());
        }
        let names = self.names(directory)?.clone();
        for (name, (index, location)) in names {
            let is_in = |(from, to): &(u64, u64)| (*from..=*to).contains(&index);
            let key = entry_key(directory, index);
            let is_kept = match self.log.get(&key) {
                Some(item) => entries(item)?.iter().any(|(_, its, _)| *its == name),
                None => false,
            };
            if !is_kept && ranges.iter().any(is_in) {
                self.unlink(directory, &name, (index, location))?;
            }
        }
        Ok(())
    }

    /// The names of a directory.
    fn names(&mut self, directory: u64) -> Result<&mut HashMap<Vec<u8>, Named>, Error> {
        if !self.names.contains_key(&directory) {
            let mut names = HashMap::new();
            for (key, item) in self.items(directory, DIR_INDEX)? {
                for (location, name, _) in entries(&item)? {
                    *self.room = self.room.checked_sub(name.len() + 64).ok_or(TOO_MUCH)?;
                    names.insert(name, (key.offset, location));
                }
            }
            self.names.insert(directory, names);
        }
        self.names.get_mut(&directory).ok_or(DAMAGE)
    }

    /// A name of a directory that was logged as a whole.
    fn name(&mut self, key: Key, item: &[u8]) -> Result<(), Error> {
        let directory = key.object;
        for (location, name, _) in entries(item)? {
            if location.kind != INODE_ITEM {
                continue;
            }
            if self.mode(directory)?.is_none() {
                return Err(DAMAGE);
            }
            let exists = self.mode(location.object)?.is_some();
            match self.names(directory)?.get(&name).copied() {
                Some((_, its)) if its == location => continue,
                Some(other) if exists => self.unlink(directory, &name, other)?,
                Some(_) | None => {}
            }
            let has_reference = self
                .logged_references(location.object)?
                .iter()
                .any(|(parent, _, its)| *parent == directory && *its == name);
            // Those that have one are added with that.
            if exists && !has_reference {
                self.link(directory, &name, (key.offset, location))?;
                self.add_reference(location.object, directory, key.offset, &name)?;
            }
        }
        Ok(())
    }

    /// The names that the log has of an inode.
    fn logged_references(&self, inode: u64) -> Result<Vec<Reference>, Error> {
        let mut all = Vec::new();
        for kind in [INODE_REF, INODE_EXTREF] {
            for (key, item) in self.logged(inode, kind) {
                all.extend(references(*key, item)?);
            }
        }
        Ok(all)
    }

    fn references(&mut self, key: Key, item: &[u8]) -> Result<(), Error> {
        let inode = key.object;
        if self.mode(inode)?.is_none() {
            return Err(DAMAGE);
        }
        let logged = references(key, item)?;
        let all_logged = self.logged_references(inode)?;
        let location = inode_key(inode);
        let mut is_there = false;
        for (parent, index, name) in &logged {
            if self.mode(*parent)?.is_none() {
                continue;
            }
            is_there = true;
            if self.names(*parent)?.get(name) == Some(&(*index, location)) {
                continue;
            }
            // Names in that directory that it has no more.
            for (_, _, old) in self.own_references(inode, *parent)? {
                let is_logged = |it: &Reference| (it.0, &it.2) == (*parent, &old);
                if !all_logged.iter().any(is_logged) {
                    self.unlink_named(*parent, &old, inode)?;
                }
            }
            if let Some(other) = self.names(*parent)?.get(name).copied() {
                self.unlink(*parent, name, other)?;
            }
            self.link(*parent, name, (*index, location))?;
        }
        if !is_there {
            return Ok(());
        }
        let before = self.get(key)?;
        for (parent, _, old) in before.map_or(Ok(Vec::new()), |it| references(key, &it))? {
            if !logged.iter().any(|it| (it.0, &it.2) == (parent, &old)) {
                self.unlink_named(parent, &old, inode)?;
            }
        }
        self.put(key, item.to_vec())?;
        self.touched.insert(inode);
        Ok(())
    }

    /// The names that the tree has of an inode in a directory.
    fn own_references(&self, inode: u64, parent: u64) -> Result<Vec<Reference>, Error> {
        let key = Key {
            object: inode,
            kind: INODE_REF,
            offset: parent,
        };
        let mut all = match self.get(key)? {
            Some(item) => references(key, &item)?,
            None => Vec::new(),
        };
        for (key, item) in self.items(inode, INODE_EXTREF)? {
            let others = references(key, &item)?.into_iter();
            all.extend(others.filter(|it| it.0 == parent));
        }
        Ok(all)
    }

    fn add_reference(
        &mut self,
        inode: u64,
        parent: u64,
        index: u64,
        name: &[u8],
    ) -> Result<(), Error> {
        let key = Key {
            object: inode,
            kind: INODE_REF,
            offset: parent,
        };
        let mut item = self.get(key)?.unwrap_or_default();
        item.extend(index.to_le_bytes());
        // Names are 255 bytes at most.
        item.extend((name.len() as u16).to_le_bytes());
        item.extend(name);
        self.put(key, item)
    }

    /// Adds a name to a directory.
    fn link(&mut self, directory: u64, name: &[u8], at: Named) -> Result<(), Error> {
        let (index, location) = at;
        let mode = self.mode(location.object)?.ok_or(DAMAGE)?;
        let kind = FileKind::of_mode(mode).ok_or(DAMAGE)?;
        let mut item = Vec::new();
        item.extend(location.object.to_le_bytes());
        item.push(location.kind);
        item.extend(location.offset.to_le_bytes());
        item.extend([0; 10]);
        item.extend((name.len() as u16).to_le_bytes());
        item.push(kind.entry());
        item.extend(name);
        // Whatever stood in that place.
        let before = self.get(entry_key(directory, index))?;
        let names = self.names(directory)?;
        for (_, other, _) in before.map_or(Ok(Vec::new()), |it| entries(&it))? {
            names.remove(&other);
        }
        names.insert(name.to_vec(), at);
        self.touched.extend([directory, location.object]);
        self.put(entry_key(directory, index), item)
    }

    /// Takes a name away from a directory, if it names that inode.
    fn unlink_named(&mut self, directory: u64, name: &[u8], inode: u64) -> Result<(), Error> {
        match self.names(directory)?.get(name).copied() {
            Some(at) if at.1 == inode_key(inode) => self.unlink(directory, name, at),
            Some(_) | None => Ok(()),
        }
    }

    fn unlink(&mut self, directory: u64, name: &[u8], at: Named) -> Result<(), Error> {
        let (index, location) = at;
        if location.kind != INODE_ITEM {
            // Whoever removes a subvolume commits.
            return Err(Error::Unsupported("a subvolume in its log"));
        }
        self.names(directory)?.remove(name);
        self.remove(entry_key(directory, index))?;
        self.touched.extend([directory, location.object]);
        let inode = location.object;
        let mut keys = self.items(inode, INODE_EXTREF)?;
        let key = Key {
            object: inode,
            kind: INODE_REF,
            offset: directory,
        };
        keys.extend(self.get(key)?.map(|item| (key, item)));
        for (key, item) in keys {
            let is_it = |it: &Reference| it.0 == directory && it.2 == name;
            let (gone, left): (Vec<_>, Vec<_>) =
                references(key, &item)?.into_iter().partition(is_it);
            match (gone.is_empty(), left.is_empty()) {
                (true, _) => {}
                (false, true) => self.remove(key)?,
                (false, false) => self.put(key, joined(key, &left))?,
            }
        }
        Ok(())
    }

    fn extent(&mut self, key: Key, item: &[u8]) -> Result<(), Error> {
        if self.mode(key.object)?.is_none() {
            return Err(DAMAGE);
        }
        let end = key.offset.checked_add(length(item, self.sector)?);
        self.drop_extents(key.object, key.offset, end.ok_or(DAMAGE)?)?;
        self.put(key, item.to_vec())?;
        self.touched.insert(key.object);
        Ok(())
    }

    /// Takes a stretch out of a file.
    fn drop_extents(&mut self, inode: u64, start: u64, end: u64) -> Result<(), Error> {
        let (mut from, to) = all(inode, EXTENT_DATA);
        from.offset = start.saturating_sub(EXTENT_MAX);
        let mut found = Vec::new();
        self.space.each(self.root, (from, to), &mut |key, item| {
            if key.offset >= end {
                return Ok(ControlFlow::Break(()));
            }
            found.push((key, item.to_vec()));
            Ok(ControlFlow::Continue(()))
        })?;
        for (key, item) in found {
            let its_end = key.offset.checked_add(length(&item, self.sector)?);
            let its_end = its_end.ok_or(DAMAGE)?;
            if its_end <= start {
                continue;
            }
            self.touched.insert(inode);
            let is_inline = u8(&item, 20)? == INLINE;
            if key.offset < start {
                if is_inline {
                    return Err(Error::Unsupported("a part of an inline extent in its log"));
                }
                let mut head = item.clone();
                write(&mut head, 45, &(start - key.offset).to_le_bytes())?;
                self.put(key, head)?;
            } else {
                self.remove(key)?;
            }
            if its_end > end && !is_inline {
                let mut tail = item;
                let skipped = le64(&tail, 37)?.checked_add(end - key.offset);
                write(&mut tail, 37, &skipped.ok_or(DAMAGE)?.to_le_bytes())?;
                write(&mut tail, 45, &(its_end - end).to_le_bytes())?;
                let key = Key { offset: end, ..key };
                self.put(key, tail)?;
            }
        }
        Ok(())
    }

    /// Sets what an inode says of itself: its names, the names in it, its blocks.
    fn count(&mut self, inode: u64) -> Result<(), Error> {
        let key = inode_key(inode);
        let Some(mut item) = self.get(key)? else {
            return Ok(());
        };
        let mut links = 0u32;
        for kind in [INODE_REF, INODE_EXTREF] {
            for (key, item) in self.items(inode, kind)? {
                links += references(key, &item)?.len() as u32;
            }
        }
        write(&mut item, 40, &links.to_le_bytes())?;
        match FileKind::of_mode(le32(&item, 52)?) {
            Some(FileKind::Directory) => {
                let names = self.names(inode)?.keys();
                let size: u64 = names.map(|name| 2 * name.len() as u64).sum();
                write(&mut item, 16, &size.to_le_bytes())?;
            }
            Some(FileKind::File | FileKind::Symlink) => {
                let mut bytes = 0u64;
                for (_, extent) in self.items(inode, EXTENT_DATA)? {
                    let its = match u8(&extent, 20)? == INLINE {
                        true => le64(&extent, 8)?,
                        false if le64(&extent, 21)? == 0 => 0,
                        false => le64(&extent, 45)?,
                    };
                    bytes = bytes.saturating_add(its);
                }
                write(&mut item, 24, &bytes.to_le_bytes())?;
            }
            Some(_) | None => {}
        }
        self.put(key, item)
    }
}

fn inode_key(inode: u64) -> Key {
    Key {
        object: inode,
        kind: INODE_ITEM,
        offset: 0,
    }
}

fn entry_key(directory: u64, index: u64) -> Key {
    Key {
        object: directory,
        kind: DIR_INDEX,
        offset: index,
    }
}

fn write(item: &mut [u8], at: usize, bytes: &[u8]) -> Result<(), Error> {
    let field = item.get_mut(at..at + bytes.len()).ok_or(DAMAGE)?;
    field.copy_from_slice(bytes);
    Ok(())
}

/// Bytes of a file that an extent stands for; one in the tree stands for whole sectors.
fn length(item: &[u8], sector: u64) -> Result<u64, Error> {
    match u8(item, 20)? == INLINE {
        true => {
            let bytes = le64(item, 8)?;
            bytes.checked_next_multiple_of(sector).ok_or(DAMAGE)
        }
        false => le64(item, 45),
    }
}

/// Entries of a directory, or extended attributes: where each leads, its name, and all of it.
fn entries(item: &[u8]) -> Result<Vec<Entry>, Error> {
    let (mut found, mut rest) = (Vec::new(), item);
    while !rest.is_empty() {
        let (value, name) = (usize::from(le16(rest, 25)?), usize::from(le16(rest, 27)?));
        let whole = slice(rest, 0, ENTRY + name + value)?;
        let name = slice(whole, ENTRY, name)?.to_vec();
        found.push((Key::parse(whole, 0)?, name, whole.to_vec()));
        rest = rest.get(whole.len()..).unwrap_or_default();
    }
    Ok(found)
}

/// The names in an item of references, of either kind.
fn references(key: Key, item: &[u8]) -> Result<Vec<Reference>, Error> {
    let (mut found, mut rest) = (Vec::new(), item);
    while !rest.is_empty() {
        let (parent, index, length, head) = match key.kind {
            INODE_REF => (key.offset, le64(rest, 0)?, le16(rest, 8)?, REF),
            _ => (le64(rest, 0)?, le64(rest, 8)?, le16(rest, 16)?, EXTREF),
        };
        let name = slice(rest, head, length.into())?.to_vec();
        rest = rest.get(head + name.len()..).unwrap_or_default();
        found.push((parent, index, name));
    }
    Ok(found)
}

/// The item of these names.
fn joined(key: Key, all: &[Reference]) -> Vec<u8> {
    let mut item = Vec::new();
    for (parent, index, name) in all {
        if key.kind != INODE_REF {
            item.extend(parent.to_le_bytes());
        }
        item.extend(index.to_le_bytes());
        // Names are 255 bytes at most.
        item.extend((name.len() as u16).to_le_bytes());
        item.extend(name);
    }
    item
}
