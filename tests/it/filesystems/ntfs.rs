//! NTFS as ntfs-3g shows it: a Windows guest's disk.

use super::{SCRIPTS, Unmount, image, mounted};
use crate::files::{Copied, Share};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::sh;
use std::fs;

/// Times are counted in tenths of microseconds; a directory's size is the driver's affair.
const LISTING: &str = "find . -mindepth 1 -type d -printf '%P|%y|%m|%T@|%C@\\n' -o \
     -printf '%P|%y|%m|%n|%s|%b|%T@|%C@|%l\\n' | sort; getfattr -h -d -m '^user' -R . 2>/dev/null | sort";

#[test]
fn ntfs_is_what_ntfs_3g_shows() {
    compared("files-ntfs", Copied::Unmounted);
}

#[test]
fn ntfs_in_use_is_what_ntfs_3g_shows() {
    compared("files-ntfs-live", Copied::InUse);
}

fn compared(name: &str, copied: Copied) {
    let scratch = Scratch::new(name);
    let (image, theirs) = (image(&scratch), scratch.dir("theirs"));
    let made = scratch.file("made.raw");
    let Share {
        megabytes,
        names,
        large,
    } = Share::or_whole(64, 600);
    sh!(
        "truncate -s {megabytes}M {0}; mkntfs -q -F -f {0} >&2; ntfs-3g -o compression {0} {1}; trap 'umount {1}' EXIT; \
         cd {1}; mkdir gaps packed; setfattr -h -v 0x00080000 -n system.ntfs_attrib packed; \
         for i in $(seq 1 40); do head -c 9000 /dev/zero >gaps/$i; done; rm gaps/*2 gaps/*4 gaps/*6; \
         for i in $(seq 1 50); do head -c 5000 /dev/urandom >>gaps/a; head -c 5000 /dev/urandom >>gaps/b; done; \
         {SCRIPTS}/populate {1} {names} {large}; \
         seq 1 200000 >packed/numbers; head -c 300000 /dev/urandom >packed/random; cp /bin/sh packed/; \
         truncate -s 3M packed/holes; echo x | dd of=packed/holes bs=1 seek=2000000 conv=notrunc status=none; \
         truncate -s 3M gaps/sparse; echo x | dd of=gaps/sparse bs=1 seek=2000000 conv=notrunc status=none; \
         ln -s ../odd/tiny gaps/link; ln odd/tiny gaps/hard; \
         setfattr -n user.Zone.Identifier -v zone odd/tiny; setfattr -n user.of-a-directory -v here gaps; sync -f .; \
         if {2}; then cp --sparse=always {0} {3}; fi; cd /",
        made.display(),
        theirs.display(),
        copied == Copied::InUse,
        image.display()
    );
    if copied == Copied::Unmounted {
        sh!("cp --sparse=always {} {}", made.display(), image.display());
    }
    fs::remove_file(made).expect("our own");
    let (mount, point) = mounted(&scratch, &image, "ro,symlinks=guest");
    // Read-only marks are Linux's own idea of permissions; ntfs-3g leaves them out.
    sh!(
        "ntfs-3g -o ro,umask=022 {} {}",
        image.display(),
        theirs.display()
    );
    let _unmounted = Unmount(theirs.clone());
    let tree = point.join("files/0");
    let listing = |of: &std::path::Path| sh!("cd {}; {LISTING}", of.display());
    let (shown, expected) = (listing(&tree), listing(&theirs));
    for (shown, expected) in shown.lines().zip(expected.lines()) {
        assert_eq!(shown, expected);
    }
    assert_eq!(shown.len(), expected.len());
    for line in [
        "user.Zone.Identifier=\"zone\"",
        "user.of-a-directory=\"here\"",
        "gaps/link|l|",
    ] {
        assert!(expected.contains(line), "{line}");
    }
    sh!(
        "diff -r --no-dereference {} {}",
        tree.display(),
        theirs.display()
    );
    let log = mount.text("log");
    assert!(!log.contains("read /"), "{log}");
}

/// As Windows writes them: by their reparse points, which ntfs-3g can be given as attributes.
#[test]
fn junctions_and_links_of_windows() {
    let scratch = Scratch::new("files-ntfs-links");
    let (image, theirs) = (image(&scratch), scratch.dir("theirs"));
    let hex = |bytes: Vec<u8>| -> String { bytes.iter().map(|it| format!("{it:02x}")).collect() };
    let point = |tag: u32, head: &[u8], name: &str| {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let names = [0, name.len() as u16, name.len() as u16, 0].map(u16::to_le_bytes);
        let data = [names.as_flattened(), head, &name].concat();
        let length = (data.len() as u16).to_le_bytes();
        hex([&tag.to_le_bytes(), &length[..], &[0, 0], &data].concat())
    };
    let junction = point(0xa000_0003, &[], r"\??\C:\real\below");
    let link = point(0xa000_000c, &[1, 0, 0, 0], r"..\real\file");
    // What is there is not the file: Windows has it elsewhere.
    let packed = hex([&0x8000_0017u32.to_le_bytes()[..], &[16, 0, 0, 0], &[0; 16]].concat());
    sh!(
        "truncate -s 16M {0}; mkntfs -q -F -f {0} >&2; ntfs-3g {0} {1}; trap 'umount {1}' EXIT; \
         cd {1}; mkdir -p real/below links/junction; echo content >real/file; echo below >real/below/it; \
         : >links/link; : >links/packed; truncate -s 1000 links/packed; \
         setfattr -h -v 0x{junction} -n system.ntfs_reparse_data links/junction; \
         setfattr -h -v 0x{link} -n system.ntfs_reparse_data links/link; \
         setfattr -h -v 0x{packed} -n system.ntfs_reparse_data links/packed; cd /",
        image.display(),
        theirs.display()
    );
    let (_mount, point) = mounted(&scratch, &image, "ro");
    let links = point.join("files/0/links");
    let read = |name: &str| std::fs::read_to_string(links.join(name));
    assert_eq!(read("link").expect("it leads there"), "content\n");
    assert_eq!(read("junction/it").expect("it leads there"), "below\n");
    let target = std::fs::read_link(links.join("junction")).expect("a link");
    assert_eq!(target.to_str(), Some("../real/below"));
    let error = read("packed").expect_err("its bytes are elsewhere");
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}");
}
