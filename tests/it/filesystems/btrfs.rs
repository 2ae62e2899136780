//! Btrfs as the kernel shows it, all of its subvolumes; in use with what only its log has.

use super::{Unmount, image, mounted};
use crate::files::{Share, same_as_kernel};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::sh;
use std::fs;

const POPULATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/it/files/populate");
/// The whole.
const WHOLE: &str = ",ro,subvolid=5";

/// Subvolumes, and all ways of compression, in clusters and in the tree.
#[test]
fn btrfs_is_what_the_kernel_shows() {
    let scratch = Scratch::new("files-btrfs");
    let (image, kernel) = (image(&scratch), scratch.dir("kernel"));
    let Share {
        megabytes,
        names,
        large,
    } = Share::or_whole(320, 700);
    sh!(
        "truncate -s {megabytes}M {0}; mkfs.btrfs -q {0} >&2; mount -o loop {0} {1}; trap 'umount {1}' EXIT; cd {1}; \
         btrfs -q subvolume create @; btrfs -q subvolume create @home; \
         {POPULATE} {1}/@ {names} {large}; touch -d '1999-01-01Z' @/odd/empty; \
         for kind in zlib lzo zstd; do mkdir @home/$kind; btrfs property set @home/$kind compression $kind; \
           seq 1 200000 >@home/$kind/numbers; seq 1 700 >@home/$kind/small; \
           truncate -s 2M @home/$kind/holes; seq 1 9000 | dd of=@home/$kind/holes bs=4k seek=100 conv=notrunc status=none; \
           dd if=/dev/urandom of=@home/$kind/numbers bs=4k seek=60 count=3 conv=notrunc status=none; done; \
         btrfs -q subvolume snapshot @ old; rm -r @/many; echo new >@/odd/tiny; ln @/odd/tiny @/linked; cd /",
        image.display(),
        kernel.display()
    );
    let (mount, point) = mounted(&scratch, &image, "ro,symlinks=guest");
    same_as_kernel(&scratch, &image, WHOLE, &point.join("files/0"));
    let packed = sh!(
        "cd {}/files/0/@home; stat -c '%s %b' zlib/numbers",
        point.display()
    );
    let (size, blocks) = packed.split_once(' ').expect("two numbers");
    assert!(blocks.parse::<u64>().expect("a number") * 512 >= size.parse().expect("a number"));
    let json = fs::read_to_string(point.join("point.json")).expect("a text");
    assert!(json.contains("\"log\": \"clean\""), "{json}");
    let log = mount.text("log");
    assert!(!log.contains("read /"), "{log}");
}

