//! The superblock: sizes, features, and where the descriptors of the groups are.

use crate::Error;
use crate::bytes::{le16, le32, u8};

/// Where it is.
pub(super) const OFFSET: u64 = 1024;
/// Its bytes.
pub(super) const LENGTH: usize = 1024;

const MAGIC: u16 = 0xef53;

/// Features that an older reader must not pass over.
mod incompat {
    pub(super) const FILETYPE: u32 = 0x2;
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const META_BG: u32 = 0x10;
    pub(super) const BIT64: u32 = 0x80;
    /// Those that are known here: besides the above extents, multiple mount protection, flexible groups,
    /// values in inodes, a checksum's seed, large directories, data in inodes, encryption, folded case.
    pub(super) const KNOWN: u32 = FILETYPE
        | RECOVER
        | META_BG
        | 0x40
        | BIT64
        | 0x100
        | 0x200
        | 0x400
        | 0x2000
        | 0x4000
        | 0x8000
        | 0x1_0000
        | 0x2_0000;
}

const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_HUGE_FILE: u32 = 0x8;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const INCOMPAT_LARGEDIR: u32 = 0x4000;

/// Blocks of 1 KiB to 64 KiB.
const LOG_BLOCK_SIZE_MAX: u32 = 6;

pub(super) struct Superblock {
    pub(super) block_size: u32,
    pub(super) blocks: u64,
    pub(super) inode_size: u16,
    pub(super) descriptor_size: usize,
    pub(super) has_file_types: bool,
    pub(super) has_huge_files: bool,
    pub(super) has_large_directories: bool,
    pub(super) uuid: [u8; 16],
    inodes: u32,
    inodes_per_group: u32,
    blocks_per_group: u32,
    first_data_block: u32,
    groups: u64,
    /// The group of descriptor blocks from which on each has its place in its own groups.
    first_meta_group: Option<u64>,
    sparse: Sparse,
    needs_recovery: bool,
    journal_inode: u32,
}

/// Which groups have a copy of the superblock.
enum Sparse {
    All,
    Powers,
    Two([u32; 2]),
}

impl Superblock {
    pub(super) fn parse(bytes: &[u8]) -> Result<Superblock, Error> {
        if le16(bytes, 0x38)? != MAGIC {
            return Err(Error::Corrupt("the superblock has no magic number"));
        }
        let incompat = le32(bytes, 0x60)?;
        if incompat & !incompat::KNOWN != 0 {
            return Err(Error::Unsupported("a feature of this ext filesystem"));
        }
        let log_block_size = le32(bytes, 0x18)?;
        if log_block_size > LOG_BLOCK_SIZE_MAX {
            return Err(Error::Corrupt("the size of blocks"));
        }
        let block_size = 1024u32 << log_block_size;
        let is_64bit = incompat & incompat::BIT64 != 0;
        let high = if is_64bit { le32(bytes, 0x150)? } else { 0 };
        let blocks = u64::from(le32(bytes, 0x4)?) | u64::from(high) << 32;
        let inode_size = match le32(bytes, 0x4c)? {
            0 => 128,
            _ => le16(bytes, 0x58)?,
        };
        let is_size = inode_size.is_power_of_two() && u32::from(inode_size) <= block_size;
        if !is_size || inode_size < 128 {
            return Err(Error::Corrupt("the size of inodes"));
        }
        let descriptor_size = match is_64bit {
            true => usize::from(le16(bytes, 0xfe)?),
            false => 32,
        };
        let smallest = if is_64bit { 64 } else { 32 };
        if !descriptor_size.is_power_of_two() || !(smallest..=1024).contains(&descriptor_size) {
            return Err(Error::Corrupt("the size of group descriptors"));
        }
        let (blocks_per_group, inodes_per_group) = (le32(bytes, 0x20)?, le32(bytes, 0x28)?);
        let first_data_block = le32(bytes, 0x14)?;
        let ro_compat = le32(bytes, 0x64)?;
        let cluster = match ro_compat & RO_COMPAT_BIGALLOC {
            0 => 1,
            _ => cluster(log_block_size, le32(bytes, 0x1c)?)?,
        };
        if blocks_per_group == 0
            || inodes_per_group == 0
            || blocks_per_group > block_size.saturating_mul(8).saturating_mul(cluster)
            || inodes_per_group > block_size.saturating_mul(8)
            || u64::from(first_data_block) >= blocks
        {
            return Err(Error::Corrupt("the size of groups"));
        }
        let groups = (blocks - u64::from(first_data_block)).div_ceil(blocks_per_group.into());
        let has_meta_groups = incompat & incompat::META_BG != 0;
        let sparse = if le32(bytes, 0x5c)? & COMPAT_SPARSE_SUPER2 != 0 {
            Sparse::Two([le32(bytes, 0x24c)?, le32(bytes, 0x250)?])
        } else if ro_compat & RO_COMPAT_SPARSE_SUPER != 0 {
            Sparse::Powers
        } else {
            Sparse::All
        };
        let mut uuid = [0; 16];
        for (index, byte) in uuid.iter_mut().enumerate() {
            *byte = u8(bytes, 0x68 + index)?;
        }
        Ok(Superblock {
            block_size,
            blocks,
            inode_size,
            descriptor_size,
            has_file_types: incompat & incompat::FILETYPE != 0,
            has_huge_files: ro_compat & RO_COMPAT_HUGE_FILE != 0,
            has_large_directories: incompat & INCOMPAT_LARGEDIR != 0,
            uuid,
            inodes: le32(bytes, 0)?,
            inodes_per_group,
            blocks_per_group,
            first_data_block,
            groups,
            first_meta_group: match has_meta_groups {
                true => Some(le32(bytes, 0x104)?.into()),
                false => None,
            },
            sparse,
            needs_recovery: incompat & incompat::RECOVER != 0,
            journal_inode: le32(bytes, 0xe0)?,
        })
    }

