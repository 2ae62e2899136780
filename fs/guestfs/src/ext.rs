//! ext2, ext3 and ext4: superblock, groups, and the reader over them.
//! What the journal holds is laid over the disk before anything else is read.

mod content;
mod directory;
mod inode;
mod journal;
mod superblock;
mod xattr;

use crate::filesystem::{Attributes, Extent, Filesystem, Journal, Listing, Xattr};
use crate::{Error, ReadAt};
use inode::Inode;
use journal::{Overlay, Replay};
use std::sync::Arc;
use superblock::Superblock;

/// The inode of the root directory.
const ROOT: u64 = 2;
/// Longest target of a link, as in the kernel.
const TARGET_MAX: u64 = 4096;

/// The filesystem's blocks, as the journal leaves them.
struct Blocks {
    source: Arc<dyn ReadAt>,
    size: u32,
    count: u64,
    overlay: Overlay,
}

impl Blocks {
    /// `length` bytes from `within` on in block `number`.
    fn part(&self, number: u64, within: usize, length: usize) -> Result<Vec<u8>, Error> {
        if number >= self.count || within.saturating_add(length) > self.size as usize {
            return Err(Error::Corrupt("a block number is too large"));
        }
        let size = u64::from(self.size);
        let Some(saved) = self.overlay.get(number) else {
            return self.source.bytes(number * size + within as u64, length);
        };
        let mut block = self.source.bytes(saved.block * size, self.size as usize)?;
        if saved.escaped {
            block[..4].copy_from_slice(&journal::MAGIC.to_be_bytes());
        }
        Ok(block[within..within + length].to_vec())
    }

    fn block(&self, number: u64) -> Result<Vec<u8>, Error> {
        self.part(number, 0, self.size as usize)
    }
}

/// An open ext2, ext3 or ext4.
pub struct Ext {
    superblock: Superblock,
    blocks: Blocks,
    journal: Journal,
}

impl Ext {
    /// Reads the superblock, and the journal if it is needed.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Ext, Error> {
        let superblock = Superblock::parse(&source.bytes(superblock::OFFSET, superblock::LENGTH)?)?;
        let blocks = Blocks {
            size: superblock.block_size,
            count: superblock
                .blocks
                .min(source.size() / u64::from(superblock.block_size)),
            overlay: Overlay::default(),
            source,
        };
        let mut ext = Ext {
            superblock,
            blocks,
            journal: Journal::Clean,
        };
        if let Some(inode) = ext.superblock.journal_to_replay()? {
            let Replay { overlay, journal } = journal::replay(&ext, inode)?;
            ext.blocks.overlay = overlay;
            ext.journal = journal;
            // It is a block like others, and may have been in the journal.
            let (number, within) = match ext.blocks.size {
                1024 => (1, 0),
                _ => (0, superblock::OFFSET as usize),
            };
            let bytes = ext.blocks.part(number, within, superblock::LENGTH)?;
            ext.superblock = Superblock::parse(&bytes)?;
        }
        Ok(ext)
    }

    fn inode(&self, number: u64) -> Result<Inode, Error> {
        let (group, index) = self.superblock.place_of_inode(number)?;
        let (descriptor, within) = self.superblock.descriptor(group)?;
        let length = self.superblock.descriptor_size;
        let descriptor = self.blocks.part(descriptor, within, length)?;
        let table = superblock::inode_table(&descriptor)?;
        let size = u64::from(self.superblock.inode_size);
        let at = index * size;
        let block = table.checked_add(at / u64::from(self.blocks.size));
        let block = block.ok_or(Error::Corrupt("an inode table is behind the end"))?;
        // Inodes never straddle blocks: both sizes are powers of two, and the block is not smaller.
        let within = (at % u64::from(self.blocks.size)) as usize;
        let bytes = self.blocks.part(block, within, size as usize)?;
        Inode::parse(bytes, &self.superblock)
    }
}

impl Filesystem for Ext {
    fn root(&self) -> u64 {
        ROOT
    }

    fn journal(&self) -> Journal {
        self.journal
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Error> {
        self.inode(node)?.attributes()
    }

    fn lookup(&self, directory: u64, name: &[u8]) -> Result<u64, Error> {
        directory::lookup(self, &self.inode(directory)?, name)
    }

    fn list(&self, directory: u64, cookie: u64) -> Result<Listing, Error> {
        directory::list(self, &self.inode(directory)?, cookie)
    }

    fn target(&self, node: u64) -> Result<Vec<u8>, Error> {
        let inode = self.inode(node)?;
        if !inode.is_symlink() {
            return Err(Error::WrongKind);
        }
        if inode.is_encrypted() {
            return Err(Error::Unsupported("the target is encrypted"));
        }
        if let Some(target) = inode.short_target()? {
            return Ok(target);
        }
        if inode.size > TARGET_MAX {
            return Err(Error::Corrupt("the target of a link is too long"));
        }
        content::read(self, &inode, 0, inode.size as usize)
    }

    fn extents(&self, node: u64, offset: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        let inode = self.inode(node)?;
        if inode.is_encrypted() {
            return Err(Error::Unsupported("the file is encrypted"));
        }
        content::extents(self, &inode, offset, limit)
    }

    fn read(&self, node: u64, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let inode = self.inode(node)?;
        if inode.is_encrypted() {
            return Err(Error::Unsupported("the file is encrypted"));
        }
        content::read(self, &inode, offset, length)
    }

    fn xattrs(&self, node: u64) -> Result<Vec<Xattr>, Error> {
        xattr::all(self, &self.inode(node)?)
    }
}
