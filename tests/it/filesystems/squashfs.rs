//! squashfs as the kernel shows it, in all the ways it is made.

use super::{image, mounted};
use crate::files::{Share, same_as_kernel};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::sh;
use std::fs;

const POPULATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/it/files/populate");

/// One tree, packed with each of some options.
fn compared(name: &str, share: Share, options: &[&str]) {
    let Share { names, large, .. } = share;
    let scratch = Scratch::new(name);
    let (tree, image) = (scratch.dir("tree"), image(&scratch));
    sh!(
        "{POPULATE} {0} {names} {large}; cd {0}/odd; rm hole; seq 1 200000 >numbers; truncate -s 3M holes; \
         seq 1 9000 | dd of=holes bs=4k seek=100 conv=notrunc status=none; \
         head -c 70000 /dev/zero >zeros; for i in $(seq 1 300); do seq 1 $i >../many/small$i; done; \
         setfattr -n user.long -v \"$(seq 1 1000)\" numbers; setfattr -n user.long -v \"$(seq 1 1000)\" holes; \
         setfattr -h -n trusted.link -v x longlink; setfattr -h -n security.fifo -v x fifo null; ln fifo fifo2",
        tree.display()
    );
    for options in options {
        sh!(
            "mksquashfs {} {} -quiet -no-progress -noappend {options} 2>&1",
            tree.display(),
            image.display()
        );
        let (mount, point) = mounted(&scratch, &image, "ro,symlinks=guest");
        same_as_kernel(&scratch, &image, ",ro", &point.join("files/0"));
        let log = mount.text("log");
        assert!(!log.contains("read /"), "{options}: {log}");
        drop(mount);
        fs::remove_file(scratch.dir("images").join("top.qcow2")).expect("our own");
    }
}

#[test]
fn squashfs_is_what_the_kernel_shows() {
    let share = Share::or_whole(0, 700);
    compared("files-squashfs", share, &["-comp gzip", "-comp zstd -b 1M"]);
}

#[test]
fn squashfs_in_other_ways_is_what_the_kernel_shows() {
    compared(
        "files-squashfs-ways",
        Share {
            megabytes: 0,
            names: 60,
            large: 0,
        },
        &[
            "-comp xz -Xbcj x86 -b 64K",
            "-comp lz4 -no-fragments",
            "-comp lzo -b 4K -always-use-fragments -no-exports",
            "-noI -noD -noF -noX",
        ],
    );
}
