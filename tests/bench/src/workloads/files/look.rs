//! One participant's round: what a person does with a tree of files, and the clock beside it.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use qmpfs_tests::sh;

use super::super::Run;
use super::{NAMES, WALKED, disk};
use crate::images::Image;
use crate::reader::{self, Buffer};
use crate::servers::{Server, Who};

/// What is measured of a participant in a round.
pub(super) const NUMBERS: usize = 7;
/// Bytes of the large file that are read at once.
const PIECE: usize = 1 << 20;

/// Where a participant shows the filesystem.
pub(super) fn root(who: Who, server: &Server) -> PathBuf {
    match who {
        Who::Ours => {
            let point = server.view.parent();
            point.expect("disk.raw is in its point").join("files/0")
        }
        _ => server.view.clone(),
    }
}

/// All numbers of a tree.
pub(super) fn tree(run: &Run, who: Who, image: &Image, copies: &Path) -> [f64; NUMBERS] {
    let mut began = Instant::now();
    let server = run.start(who, image);
    let root = root(who, &server);
    if who == Who::Ours {
        // The mount of a VM is there when somebody looks into one of its points.
        began = Instant::now();
    }
    assert!(count(&root).expect("a directory") >= 3);
    let first = began.elapsed().as_secs_f64();
    let walked = root.join(disk::MANY);
    let (walk, found) = timed(|| walk(&walked).expect("it can be walked"));
    assert_eq!(found, WALKED);
    let large = root.join(disk::LARGE);
    let (names, found) = timed(|| sh!("ls -l {} | wc -l", large.display()));
    assert_eq!(found, (NAMES + 1).to_string());
    let at = walked.display();
    let (grep, _) = timed(|| sh!("! grep -rq 'no such text' {at}"));
    fs::create_dir(copies).expect("room");
    let (copy, _) = timed(|| sh!("cp -r {at} {}/cp", copies.display()));
    let (rsync, _) = timed(|| sh!("rsync -a {at}/ {}/rsync", copies.display()));
    fs::remove_dir_all(copies).expect("our own");
    let (bytes, took) = reader::sequential(&root.join(disk::BIG), PIECE).expect("it can be read");
    let rate = bytes as f64 / took.as_secs_f64() / 1e9;
    [first, walk, names, grep, copy, rsync, rate]
}

/// The bytes of the large file, read from the disk.
pub(super) fn disk(server: &Server, stretches: &[Range<u64>]) -> [f64; NUMBERS] {
    let mut buffer = Buffer::new(PIECE);
    let buffer = buffer.bytes();
    buffer.fill(1); // no page fault of ours is on anybody's clock
    let (took, bytes) = timed(|| {
        let disk = File::open(&server.view).expect("the view opens");
        disk::read(&disk, stretches, buffer)
    });
    let mut numbers = [f64::NAN; NUMBERS];
    numbers[NUMBERS - 1] = bytes as f64 / took / 1e9;
    numbers
}

fn timed<T>(what: impl FnOnce() -> T) -> (f64, T) {
    let began = Instant::now();
    let done = what();
    (began.elapsed().as_secs_f64(), done)
}

fn count(directory: &Path) -> io::Result<usize> {
    Ok(fs::read_dir(directory)?.count())
}

/// How many files there are, each looked at.
fn walk(directory: &Path) -> io::Result<usize> {
    let mut files = 0;
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            match fs::symlink_metadata(&path)?.is_dir() {
                true => left.push(path),
                false => files += 1,
            }
        }
    }
    Ok(files)
}
