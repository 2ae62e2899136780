//! NTFS as ntfs-3g makes it.

use qmpfs_guestfs::{Filesystem, Kind, open};
use std::fs;
use std::process::Command;
use std::sync::Arc;

/// A name of as many units of UTF-16 as Windows allows, in which each takes three bytes here.
fn long_name() -> String {
    "\u{6587}".repeat(255)
}

/// An image with a file of 64 KiB under a name.
fn image(name: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let line = "truncate -s 12M image; mkntfs -q -F -f image >/dev/null; \
                head -c 65536 /dev/zero | tr '\\0' x >content; ntfscp -q image content \"$NAME\"";
    let made = Command::new("sh")
        .args(["-euc", line])
        .current_dir(&directory)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .env("NAME", name)
        .status()
        .expect("sh");
    assert!(made.success(), "mountscripts/setup --tests");
    fs::read(directory.path().join("image")).expect("the image")
}

fn opened(image: Vec<u8>) -> Box<dyn Filesystem> {
    open(Kind::Ntfs, Arc::new(image)).expect("it is whole")
}

#[test]
fn names_of_windows_may_be_longer_than_those_of_linux() {
    let name = long_name();
    let filesystem = opened(image(&name));
    let root = filesystem.root();
    let entries = filesystem.list(root, 0).expect("names").entries;
    let names: Vec<_> = entries.iter().map(|entry| &entry.name[..]).collect();
    assert_eq!(names, [name.as_bytes()]);
    let node = filesystem.lookup(root, name.as_bytes());
    assert_eq!(node.expect("it is listed"), entries[0].node);
}