/// What was synced since the last commit is in the log alone; the kernel replays it at the next mount. It gives what it
/// unlinks then the time of that, and directories sizes of its own.
#[test]
fn btrfs_in_use_is_what_the_kernel_recovers() {
    let scratch = Scratch::new("files-btrfs-live");
    let (image, kernel) = (image(&scratch), scratch.dir("kernel"));
    let made = scratch.file("made.raw");
    let Share {
        megabytes,
        names,
        large,
    } = Share::or_whole(200, 300);
    sh!(
        "truncate -s {megabytes}M {0}; mkfs.btrfs -q {0} >&2; mount -o loop,commit=300 {0} {1}; trap 'umount {1}' EXIT; \
         cd {1}; btrfs -q subvolume create below; {POPULATE} {1} {names} {large}; echo x >below/file; \
         setfattr -n user.gone -v x odd/tiny; btrfs filesystem sync . >&2; \
         echo log >fsynced; sync fsynced; echo log >odd/tiny; setfattr -x user.gone odd/tiny; sync odd/tiny; \
         mv many/file-number-9 deep/renamed; sync deep/renamed; truncate -s 70001 odd/big; sync odd/big; \
         fallocate -p -o 40960 -l 12288 odd/fragments; sync odd/fragments; \
         mkdir -p fresh/directory; echo x >fresh/directory/file; ln fresh/directory/file fresh/hard; sync fresh/hard; \
         for i in $(seq 1 200); do echo $i >fresh/new-$i; done; rm fresh/new-7; ln -s there fresh/link; sync fresh; \
         rm many/file-number-11; echo y >many/file-number-11; sync many/file-number-11; rm odd/fifo; sync odd; \
         echo more >>below/file; sync below/file; echo unsynced >unsynced; \
         cp --sparse=always {0} {2}; cd /",
        made.display(),
        kernel.display(),
        image.display()
    );
    fs::remove_file(made).expect("our own");
    let (mount, point) = mounted(&scratch, &image, "ro,symlinks=guest");
    let tree = point.join("files/0");
    let copy = scratch.file("oracle.raw");
    sh!(
        "cp --sparse=always {0} {1}; mount -o loop,subvolid=5 {1} {2}; mount -o remount,ro {2}",
        image.display(),
        copy.display(),
        kernel.display()
    );
    let _unmounted = Unmount(kernel.clone());
    let listing = |of: &std::path::Path| {
        sh!(
            "cd {}; find . -type d -printf '%P|d|%m|%U|%G|%n\n' -o -printf '%P|%y|%m|%U|%G|%n|%s|%b|%T@|%l\n' | sort; \
             getfattr -h -d -m '^[^s]|^se' -R . 2>/dev/null | sort",
            of.display()
        )
    };
    let (shown, expected) = (listing(&tree), listing(&kernel));
    for (shown, expected) in shown.lines().zip(expected.lines()) {
        assert_eq!(shown, expected);
    }
    assert_eq!(shown.len(), expected.len());
    let differences = sh!(
        "rsync -aHAXO --checksum -n -i --delete {}/ {}/",
        kernel.display(),
        tree.display()
    );
    assert_eq!(differences, "");
    for (name, content) in [("fsynced", "log\n"), ("below/file", "x\nmore\n")] {
        assert_eq!(
            fs::read(tree.join(name)).expect("it is there"),
            content.as_bytes()
        );
    }
    assert!(!tree.join("unsynced").exists());
    let json = fs::read_to_string(point.join("point.json")).expect("a text");
    assert!(json.contains("\"log\": \"replayed\""), "{json}");
    let log = mount.text("log");
    assert!(!log.contains("read /"), "{log}");
}

/// A snapshot names the subvolumes that were in it, and itself; they are empty there.
#[test]
fn a_snapshot_that_has_itself_in_it_ends() {
    let scratch = Scratch::new("files-btrfs-nested");
    let (image, kernel) = (image(&scratch), scratch.dir("kernel"));
    sh!(
        "truncate -s 120M {0}; mkfs.btrfs -q {0} >&2; mount -o loop {0} {1}; trap 'umount {1}' EXIT; cd {1}; \
         btrfs -q subvolume create a; btrfs -q subvolume create a/nested; echo x >a/nested/file; mkdir snapshots; \
         for i in 1 2 3 4; do btrfs -q subvolume snapshot . snapshots/$i; done; \
         btrfs -q subvolume delete snapshots/2; btrfs -q subvolume snapshot a b; mv a/nested moved; cd /",
        image.display(),
        kernel.display()
    );
    let (_mount, point) = mounted(&scratch, &image, "ro");
    sh!(
        "mount -o loop,ro,subvolid=5 {} {}",
        image.display(),
        kernel.display()
    );
    let _unmounted = Unmount(kernel.clone());
    let tree = point.join("files/0");
    let listing = |of: &std::path::Path| {
        sh!(
            "cd {}; find . -printf '%P|%y|%m|%s\\n' | sort; cat moved/file",
            of.display()
        )
    };
    let (shown, expected) = (listing(&tree), listing(&kernel));
    assert_eq!(shown, expected);
    assert!(
        expected.contains("snapshots/4/snapshots/3|d|"),
        "{expected}"
    );
}
