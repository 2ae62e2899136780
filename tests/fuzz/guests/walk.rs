//! Any bytes as a disk of a guest: no panic, no endless walk, nothing told that is not on the disk, and what is
//! told twice is the same.
//!
//! Knows: what a reader's process does for a mount, as far as time allows.
//! Does not know: what is on the disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmpfs_guestfs::lvm::{Physical, Piece};
use qmpfs_guestfs::{
    Error, Extent, FileKind, Filesystem, Kind, Part, Place, ReadAt, Table, open, probe,
};

use super::sparse;
use super::sums;

/// Names that are looked at in all.
const NAMES_MAX: usize = 2000;
/// Batches of one directory.
const BATCHES_MAX: usize = 64;
/// Bytes that are read of a file.
const READ: usize = 64 << 10;
/// No question may take longer than this, on a busy machine.
const LONGEST: Duration = Duration::from_secs(10);

/// A partition table.
pub fn check_partitions(bytes: &[u8]) {
    let mut disk = sparse::unpack(bytes);
    disk.truncate(4 << 20);
    for sector in [512, 4096] {
        sums::gpt(&mut disk, sector);
    }
    let size = disk.len() as u64;
    let disk: Arc<dyn ReadAt> = Arc::new(disk);
    let Ok(table) = Table::read(&disk) else {
        return;
    };
    assert!(table.partitions.len() <= 256, "they are bounded");
    assert!(table.notes.len() <= 1024, "notes are bounded");
    for partition in &table.partitions {
        let end = partition.start.checked_add(partition.length);
        assert!(
            end.is_some_and(|end| end <= size),
            "{partition:?} of {size}"
        );
        assert!(partition.length > 0 || size == 0, "{partition:?}");
        let part = Part::new(Arc::clone(&disk), partition.start, partition.length);
        let _known = probe(&part);
    }
    let mut numbers: Vec<u32> = table.partitions.iter().map(|it| it.number).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), table.partitions.len(), "one of each number");
}

/// An ext2, ext3 or ext4.
pub fn check_ext(bytes: &[u8]) {
    check(Kind::Ext4, sparse::unpack(bytes));
}

/// An XFS.
pub fn check_xfs(bytes: &[u8]) {
    let mut disk = sparse::unpack(bytes);
    sums::xfs(&mut disk, sparse::places(bytes, 512));
    check(Kind::Xfs, disk);
}

/// A Btrfs.
pub fn check_btrfs(bytes: &[u8]) {
    let mut disk = sparse::unpack(bytes);
    sums::btrfs(&mut disk, sparse::places(bytes, sparse::BLOCK));
    check(Kind::Btrfs, disk);
}

/// An NTFS.
pub fn check_ntfs(bytes: &[u8]) {
    let mut disk = sparse::unpack(bytes);
    sums::ntfs(&mut disk, sparse::places(bytes, 512));
    check(Kind::Ntfs, disk);
}

/// A FAT of any width.
pub fn check_fat(bytes: &[u8]) {
    check(Kind::Fat, sparse::unpack(bytes));
}

/// An exFAT.
pub fn check_exfat(bytes: &[u8]) {
    let mut disk = sparse::unpack(bytes);
    sums::exfat(&mut disk, sparse::places(bytes, 32));
    check(Kind::ExFat, disk);
}

/// An ISO 9660.
pub fn check_iso(bytes: &[u8]) {
    check(Kind::Iso9660, sparse::unpack(bytes));
}

/// A squashfs.
pub fn check_squashfs(bytes: &[u8]) {
    check(Kind::Squashfs, sparse::unpack(bytes));
}

/// A physical volume of LVM2.
pub fn check_lvm(bytes: &[u8]) {
    let mut disk = sparse::unpack(bytes);
    disk.truncate(4 << 20);
    sums::lvm(&mut disk);
    let began = Instant::now();
    let Ok(physical) = Physical::read(&disk) else {
        return;
    };
    let groups = physical.group.iter();
    let volumes = groups.flat_map(|group| &group.logical);
    for layout in volumes.filter_map(|volume| volume.layout.as_ref().ok()) {
        let length = layout.length();
        for offset in [0, length / 3, length / 2, length.saturating_sub(1), length] {
            let piece = layout.piece(offset, 1 << 20);
            assert_eq!(piece.is_some(), offset < length, "{offset} of {length}");
            let fits = |piece: &Piece<'_>| {
                let ends = piece.start.checked_add(piece.length).is_some();
                piece.length > 0 && piece.length <= (length - offset).min(1 << 20) && ends
            };
            assert!(piece.as_ref().is_none_or(fits), "{piece:?}");
        }
    }
    assert!(began.elapsed() < LONGEST, "it takes too long");
}