    /// The inode of the journal, where that holds what is not on its place yet.
    pub(super) fn journal_to_replay(&self) -> Result<Option<u64>, Error> {
        match (self.needs_recovery, self.journal_inode) {
            (false, _) => Ok(None),
            (true, 0) => Err(Error::Unsupported("its journal is on another device")),
            (true, inode) => Ok(Some(inode.into())),
        }
    }

    /// The group of an inode, and its index there.
    pub(super) fn place_of_inode(&self, number: u64) -> Result<(u64, u64), Error> {
        if number == 0 || number > self.inodes.into() {
            return Err(Error::Corrupt("an inode number is too large"));
        }
        let per_group = u64::from(self.inodes_per_group);
        Ok(((number - 1) / per_group, (number - 1) % per_group))
    }

    /// The block with the descriptor of a group, and where it is in it.
    pub(super) fn descriptor(&self, group: u64) -> Result<(u64, usize), Error> {
        if group >= self.groups {
            return Err(Error::Corrupt("there is no such group"));
        }
        let per_block = u64::from(self.block_size) / self.descriptor_size as u64;
        let (nth, index) = (group / per_block, group % per_block);
        let within = index as usize * self.descriptor_size;
        let first = u64::from(self.first_data_block);
        // Where blocks are counted in clusters, that of a first kibibyte without a use is counted as well.
        let own = u64::from(self.block_size == 1024);
        let block = match self.first_meta_group {
            Some(from) if nth >= from => {
                let owner = nth * per_block;
                let start = first + owner * u64::from(self.blocks_per_group);
                let before = if nth == 0 { own - own.min(first) } else { 0 };
                start + before + u64::from(self.has_copy(owner))
            }
            Some(_) | None => own + 1 + nth,
        };
        Ok((block, within))
    }

    /// Whether a group begins with a copy of the superblock.
    fn has_copy(&self, group: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        match self.sparse {
            Sparse::All => true,
            Sparse::Powers => group <= 1 || [3, 5, 7].into_iter().any(is_power),
            Sparse::Two(groups) => {
                group == 0 || groups.into_iter().any(|it| u64::from(it) == group)
            }
        }
    }
}

/// Blocks that are taken and given back together: a bitmap of a group has a bit for each such cluster.
fn cluster(log_block_size: u32, log_cluster_size: u32) -> Result<u32, Error> {
    let power = log_cluster_size.checked_sub(log_block_size);
    let cluster = power.and_then(|power| 1u32.checked_shl(power));
    cluster.ok_or(Error::Corrupt("the size of clusters"))
}

/// Where a group's inodes are.
pub(super) fn inode_table(descriptor: &[u8]) -> Result<u64, Error> {
    let low = u64::from(le32(descriptor, 8)?);
    let high = match descriptor.len() {
        ..64 => 0,
        64.. => u64::from(le32(descriptor, 0x28)?),
    };
    Ok(low | high << 32)
}
