//! What a stretch of a disk is: told by its magic numbers, and what its first blocks say of it.
//! It only names things; whether they can be read is seen when they are opened.
#![deny(clippy::arithmetic_side_effects)]

use crate::bytes::{le16, le32, le64, slice, text, uuid};
use crate::{Error, ReadAt};
use serde::{Deserialize, Serialize};

/// Bytes from the beginning that are looked at: the superblock of Btrfs is the farthest away.
const HEAD: usize = 68 << 10;
/// Where Btrfs has its superblock.
const BTRFS: usize = 64 << 10;

/// Kinds of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Kind {
    Ext2,
    Ext3,
    Ext4,
    Xfs,
    Btrfs,
    Ntfs,
    Fat,
    ExFat,
    Iso9660,
    Squashfs,
    Swap,
    Luks,
    BitLocker,
    Lvm2,
    LinuxRaid,
    Unknown,
    /// Nothing but zeros where anything could say what it is.
    Empty,
}

impl Kind {
    /// Each of them.
    pub const ALL: [Kind; 17] = [
        Kind::Ext2,
        Kind::Ext3,
        Kind::Ext4,
        Kind::Xfs,
        Kind::Btrfs,
        Kind::Ntfs,
        Kind::Fat,
        Kind::ExFat,
        Kind::Iso9660,
        Kind::Squashfs,
        Kind::Swap,
        Kind::Luks,
        Kind::BitLocker,
        Kind::Lvm2,
        Kind::LinuxRaid,
        Kind::Unknown,
        Kind::Empty,
    ];

    /// As people and blkid write it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext2 => "ext2",
            Kind::Ext3 => "ext3",
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
            Kind::Ntfs => "ntfs",
            Kind::Fat => "vfat",
            Kind::ExFat => "exfat",
            Kind::Iso9660 => "iso9660",
            Kind::Squashfs => "squashfs",
            Kind::Swap => "swap",
            Kind::Luks => "crypto_LUKS",
            Kind::BitLocker => "BitLocker",
            Kind::Lvm2 => "LVM2_member",
            Kind::LinuxRaid => "linux_raid_member",
            Kind::Unknown => "unknown",
            Kind::Empty => "empty",
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What it is.
    pub kind: Kind,
    /// What its owner calls it.
    pub label: String,
    /// What tells it from others.
    pub uuid: String,
}

impl Found {
    fn bare(kind: Kind) -> Found {
        Found {
            kind,
            label: String::new(),
            uuid: String::new(),
        }
    }
}

/// What the stretch `source` is.
pub fn probe(source: &dyn ReadAt) -> Result<Found, Error> {
    let length = usize::try_from(source.size()).unwrap_or(usize::MAX);
    let mut head = source.bytes(0, length.min(HEAD))?;
    let is_empty = head.iter().all(|byte| *byte == 0);
    // So that every field below is there.
    head.resize(HEAD, 0);
    let has = |at: usize, magic: &[u8]| slice(&head, at, magic.len()).is_ok_and(|it| it == magic);
    // What wraps others comes first: its content may look like anything.
    if has(0, b"LUKS\xba\xbe") {
        return Ok(Found {
            uuid: text(slice(&head, 168, 40)?),
            ..Found::bare(Kind::Luks)
        });
    }
    if has(3, b"-FVE-FS-") {
        return Ok(Found::bare(Kind::BitLocker));
    }
    if (0..4).any(|sector: usize| has(sector.saturating_mul(512), b"LABELONE")) {
        return Ok(Found::bare(Kind::Lvm2));
    }
    if has(4096, &[0xfc, 0x4e, 0x2b, 0xa9]) || has(0, &[0xfc, 0x4e, 0x2b, 0xa9]) {
        return Ok(Found::bare(Kind::LinuxRaid));
    }
    if has(0, b"XFSB") {
        return Ok(Found {
            kind: Kind::Xfs,
            label: text(slice(&head, 108, 12)?),
            uuid: uuid(slice(&head, 32, 16)?),
        });
    }
    if has(BTRFS.saturating_add(0x40), b"_BHRfS_M") {
        return Ok(Found {
            kind: Kind::Btrfs,
            label: text(slice(&head, BTRFS.saturating_add(0x12b), 256)?),
            uuid: uuid(slice(&head, BTRFS.saturating_add(0x20), 16)?),
        });
    }
    if has(0, b"hsqs") {
        return Ok(Found::bare(Kind::Squashfs));
    }
    if le16(&head, 1024 + 0x38)? == 0xef53 {
        return Ok(Found {
            kind: ext_kind(&head)?,
            label: text(slice(&head, 1024 + 0x78, 16)?),
            uuid: uuid(slice(&head, 1024 + 0x68, 16)?),
        });
    }
    if has(0x8001, b"CD001") {
        return Ok(Found {
            label: text(slice(&head, 0x8028, 32)?),
            ..Found::bare(Kind::Iso9660)
        });
    }
    if has(4086, b"SWAPSPACE2") {
        return Ok(Found {
            kind: Kind::Swap,
            label: text(slice(&head, 1052, 16)?),
            uuid: uuid(slice(&head, 1036, 16)?),
        });
    }
    if has(3, b"NTFS    ") {
        return Ok(Found {
            uuid: format!("{:016X}", le64(&head, 72)?),
            ..Found::bare(Kind::Ntfs)
        });
    }
    if has(3, b"EXFAT   ") {
        return Ok(Found {
            uuid: serial(le32(&head, 100)?),
            ..Found::bare(Kind::ExFat)
        });
    }
    let fat = [(82, &b"FAT32   "[..], 67), (54, &b"FAT1"[..], 39)];
    for (at, magic, number) in fat {
        if has(510, &[0x55, 0xaa]) && has(at, magic) {
            let label = text(slice(&head, at.saturating_sub(11), 11)?);
            return Ok(Found {
                kind: Kind::Fat,
                label: if label == "NO NAME" {
                    String::new()
                } else {
                    label
                },
                uuid: serial(le32(&head, number)?),
            });
        }
    }
    Ok(Found::bare(if is_empty {
        Kind::Empty
    } else {
        Kind::Unknown
    }))
}

/// The number of a FAT as DOS writes it.
fn serial(number: u32) -> String {
    format!("{:04X}-{:04X}", number >> 16, number & 0xffff)
}

/// Which of the three: by what only the later ones have.
fn ext_kind(head: &[u8]) -> Result<Kind, Error> {
    const HAS_JOURNAL: u32 = 4;
    /// What ext3 knows of the features that keep an older reader out.
    const EXT3_INCOMPAT: u32 = 2 | 4 | 0x10;
    const EXT3_RO_COMPAT: u32 = 1 | 2;
    let feature = |at: usize| le32(head, at.saturating_add(1024));
    let old = feature(0x60)? & !EXT3_INCOMPAT == 0 && feature(0x64)? & !EXT3_RO_COMPAT == 0;
    Ok(match (old, feature(0x5c)? & HAS_JOURNAL != 0) {
        (false, _) => Kind::Ext4,
        (true, true) => Kind::Ext3,
        (true, false) => Kind::Ext2,
    })
}
