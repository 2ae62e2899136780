//! Checksums set right after damage, so that what is behind them is reached.
//!
//! Knows: where GPT, XFS, Btrfs, LVM2, exFAT and NTFS keep them. ext's are not looked at but in its superblock's
//! journal; FAT, ISO 9660 and squashfs have none of their own.
//! Does not know: what else is in a block.

/// Sets right what a GPT sums up: its list, then its header; of both copies.
pub fn gpt(disk: &mut [u8], sector: usize) {
    let last = (disk.len() / sector).saturating_sub(1) * sector;
    for header in [sector, last] {
        let number = |disk: &[u8], at: usize, len: usize| {
            let bytes = disk.get(header + at..header + at + len)?;
            Some(
                bytes
                    .iter()
                    .rev()
                    .fold(0u64, |all, byte| all << 8 | u64::from(*byte)),
            )
        };
        if disk.get(header..header + 8) != Some(b"EFI PART") {
            continue;
        }
        let (Some(list), Some(count), Some(size), Some(length)) = (
            number(disk, 72, 8),
            number(disk, 80, 4),
            number(disk, 84, 4),
            number(disk, 12, 4),
        ) else {
            continue;
        };
        let start = usize::try_from(list.saturating_mul(sector as u64)).unwrap_or(usize::MAX);
        let bytes = usize::try_from(count.saturating_mul(size)).unwrap_or(usize::MAX);
        let sum = disk
            .get(start..start.saturating_add(bytes))
            .map(crc32fast::hash);
        if let Some(sum) = sum {
            disk[header + 88..header + 92].copy_from_slice(&sum.to_le_bytes());
        }
        let length = length.clamp(92, 512) as usize;
        if let Some(own) = disk.get_mut(header..header + length) {
            own[16..20].fill(0);
            let sum = crc32fast::hash(own);
            own[16..20].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// Magic numbers of XFS: where in its structure the checksum is, and how long that is; 0 for a block.
const XFS: [(&[u8], usize, usize); 19] = [
    (b"XFSB", 224, 512),
    (b"XAGF", 216, 512),
    (b"XAGI", 312, 512),
    (b"XAFL", 32, 512),
    (b"IN", 100, 512),
    (b"AB3B", 52, 0),
    (b"AB3C", 52, 0),
    (b"IAB3", 52, 0),
    (b"FIB3", 52, 0),
    (b"BMA3", 64, 0),
    (b"RMB3", 52, 0),
    (b"R3FC", 52, 0),
    (b"XDB3", 4, 0),
    (b"XDD3", 4, 0),
    (b"XDF3", 4, 0),
    (b"XSLM", 12, 0),
    (b"XARM", 12, 0),
    (b"\x3d\xf1", 12, 0),
    (b"\x3b\xee", 12, 0),
];

/// Sets right the checksums of an XFS of blocks of 4096 bytes, in these sectors.
pub fn xfs(disk: &mut [u8], sectors: impl Iterator<Item = usize>) {
    for at in sectors {
        for (magic, sum, length) in XFS {
            let length = if length == 0 { 4096 } else { length };
            let here = match magic {
                // Directories and attributes have theirs behind two numbers of blocks.
                [0x3d, 0xf1] | [0x3b, 0xee] => at + 8,
                _ => at,
            };
            if disk.get(here..here + magic.len()) != Some(magic) {
                continue;
            }
            let Some(own) = disk.get_mut(at..at + length) else {
                continue;
            };
            own[sum..sum + 4].fill(0);
            let crc = crc32c::crc32c(own);
            own[sum..sum + 4].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

fn number(disk: &[u8], at: usize, length: usize) -> Option<usize> {
    let bytes = disk.get(at..at.checked_add(length)?)?;
    let value = bytes.iter().rev();
    usize::try_from(value.fold(0u64, |all, byte| all << 8 | u64::from(*byte))).ok()
}

/// Sets right the checksums of a Btrfs: of its superblock, and of each block that says to be a node of it;
/// of those that begin in these places.
pub fn btrfs(disk: &mut [u8], places: impl Iterator<Item = usize>) {
    const SUPERBLOCK: usize = 64 << 10;
    let (Some(nodes), Some(superblock)) = (
        number(disk, SUPERBLOCK + 148, 4),
        disk.get(SUPERBLOCK..SUPERBLOCK + 4096),
    ) else {
        return;
    };
    // Nodes name the filesystem, which may have another identity for its metadata.
    let names = [superblock[32..48].to_vec(), superblock[571..587].to_vec()];
    let nodes = nodes.clamp(4096, 64 << 10);
    let superblocks = [SUPERBLOCK, 64 << 20];
    for at in places.filter(|at| at.is_multiple_of(4096)) {
        let length = match superblocks.contains(&at) {
            true => 4096,
            false => nodes,
        };
        let Some(own) = disk.get_mut(at..at + length) else {
            continue;
        };
        if names.iter().any(|name| own[32..48] == name[..]) {
            let sum = crc32c::crc32c(&own[32..]);
            own[..4].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// Sets right the last bytes of the sectors of records of an NTFS, which say that they were written whole;
/// of those that begin in these sectors.
pub fn ntfs(disk: &mut [u8], sectors: impl Iterator<Item = usize>) {
    const SECTOR: usize = 512;
    for at in sectors {
        if !matches!(disk.get(at..at + 4), Some(b"FILE" | b"INDX")) {
            continue;
        }
        let (Some(list), Some(count)) = (number(disk, at + 4, 2), number(disk, at + 6, 2)) else {
            continue;
        };
        let Some(mark) = disk.get(at + list..at + list + 2).map(<[u8]>::to_vec) else {
            continue;
        };
        // A record of 64 KiB has no more.
        for sector in 1..count.min(129) {
            let end = at + sector * SECTOR;
            if let Some(own) = disk.get_mut(end - 2..end) {
                own.copy_from_slice(&mark);
            }
        }
    }
}

/// Sets right the checksums of an exFAT's files, which begin with these entries.
pub fn exfat(disk: &mut [u8], entries: impl Iterator<Item = usize>) {
    const ENTRY: usize = 32;
    for at in entries {
        let is_file = matches!(disk.get(at..at + 33), Some([0x85, .., 0xc0]));
        let count = disk
            .get(at + 1)
            .map_or(0, |count| usize::from(*count).min(18));
        let Some(set) = disk.get_mut(at..at + (count + 1) * ENTRY) else {
            continue;
        };
        if is_file {
            let counted = set
                .iter()
                .enumerate()
                .filter(|(at, _)| !matches!(at, 2 | 3));
            let sum = counted.fold(0u16, |sum, (_, byte)| {
                sum.rotate_right(1).wrapping_add((*byte).into())
            });
            set[2..4].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// Sets right the checksums of a physical volume of LVM2: of its label, its metadata areas and their texts.
pub fn lvm(disk: &mut [u8]) {
    const SECTOR: usize = 512;
    let sum = |bytes: &[u8]| {
        let mut hasher = crc32fast::Hasher::new_with_initial(!0xf597_a6cf);
        hasher.update(bytes);
        (!hasher.finalize()).to_le_bytes()
    };
    for at in (0..disk.len().saturating_sub(SECTOR - 1)).step_by(SECTOR) {
        if disk[at..].starts_with(b"LABELONE") {
            let its = sum(&disk[at + 20..at + SECTOR]);
            disk[at + 16..at + 20].copy_from_slice(&its);
        }
        if disk[at + 4..].starts_with(b"\x20LVM2\x20x[5A%r0N*>") {
            // The first text of the area, where it is in one piece.
            let text = number(disk, at + 40, 8).zip(number(disk, at + 48, 8));
            let text = text.and_then(|(start, length)| {
                let start = at.checked_add(start)?;
                disk.get(start..start.checked_add(length.min(8 << 20))?)
            });
            if let Some(its) = text.map(sum) {
                disk[at + 56..at + 60].copy_from_slice(&its);
            }
            let its = sum(&disk[at + 4..at + SECTOR]);
            disk[at..at + 4].copy_from_slice(&its);
        }
    }
}
