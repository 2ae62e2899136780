//! Filesystems that the kernel has written to. It needs loop devices.

use qmpfs_guestfs::{Filesystem, Journal, Kind, open};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// Runs a program, which must do what it is to do.
#[track_caller]
fn run(program: &str, arguments: &[&str], paths: &[&Path]) {
    let done = Command::new(program).args(arguments).args(paths).status();
    let done = done.expect("it is there: mountscripts/setup installs it");
    assert!(done.success(), "{program} {arguments:?} {paths:?}");
}

/// A new filesystem, mounted by the kernel until it is dropped.
struct Mounted {
    directory: TempDir,
    kind: Kind,
}

impl Mounted {
    fn new(kind: Kind, megabytes: u64, make: &[&str]) -> Mounted {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let image = directory.path().join("fs.raw");
        let made = File::create(&image).expect("room");
        made.set_len(megabytes << 20).expect("a sparse file");
        run(make[0], &make[1..], &[&image]);
        let at = directory.path().join("kernel");
        fs::create_dir(&at).expect("room");
        run("mount", &["-o", "loop"], &[&image, &at]);
        Mounted { directory, kind }
    }

    fn at(&self) -> PathBuf {
        self.directory.path().join("kernel")
    }

    /// All that was written is on the disk.
    fn sync(&self) {
        run("sync", &["-f"], &[&self.at()]);
    }

    /// The filesystem as the image has it now.
    fn read(&self) -> Box<dyn Filesystem> {
        let image = fs::read(self.directory.path().join("fs.raw")).expect("it can be read");
        open(self.kind, Arc::new(image)).expect("a filesystem")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[], &[&self.at()]);
    }
}

/// A new file whose bytes are on the disk when this returns.
fn write_through(path: &Path) {
    fs::write(path, b"new\n").expect("room");
    let file = File::open(path).expect("it is there");
    file.sync_all().expect("it is written");
}

/// They lie behind the journal's transactions, and count until the next whole one.
#[test]
fn fast_commits_are_told_until_a_whole_commit() {
    let mounted = Mounted::new(
        Kind::Ext4,
        64,
        &["mkfs.ext4", "-q", "-F", "-O", "fast_commit"],
    );
    fs::write(mounted.at().join("old"), b"old\n").expect("room");
    mounted.sync();
    let read = mounted.read();
    assert_eq!(read.journal(), Journal::Replayed);
    write_through(&mounted.at().join("new"));
    let read = mounted.read();
    assert_eq!(read.journal(), Journal::Partly);
    assert!(read.lookup(read.root(), b"new").is_err(), "not read here");
    mounted.sync();
    let read = mounted.read();
    assert_eq!(read.journal(), Journal::Replayed);
    read.lookup(read.root(), b"new").expect("in a whole commit");
}

/// Without `no-holes` a hole is an item of any length, which the log cuts where something is written into it.
#[test]
fn a_long_hole_is_cut_by_the_log() {
    let make = ["mkfs.btrfs", "-q", "-O", "^no-holes"];
    let mounted = Mounted::new(Kind::Btrfs, 128, &make);
    let path = mounted.at().join("holes");
    let file = File::create(&path).expect("room");
    file.set_len(3 << 30).expect("it is sparse");
    file.write_all_at(&[b'a'; 4096], 0).expect("room");
    mounted.sync();
    file.write_all_at(&[b'b'; 4096], 2 << 30).expect("room");
    file.sync_all().expect("it is written");
    let read = mounted.read();
    assert_eq!(read.journal(), Journal::Replayed);
    let node = read.lookup(read.root(), b"holes").expect("it is there");
    for (offset, byte) in [
        (0, b'a'),
        (4096, 0),
        (1 << 30, 0),
        (2 << 30, b'b'),
        ((2 << 30) + 4096, 0),
    ] {
        let bytes = read.read(node, offset, 4096).expect("it can be read");
        assert!(bytes == [byte; 4096], "{offset}");
    }
}

#[test]
fn blocks_in_clusters_are_what_the_kernel_writes() {
    for (block, features) in [
        ("4096", "bigalloc"),
        ("1024", "bigalloc"),
        ("1024", "bigalloc,meta_bg,^resize_inode"),
    ] {
        let make = [
            "mkfs.ext4",
            "-q",
            "-F",
            "-b",
            block,
            "-C",
            "16384",
            "-O",
            features,
        ];
        let mounted = Mounted::new(Kind::Ext4, 192, &make);
        let name = |number: u8| format!("file {number}");
        let content = |number: u8| vec![number; 1000 * usize::from(number)];
        for number in 1..=100 {
            fs::write(mounted.at().join(name(number)), content(number)).expect("room");
        }
        mounted.sync();
        let read = mounted.read();
        for number in 1..=100 {
            let node = read.lookup(read.root(), name(number).as_bytes());
            let bytes = read.read(node.expect("it is there"), 0, 1 << 20);
            assert!(
                bytes.expect("it can be read") == content(number),
                "{block} {number}"
            );
        }
    }
}
