//! Checksums set right after damage, so that what is behind them is reached.
//!
//! Knows: where GPT and XFS keep them. ext's are not looked at but in its superblock's journal.
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

/// Sets right the checksums of an XFS of blocks of 4096 bytes.
pub fn xfs(disk: &mut [u8]) {
    for at in (0..disk.len()).step_by(512) {
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
