//! What is on the filesystems, and where on the disk the large file is.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use qmpfs_tests::sh;

use super::{NAMES, WALKED};
use crate::content::Dice;

/// The directories that are walked.
pub(super) const MANY: &str = "many-files";
/// A directory with very many names.
pub(super) const LARGE: &str = "large-directory";
/// A large file.
pub(super) const BIG: &str = "one-large-file";
/// Files of one directory.
const HUNDRED: usize = 100;
/// The longest of the many files.
const LONGEST: u64 = 16 << 10;
/// Which part of a disk's data the large file is.
const BIG_SHARE: u64 = 8;
/// The smallest piece that a filesystem may cut a file into.
const SECTOR: usize = 512;
/// Bytes that are looked at at once.
const PIECE: usize = 1 << 20;

/// How a filesystem comes to have files.
#[derive(Clone, Copy)]
pub(super) enum Filled {
    /// Made by this line, and filled by the kernel.
    Mounted(&'static str),
    Ntfs,
    ExFat,
}

/// The files as they are to be; made once for all filesystems.
pub(super) fn tree(dir: &Path, disk: u64) -> PathBuf {
    let tree = dir.join("tree");
    if tree.exists() {
        return tree;
    }
    let mut dice = Dice::new(5);
    let line = b"a line of text as logs and settings have them, some seventy bytes of it\n";
    let text = line.repeat(LONGEST as usize / line.len());
    for number in 0..WALKED {
        let directory = tree.join(format!("{MANY}/{}", number / HUNDRED));
        fs::create_dir_all(&directory).expect("room");
        let length = dice.below(text.len() as u64) as usize;
        fs::write(
            directory.join(format!("one-file-{number}")),
            &text[..length],
        )
        .expect("room");
    }
    let large = tree.join(LARGE);
    fs::create_dir_all(&large).expect("room");
    for number in 0..NAMES {
        File::create(large.join(format!("one-name-{number}"))).expect("room");
    }
    let mut big = File::create(tree.join(BIG)).expect("room");
    let mut piece = vec![0; PIECE];
    for _ in 0..disk / BIG_SHARE / PIECE as u64 {
        for word in piece.chunks_mut(8) {
            word.copy_from_slice(&dice.next().to_le_bytes()[..word.len()]);
        }
        big.write_all(&piece).expect("room");
    }
    tree
}

/// Makes a filesystem with the files of `tree` in a raw file.
pub(super) fn fill(raw: &Path, tree: &Path, filled: Filled) {
    let (tree, raw) = (tree.display(), raw.display());
    let copied = |mount: &str| {
        sh!(
            "mkdir {raw}.at; {mount} {raw} {raw}.at; cp -r {tree}/. {raw}.at/; sync -f {raw}.at; \
             umount {raw}.at; rmdir {raw}.at"
        );
    };
    sh!("truncate -s 1G {raw}");
    match filled {
        Filled::Mounted(mkfs) => {
            sh!("{mkfs} {raw} >&2");
            copied("mount -o loop");
        }
        Filled::Ntfs => {
            sh!("mkntfs -q -F -f {raw} >&2");
            copied("ntfs-3g");
        }
        Filled::ExFat => {
            sh!(
                "mkfs.exfat {raw} >&2; loop=$(losetup -f --show {raw}); trap 'losetup -d $loop' EXIT; mkdir {raw}.at; \
             mount.exfat-fuse $loop {raw}.at >&2; cp -r {tree}/. {raw}.at/; umount {raw}.at; rmdir {raw}.at"
            );
        }
    }
}

/// Where the bytes of a file are in a raw disk. They are found by what they are: each sector is one of its kind.
pub(super) fn stretches(raw: &Path, file: &Path) -> Vec<Range<u64>> {
    let (disk, wanted) = (
        fs::read(raw).expect("a disk"),
        fs::read(file).expect("ours"),
    );
    let sectors = disk.len() / SECTOR;
    let mut found: Vec<Range<u64>> = Vec::new();
    let (mut done, mut at) = (0, 0);
    while done < wanted.len() {
        let sought = &wanted[done..wanted.len().min(done + SECTOR)];
        let after = (at..sectors).chain(0..at);
        let start = after
            .map(|sector| sector * SECTOR)
            .find(|start| disk[*start..].starts_with(sought))
            .expect("the file is on the disk, neither packed nor cut into less than sectors");
        let same = disk[start..].iter().zip(&wanted[done..]);
        let length = same.take_while(|(one, other)| one == other).count();
        found.push(start as u64..(start + length) as u64);
        (done, at) = (done + length, (start + length).div_ceil(SECTOR));
    }
    found
}

/// Reads stretches of a disk, as a file of them would be read.
pub(super) fn read(disk: &File, stretches: &[Range<u64>], buffer: &mut [u8]) -> u64 {
    let mut bytes = 0;
    for stretch in stretches {
        for at in stretch.clone().step_by(buffer.len()) {
            let size = buffer.len().min((stretch.end - at) as usize);
            disk.read_exact_at(&mut buffer[..size], at)
                .expect("it can be read");
            bytes += size as u64;
        }
    }
    bytes
}
