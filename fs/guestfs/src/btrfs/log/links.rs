//! Names of inodes and names in directories, as the kernel replays them: what a log has of them is what there is.

use super::items::{
    DAMAGE, INODE_EXTREF, INODE_REF, Reference, entries, entry_key, inode_key, joined, references,
};
use super::{DIR_LOG_INDEX, Named, Replay, STEP, TOO_MUCH};
use crate::Error;
use crate::btrfs::INODE_ITEM;
use crate::btrfs::names::DIR_INDEX;
use crate::btrfs::tree::Key;
use crate::bytes::le64;
use crate::filesystem::FileKind;
use std::collections::HashMap;

impl Replay<'_> {
    /// Takes names away that the log does not have, where it has all of a range.
    pub(super) fn names_gone(&mut self, directory: u64) -> Result<(), Error> {
        let mut ranges = Vec::new();
        for (key, item) in self.logged(directory, DIR_LOG_INDEX) {
            ranges.push((key.offset, le64(item, 0)?));
        }
        if ranges.is_empty() {
            return Ok(());
        }
        let names = self.names(directory)?.clone();
        for (name, (index, location)) in names {
            self.spend(ranges.len())?;
            let is_in = |(from, to): &(u64, u64)| (*from..=*to).contains(&index);
            let key = entry_key(directory, index);
            let is_kept = match self.log.get(&key) {
                Some(item) => {
                    self.spend(item.len() / STEP)?;
                    entries(item)?.iter().any(|(_, its, _)| *its == name)
                }
                None => false,
            };
            if !is_kept && ranges.iter().any(is_in) {
                self.unlink(directory, &name, (index, location))?;
            }
        }
        Ok(())
    }

    /// The names of a directory.
    pub(super) fn names(&mut self, directory: u64) -> Result<&mut HashMap<Vec<u8>, Named>, Error> {
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
    pub(super) fn name(&mut self, key: Key, item: &[u8]) -> Result<(), Error> {
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
    pub(super) fn logged_references(&self, inode: u64) -> Result<Vec<Reference>, Error> {
        let mut all = Vec::new();
        for kind in [INODE_REF, INODE_EXTREF] {
            for (key, item) in self.logged(inode, kind) {
                self.spend(1 + item.len() / STEP)?;
                all.extend(references(*key, item)?);
            }
        }
        Ok(all)
    }

    pub(super) fn references(&mut self, key: Key, item: &[u8]) -> Result<(), Error> {
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
                self.spend(all_logged.len())?;
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
    pub(super) fn own_references(&self, inode: u64, parent: u64) -> Result<Vec<Reference>, Error> {
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

    pub(super) fn add_reference(
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
    pub(super) fn link(&mut self, directory: u64, name: &[u8], at: Named) -> Result<(), Error> {
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
    pub(super) fn unlink_named(
        &mut self,
        directory: u64,
        name: &[u8],
        inode: u64,
    ) -> Result<(), Error> {
        match self.names(directory)?.get(name).copied() {
            Some(at) if at.1 == inode_key(inode) => self.unlink(directory, name, at),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn unlink(&mut self, directory: u64, name: &[u8], at: Named) -> Result<(), Error> {
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
}
