//! NTFS as ntfs-3g makes it.

use qmpfs_guestfs::{Error, Filesystem, Kind, open};
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

/// Where the runs of a file end before its bytes do, these are no hole.
#[test]
fn what_has_no_runs_is_not_read_as_zeros() {
    let mut image = image("cut");
    let whole = opened(image.clone());
    let node = whole.lookup(whole.root(), b"cut").expect("it is there");
    assert_eq!(whole.read(node, 65535, 2).expect("its end"), b"x");
    let name = [b'c', 0, b'u', 0, b't', 0];
    let record = (0..image.len()).step_by(1024).find(|at| {
        let record = &image[*at..*at + 1024];
        record.starts_with(b"FILE") && record.windows(6).any(|it| it == name)
    });
    let record = record.expect("its record");
    let mut at = record + usize::from(u16::from_le_bytes([image[record + 20], image[record + 21]]));
    while image[at] != 0x80 {
        at += usize::from(image[at + 4]);
    }
    // One run, its count of clusters in the byte behind its header.
    let runs = at + usize::from(image[at + 32]);
    assert_eq!(image[runs] & 0xf, 1);
    image[runs + 1] -= 1;
    let cut = opened(image);
    for offset in [0, 65535] {
        let read = cut.read(node, offset, 2);
        assert!(matches!(read, Err(Error::Corrupt(_))), "{read:?}");
        let extents = cut.extents(node, offset, 9);
        assert!(matches!(extents, Err(Error::Corrupt(_))), "{extents:?}");
    }
}
