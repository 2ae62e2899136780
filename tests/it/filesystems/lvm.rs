//! Logical volumes: what is in them is what was written where `lvs` says that they are.

use super::{SCRIPTS, image, mounted};
use crate::files::{Copied, filled, same_as_kernel};
use qmpfs_tests::mounted::{Mounted, program};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::sh;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: u64 = 1 << 20;
/// Where the extents of each of the two begin on the disk: partitions, and the first MiB of metadata.
const FIRST_EXTENTS: [u64; 2] = [2 * MIB, 62 * MIB];

/// Writes the bytes of a volume to where a line of lvs says that a piece of it is.
fn write(line: &str, content: &[u8], disk: &File) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let (first, stripe) = (number(words[1]), number(words[2]));
    let places: Vec<(u64, u64)> = words[3..]
        .iter()
        .map(|range| {
            let (partition, extents) = range.split_once(':').expect("a place");
            let (from, to) = extents.split_once('-').expect("extents");
            let start = FIRST_EXTENTS[number(partition) as usize - 1];
            (
                start + number(from) * MIB,
                (number(to) + 1 - number(from)) * MIB,
            )
        })
        .collect();
    let stripe = if stripe == 0 { places[0].1 } else { stripe };
    let mut at = first * MIB;
    for row in 0..places[0].1 / stripe {
        for (start, _) in &places {
            let piece = &content[at as usize..(at + stripe) as usize];
            disk.write_all_at(piece, start + row * stripe)
                .expect("room");
            at += stripe;
        }
    }
}

/// Writes a volume to its place; says how many pieces it is in.
fn put(name: &str, pieces: &str, content: &Path, disk: &Path) -> usize {
    let file = File::options().write(true).open(disk).expect("the disk");
    let content = fs::read(content).expect("our own");
    let its = |line: &&str| line.split_whitespace().next() == Some(name);
    let lines: Vec<&str> = pieces.lines().filter(its).collect();
    lines.iter().for_each(|line| write(line, &content, &file));
    lines.len()
}

#[test]
fn linear_and_striped_volumes_are_what_lvs_says() {
    let scratch = Scratch::new("files-lvm");
    let ext = filled(&scratch, "mkfs.ext4 -q -F", 60, 200, Copied::InUse);
    let (ext, disk) = (fs::rename(&ext, scratch.file("root.raw")), image(&scratch));
    ext.expect("our own");
    let striped = scratch.file("stripe.raw");
    sh!(
        "export MTOOLS_SKIP_CHECK=1; truncate -s 24M {0}; mkfs.vfat -s 4 {0} >&2; \
         head -c 9000000 /dev/urandom >{1}; mcopy -i {0} {1} ::big",
        striped.display(),
        scratch.file("big").display()
    );
    let pieces = sh!("{SCRIPTS}/lvm {}", disk.display());
    let root = put("root", &pieces, &scratch.file("root.raw"), &disk);
    let stripe = put("stripe-d", &pieces, &striped, &disk);
    assert!(root > 1 && stripe == 1, "{pieces}");
    let (mount, point) = mounted(&scratch, &disk, "ro,symlinks=guest");
    let names = sh!("ls {}/files", point.display());
    assert_eq!(
        names,
        "1.txt\n2.txt\n3.txt\ntest--vg-root\ntest--vg-stripe--d"
    );
    let root = point.join("files/test--vg-root");
    same_as_kernel(&scratch, &scratch.file("root.raw"), "", &root);
    sh!(
        "cmp {}/files/test--vg-stripe--d/big {}",
        point.display(),
        scratch.file("big").display()
    );
    let note = fs::read_to_string(point.join("files/2.txt")).expect("a note");
    for line in ["files/test--vg-root/", "test--vg-swap: 4.0 MiB"] {
        assert!(note.contains(line), "{note}");
    }
    let json = fs::read_to_string(point.join("point.json")).expect("a text");
    assert!(json.contains("\"volume\": \"test--vg-root\""), "{json}");
    let log = mount.text("log");
    assert!(!log.contains("read /"), "{log}");
}

/// Without its second disk, a volume group has what is on the first.
#[test]
fn a_volume_on_two_disks_is_named() {
    let scratch = Scratch::new("files-lvm-part");
    let disk = image(&scratch);
    sh!("{SCRIPTS}/lvm {}", disk.display());
    // The label of the second physical volume.
    sh!(
        "dd if=/dev/zero of={} bs=1M seek=61 count=1 conv=notrunc status=none",
        disk.display()
    );
    let (_mount, point) = mounted(&scratch, &disk, "ro");
    sh!("ls {}/files", point.display());
    let note = fs::read_to_string(point.join("files/1.txt")).expect("a note");
    let expected = "test--vg-root: a part of it is on another disk";
    assert!(note.contains(expected), "{note}");
    assert!(note.contains("test--vg-swap: 4.0 MiB"), "{note}");
}

/// What is different between two points is told by the files of the volumes, and that something is by their partition.
#[test]
fn a_difference_is_told_by_the_files_of_a_volume() {
    let scratch = Scratch::new("files-lvm-diff");
    let disk = image(&scratch);
    let root = scratch.file("root.raw");
    let pieces = sh!("{SCRIPTS}/lvm {}", disk.display());
    sh!(
        "mkdir {1}; echo Monday >{1}/plan; mkfs.ext4 -q -d {1} {0} 60M >&2",
        root.display(),
        scratch.file("tree").display()
    );
    put("root", &pieces, &root, &disk);
    let (later, image) = (scratch.file("later.raw"), disk.with_file_name("b.qcow2"));
    sh!(
        "cp --sparse=always {0} {1}; echo Tuesday >{3}/new; \
         printf 'write {3}/new new\nrm plan\n' | debugfs -w {2} >&2",
        disk.display(),
        later.display(),
        root.display(),
        scratch.file("tree").display()
    );
    put("root", &pieces, &root, &later);
    let top = disk.with_file_name("top.qcow2");
    sh!(
        "qemu-img create -q -f qcow2 -b {0} -F raw {1}; \
         qemu-img convert -n -f raw -O qcow2 {2} {1}; qemu-img create -q -f qcow2 -b {1} -F qcow2 {3}",
        disk.display(),
        image.display(),
        later.display(),
        top.display()
    );
    let mount = Mounted::new(&scratch, &[&top], &["-o", "ro"]);
    let layers = mount.path().join("disks/top/layers");
    let said = sh!(
        "cd {}; {} diff 0-fs 1-b || [ $? = 1 ]; {1} diff 0-fs 0-fs",
        layers.display(),
        program().display()
    );
    let lines: Vec<&str> = said.lines().collect();
    let (partitions, files): (Vec<&str>, Vec<&str>) =
        lines.iter().partition(|line| line.contains("partitions/"));
    assert!(!partitions.is_empty(), "{said}");
    for line in partitions {
        assert!(line.ends_with(".raw (content)"), "{said}");
    }
    let expected = [
        "added    files/test--vg-root/new",
        "removed  files/test--vg-root/plan",
    ];
    assert_eq!(files, expected);
}
