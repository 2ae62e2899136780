//! FAT12, FAT16, FAT32 as mtools read them, exFAT as its own program does.

use super::{SCRIPTS, Unmount, image, mounted, same_trees};
use crate::files::{Copied, Share};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::sh;
use std::fs;

/// Path, kind and the time of the last change; mtools copy no permissions, and directories have no size.
const FILES: &str = "%P|%y|%Ts\\n";

/// Fills an image with files in pieces: what is removed in between leaves gaps for what follows.
fn fat(name: &str, mkfs: &str, share: Share) {
    let Share {
        megabytes,
        names,
        large,
    } = share;
    let scratch = Scratch::new(name);
    let (tree, image, copied) = (scratch.dir("tree"), image(&scratch), scratch.dir("copied"));
    sh!(
        "export LC_ALL=C.UTF-8 TZ=UTC MTOOLS_SKIP_CHECK=1; {SCRIPTS}/populate {0} {names} {large}; cd {0}; \
         truncate -s {megabytes}M {1}; {mkfs} {1} >&2; \
         mmd -i {1} ::gaps; for i in $(seq 1 20); do head -c 9000 /dev/zero >../$i; done; \
         for i in $(seq 1 20); do mcopy -i {1} ../$i ::gaps/; done; \
         for i in 2 4 6 8 10 12 14 16 18; do mdel -i {1} ::gaps/$i; done; \
         mcopy -s -p -m -i {1} * ::; mattrib -i {1} +r ::odd/MixedCase.Txt ::odd/short1; rm -r {0}/*; mcopy -s -p -m -n -i {1} '::*' {2}/",
        tree.display(),
        image.display(),
        copied.display()
    );
    let (mount, point) = mounted(&scratch, &image, "ro");
    same_trees(&point.join("files/0"), &copied, FILES);
    let read_only = sh!("cd {}/files/0; find . -perm 555 | sort", point.display());
    assert_eq!(read_only, "./odd/MixedCase.Txt\n./odd/short1");
    let writable = sh!("find {}/files/0 -type f -perm 755 | wc -l", point.display());
    assert!(writable.parse::<u32>().expect("a number") > 100);
    let fragments = sh!("cd {}/files/0/odd; stat -c %b big empty", point.display());
    assert!(fragments.ends_with("\n0"), "{fragments}");
    let log = mount.text("log");
    assert!(!log.contains("read /"), "{log}");
}

/// FAT12 has no room for more. A directory could have 21,000 such names, but mtools go through it for each, and through the
/// table for each cluster: more of either takes them hours.
fn every_day(megabytes: u32, names: u32) -> Share {
    let every_day = Share {
        megabytes,
        names,
        large: 0,
    };
    let whole = match megabytes {
        ..=31 => every_day,
        _ => Share {
            megabytes: 512,
            names: 4_000,
            large: 64,
        },
    };
    Share::of(every_day, whole)
}

#[test]
fn fat12_is_what_mtools_read() {
    fat("files-fat12", "mkfs.vfat -F 12 -s 32", every_day(31, 100));
}

#[test]
fn fat16_is_what_mtools_read() {
    // As many clusters as there are numbers for.
    let (mkfs, share) = ("mkfs.vfat -F 16", every_day(48, 400));
    match share.large {
        0 => fat("files-fat16", &format!("{mkfs} -s 4"), share),
        _ => fat("files-fat16", &format!("{mkfs} -s 64"), share),
    }
}

#[test]
fn fat32_is_what_mtools_read() {
    fat("files-fat32", "mkfs.vfat -F 32 -s 2", every_day(80, 600));
}

/// What FAT32 has for the upper half of a cluster's number OS/2 and DR-DOS use for something else.
#[test]
fn what_other_systems_keep_in_a_fat16_is_no_cluster() {
    let scratch = Scratch::new("files-fat16-others");
    let image = image(&scratch);
    sh!(
        "truncate -s 48M {0}; mkfs.vfat -F 16 {0} >&2; seq 9999 | mcopy -i {0} - ::NUMBERS",
        image.display()
    );
    let mut bytes = fs::read(&image).expect("the image");
    let name = b"NUMBERS    ";
    let at = bytes.windows(name.len()).position(|it| it == name);
    let at = at.expect("its entry");
    bytes[at + 20..at + 22].copy_from_slice(&[0x34, 0x12]);
    fs::write(&image, bytes).expect("the image");
    let (_mount, point) = mounted(&scratch, &image, "ro");
    let shown = fs::read_to_string(point.join("files/0/NUMBERS")).expect("it can be read");
    assert_eq!(
        shown.trim_end(),
        sh!("mtype -i {} ::NUMBERS", image.display())
    );
}

#[test]
fn exfat_is_what_its_own_program_shows() {
    exfat("files-exfat", Copied::Unmounted);
}

#[test]
fn exfat_in_use_is_what_its_own_program_shows() {
    exfat("files-exfat-live", Copied::InUse);
}

fn exfat(name: &str, copied: Copied) {
    let scratch = Scratch::new(name);
    let (image, theirs) = (image(&scratch), scratch.dir("theirs"));
    let made = scratch.file("made.raw");
    let every_day = Share {
        megabytes: 64,
        names: 1500,
        large: 0,
    };
    // Its program goes through the whole directory for each name that it makes.
    let whole = Share {
        megabytes: 4096,
        names: 20_000,
        large: 1024,
    };
    let Share {
        megabytes,
        names,
        large,
    } = Share::of(every_day, whole);
    sh!(
        "truncate -s {megabytes}M {0}; mkfs.exfat -c 4096 {0} >&2; loop=$(losetup -f --show {0}); \
         trap 'umount {1}; losetup -d $loop' EXIT; mount.exfat-fuse $loop {1} >&2; cd {1}; mkdir gaps; \
         for i in $(seq 1 40); do head -c 9000 /dev/zero >gaps/$i; done; rm gaps/*2 gaps/*4 gaps/*6; \
         {SCRIPTS}/populate {1} {names} {large}; truncate -s 2000000 gaps/1; \
         for i in $(seq 1 50); do head -c 5000 /dev/urandom >>odd/a; head -c 5000 /dev/urandom >>odd/b; done; \
         for i in $(seq 1 50); do echo $i >>gaps/one; mkdir gaps/directory$i; done; sync -f .; \
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
    let (mount, point) = mounted(&scratch, &image, "ro");
    sh!(
        "loop=$(losetup -r -f --show {0}); mount.exfat-fuse -o ro,umask=022 $loop {1} >&2; losetup -d $loop",
        image.display(),
        theirs.display()
    );
    let _unmounted = Unmount(theirs.clone());
    same_trees(&point.join("files/0"), &theirs, "%P|%y|%m|%s|%b|%Ts\\n");
    let log = mount.text("log");
    assert!(!log.contains("read /"), "{log}");
}
