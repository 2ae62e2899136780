//! Guests' filesystems that are not Linux's own, or not read as the kernel reads them: each compared, through a
//! mount, with another program that reads the same bytes.

use crate::files::mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::sh;
use std::path::{Path, PathBuf};

mod btrfs;
mod dos;
mod lvm;
mod ntfs;
mod squashfs;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/it/filesystems");

/// An image file under the name that the mount knows it by.
fn image(scratch: &Scratch) -> PathBuf {
    scratch.dir("images").join("fs.raw")
}

/// A directory tree must be another one: what `find -printf FORMAT` says of all paths, and all bytes.
#[track_caller]
fn same_trees(ours: &Path, theirs: &Path, format: &str) {
    let listing = |of: &Path| {
        sh!(
            "cd {}; find . -mindepth 1 -printf '{format}' | sort",
            of.display()
        )
    };
    let (shown, expected) = (listing(ours), listing(theirs));
    for (shown, expected) in shown.lines().zip(expected.lines()) {
        assert_eq!(shown, expected);
    }
    assert_eq!(shown.len(), expected.len());
    assert!(expected.lines().count() > 100, "something was compared");
    sh!(
        "diff -r --no-dereference {} {}",
        ours.display(),
        theirs.display()
    );
}

/// Stops a mount of the kernel's, or of another program's, at the end of a test.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        qmpfs_tests::sh::attempt(&format!("umount {}", self.0.display()));
    }
}
