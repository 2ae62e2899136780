//! Extents of files, as the kernel replays them: one that is logged takes the place of what was there. And what an
//! inode says of itself is counted again.

use super::items::{DAMAGE, INODE_EXTREF, INODE_REF, inode_key, length, references, write};
use super::{EXTENT_MAX, Replay};
use crate::Error;
use crate::btrfs::all;
use crate::btrfs::content::{EXTENT_DATA, INLINE};
use crate::btrfs::tree::Key;
use crate::bytes::{le32, le64, u8};
use crate::filesystem::FileKind;
use std::ops::ControlFlow;

impl Replay<'_> {
    pub(super) fn extent(&mut self, key: Key, item: &[u8]) -> Result<(), Error> {
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
    pub(super) fn drop_extents(&mut self, inode: u64, start: u64, end: u64) -> Result<(), Error> {
        let (mut from, to) = all(inode, EXTENT_DATA);
        from.offset = self.reach(inode, start)?;
        let mut found = Vec::new();
        self.space.each(self.root, (from, to), &mut |key, item| {
            if key.offset >= end {
                return Ok(ControlFlow::Break(()));
            }
            self.spend(1)?;
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

    /// Where to look from for what reaches into a file from its byte `start` on: extents have a longest length, but
    /// holes that are items have none, and nothing else begins in them.
    fn reach(&self, inode: u64, start: u64) -> Result<u64, Error> {
        let near = start.saturating_sub(EXTENT_MAX);
        if near == 0 || self.has_beginning(inode, near, start)? {
            return Ok(near);
        }
        // The last one that begins before is between these two.
        let (mut low, mut high) = (0, near);
        while high - low > EXTENT_MAX {
            let middle = low.midpoint(high);
            match self.has_beginning(inode, middle, high)? {
                true => low = middle,
                false => high = middle,
            }
        }
        Ok(low)
    }

    /// Whether an extent of a file begins in a stretch of it that is not empty.
    fn has_beginning(&self, inode: u64, start: u64, end: u64) -> Result<bool, Error> {
        self.spend(1)?;
        let (mut from, mut to) = all(inode, EXTENT_DATA);
        (from.offset, to.offset) = (start, end - 1);
        let mut found = false;
        self.space.each(self.root, (from, to), &mut |_, _| {
            found = true;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// Sets what an inode says of itself: its names, the names in it, its blocks.
    pub(super) fn count(&mut self, inode: u64) -> Result<(), Error> {
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
