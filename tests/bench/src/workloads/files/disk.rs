//! What is on the filesystems, and where on the disk the large file is.

use std::fs::{self, File};
use std::io::{Cursor, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use qmpfs_tests::sh;

use super::{NAMES, WALKED};
use crate::content::Dice;

// Names that are too long for DOS, so that a FAT has the case of their letters, too.
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
    Fat,
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
    let (of, raw_path) = (tree, raw);
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
        Filled::Fat => {
            sh!("mkfs.vfat -F 32 {raw} >&2");
            // Linux is not everywhere with vfat, and mtools take a quarter of an hour for a directory of 5,000 names.
            let mut disk = Cursor::new(fs::read(raw_path).expect("a disk"));
            {
                let filesystem = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new());
                let filesystem = filesystem.expect("a FAT");
                copy(of, &filesystem.root_dir());
                filesystem.unmount().expect("it is in memory");
            }
            fs::write(raw_path, disk.into_inner()).expect("room");
        }
    }
}

/// Copies what is in a directory into one of a FAT.
fn copy<D: fatfs::ReadWriteSeek>(from: &Path, to: &fatfs::Dir<'_, D>) {
    for entry in fs::read_dir(from).expect("ours") {
        let path = entry.expect("ours").path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.expect("ours are of letters and digits");
        if path.is_dir() {
            copy(&path, &to.create_dir(name).expect("room"));
            continue;
        }
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes));
        read.expect("ours");
        let mut file = to.create_file(name).expect("room");
        file.write_all(&bytes).expect("room");
        file.flush().expect("it is in memory");
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