fn check(kind: Kind, disk: Vec<u8>) {
    let began = Instant::now();
    let disk = Arc::new(disk);
    let Ok(filesystem) = open(kind, Arc::<Vec<u8>>::clone(&disk)) else {
        return;
    };
    let _log = filesystem.journal();
    let root = filesystem.root();
    let mut walk = Walk {
        filesystem: &*filesystem,
        disk: &disk,
        seen: 0,
    };
    let mut queue = vec![root];
    let mut known = HashMap::from([(root, ())]);
    while let Some(directory) = queue.pop() {
        for node in walk.directory(directory) {
            if known.insert(node, ()).is_none() {
                queue.push(node);
            }
        }
    }
    for node in [0, 1, u64::MAX, 1 << 40] {
        let _any = walk.node(node);
        let _none = walk.filesystem.list(node, 7);
    }
    assert!(began.elapsed() < LONGEST * 6, "a walk takes too long");
}

struct Walk<'a> {
    filesystem: &'a dyn Filesystem,
    disk: &'a [u8],
    seen: usize,
}

impl Walk<'_> {
    /// Looks at all in a directory; gives the directories in it.
    fn directory(&mut self, directory: u64) -> Vec<u64> {
        let mut found = Vec::new();
        let mut cookie = 0;
        for _ in 0..BATCHES_MAX {
            let Ok(listing) = self.timed(|it| it.list(directory, cookie)) else {
                return found;
            };
            for entry in listing.entries {
                self.seen += 1;
                if self.seen > NAMES_MAX {
                    return found;
                }
                let is_name = !entry.name.is_empty() && entry.name.len() <= 255;
                let has_none = !entry.name.iter().any(|byte| matches!(byte, b'/' | 0));
                assert!(is_name && has_none, "{:?}", entry.name);
                assert!(!matches!(&entry.name[..], b"." | b".."));
                if self.node(entry.node) == Some(FileKind::Directory) {
                    found.push(entry.node);
                }
                if self.seen % 16 == 1 {
                    let _any = self.timed(|it| it.lookup(directory, &entry.name));
                }
            }
            match listing.next {
                Some(next) if next > cookie => cookie = next,
                Some(_) | None => return found,
            }
        }
        found
    }

    fn node(&self, node: u64) -> Option<FileKind> {
        let attributes = self.timed(|it| it.attributes(node)).ok()?;
        assert!(attributes.permissions <= 0o7777);
        let again = self.timed(|it| it.attributes(node));
        assert_eq!(again.ok().as_ref(), Some(&attributes), "told twice");
        let _any = self.timed(|it| it.xattrs(node));
        match attributes.kind {
            FileKind::Symlink => {
                if let Ok(target) = self.timed(|it| it.target(node)) {
                    assert!(target.len() <= 64 << 10);
                }
            }
            FileKind::File => self.file(node, attributes.size),
            FileKind::Directory
            | FileKind::CharDevice
            | FileKind::BlockDevice
            | FileKind::Fifo
            | FileKind::Socket => {}
        }
        Some(attributes.kind)
    }

    fn file(&self, node: u64, size: u64) {
        let Ok(extents) = self.timed(|it| it.extents(node, 0, 4096)) else {
            return;
        };
        assert!(extents.len() <= 4096);
        for offset in [0, size / 2, size.saturating_sub(1), u64::MAX - 1] {
            let some = self.timed(|it| it.extents(node, offset, 1));
            assert!(some.is_ok_and(|some| some.len() <= 1) || extents.len() == 4096 || offset > 0);
            let length = READ.min(usize::try_from(size.saturating_sub(offset)).unwrap_or(READ));
            let Ok(bytes) = self.timed(|it| it.read(node, offset, length)) else {
                continue;
            };
            assert!(bytes.len() <= length, "more than was asked for");
            if offset == 0 && bytes.len() == length {
                self.same(&extents, &bytes);
            }
        }
    }

    /// By its extents a file has the bytes that it has by its reader, as far as they are on the disk and in order.
    fn same(&self, extents: &[Extent], bytes: &[u8]) {
        let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let mut at = 0;
        for extent in extents {
            let (start, length) = (number(extent.offset), number(extent.length));
            if start < at || length == 0 {
                return;
            }
            let hole = bytes.get(at..start.min(bytes.len())).unwrap_or_default();
            assert!(is_empty(hole), "data in a hole at {at}");
            if start >= bytes.len() {
                return;
            }
            at = start.saturating_add(length).min(bytes.len());
            if let Place::At(place) = extent.place {
                let place = number(place);
                let there = self.disk.get(place..place.saturating_add(at - start));
                assert!(
                    there.is_none_or(|there| *there == bytes[start..at]),
                    "{extent:?}"
                );
            }
        }
        assert!(is_empty(&bytes[at..]), "data in the last hole");
    }

    fn timed<T>(&self, ask: impl FnOnce(&dyn Filesystem) -> Result<T, Error>) -> Result<T, Error> {
        let began = Instant::now();
        let answer = ask(self.filesystem);
        assert!(began.elapsed() < LONGEST, "a question takes too long");
        answer
    }
}

/// Whether there are no bytes but zeros, of those that are read at once; in one comparison, as the fuzzer counts each.
fn is_empty(bytes: &[u8]) -> bool {
    static ZEROS: [u8; READ] = [0; READ];
    *bytes == ZEROS[..bytes.len()]
}
