//! Logical volumes: what is in them is what was written where `lvs` says that they are.

use super::{SCRIPTS, image, mounted};
use crate::files::{Copied, filled, same_as_kernel};
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::Model;
use qmpfs_tests::mounted::{Mounted, program};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::writer::Writer;
use qmpfs_tests::{sh, wait};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// Writes the bytes of a volume to where a line of lvs says that a piece of it is. `members` are the two physical
/// volumes: where each begins on which disk.
fn write(line: &str, content: &[u8], members: &[(File, u64); 2]) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let (first, stripe) = (number(words[1]), number(words[2]));
    let places: Vec<(&File, u64, u64)> = words[3..]
        .iter()
        .map(|range| {
            let (member, extents) = range.split_once(':').expect("a place");
            let (from, to) = extents.split_once('-').expect("extents");
            let (disk, start) = &members[number(member) as usize - 1];
            // Behind the first MiB, of metadata.
            let start = start + MIB + number(from) * MIB;
            (disk, start, (number(to) + 1 - number(from)) * MIB)
        })
        .collect();
    let stripe = if stripe == 0 { places[0].2 } else { stripe };
    let mut at = first * MIB;
    for row in 0..places[0].2 / stripe {
        for (disk, start, _) in &places {
            let piece = &content[at as usize..(at + stripe) as usize];
            disk.write_all_at(piece, start + row * stripe)
                .expect("room");
            at += stripe;
        }
    }
}

/// Writes a volume to its place; says how many pieces it is in.
fn put(name: &str, pieces: &str, content: &Path, disks: [(&Path, u64); 2]) -> usize {
    let member = |(disk, megabyte): (&Path, u64)| {
        let file = File::options().write(true).open(disk);
        (file.expect("the disk"), megabyte * MIB)
    };
    let members = disks.map(member);
    let content = fs::read(content).expect("our own");
    let its = |line: &&str| line.split_whitespace().next() == Some(name);
    let lines: Vec<&str> = pieces.lines().filter(its).collect();
    lines
        .iter()
        .for_each(|line| write(line, &content, &members));
    lines.len()
}

/// A disk with both physical volumes; where they are, and where the volumes are on them.
fn on_one(disk: &Path) -> ([(&Path, u64); 2], String) {
    let pieces = sh!(
        "truncate -s 200M {0}; \
         printf 'label: gpt\nsize=60MiB,type=lvm\nsize=60MiB,type=lvm\nsize=40MiB\n' | sfdisk -q {0}; \
         {SCRIPTS}/lvm {0} 1 {0} 61",
        disk.display()
    );
    ([(disk, 1), (disk, 61)], pieces)
}

/// What the two volumes hold: an ext4 in use, and a FAT with one big file.
struct Content {
    root: PathBuf,
    striped: PathBuf,
    big: PathBuf,
}

impl Content {
    fn new(scratch: &Scratch) -> Content {
        let made = filled(scratch, "mkfs.ext4 -q -F", 60, 200, Copied::InUse);
        let file = |name| scratch.file(name);
        let (root, striped, big) = (file("root.raw"), file("stripe.raw"), file("big"));
        fs::rename(made, &root).expect("our own");
        sh!(
            "export MTOOLS_SKIP_CHECK=1; truncate -s 24M {0}; mkfs.vfat -s 4 {0} >&2; \
             head -c 9000000 /dev/urandom >{1}; mcopy -i {0} {1} ::big",
            striped.display(),
            big.display()
        );
        Content { root, striped, big }
    }

    /// Writes both to their places.
    fn put(&self, pieces: &str, disks: [(&Path, u64); 2]) {
        let root = put("root", pieces, &self.root, disks);
        let stripe = put("stripe-d", pieces, &self.striped, disks);
        assert!(root > 1 && stripe == 1, "{pieces}");
    }

    #[track_caller]
    fn is_in(&self, scratch: &Scratch, files: &Path) {
        same_as_kernel(scratch, &self.root, "", &files.join("test--vg-root"));
        self.has_big(files);
    }

    #[track_caller]
    fn has_big(&self, files: &Path) {
        let shown = files.join("test--vg-stripe--d/big");
        sh!("cmp {} {}", shown.display(), self.big.display());
    }
}

#[test]
fn linear_and_striped_volumes_are_what_lvs_says() {
    let scratch = Scratch::new("files-lvm");
    let (content, disk) = (Content::new(&scratch), image(&scratch));
    let (disks, pieces) = on_one(&disk);
    content.put(&pieces, disks);
    let (mount, point) = mounted(&scratch, &disk, "ro,symlinks=guest");
    let names = sh!("ls {}/files", point.display());
    assert_eq!(
        names,
        "1.txt\n2.txt\n3.txt\ntest--vg-root\ntest--vg-stripe--d"
    );
    content.is_in(&scratch, &point.join("files"));
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
    on_one(&disk);
    // The label of the second physical volume.
    sh!(
        "dd if=/dev/zero of={} bs=1M seek=61 count=1 conv=notrunc status=none",
        disk.display()
    );
    let (_mount, point) = mounted(&scratch, &disk, "ro");
    let names = sh!("ls {}/files", point.display());
    assert_eq!(
        names,
        "1.txt\n2.txt\n3.txt\ntest--vg-root.txt\ntest--vg-stripe--d.txt"
    );
    let note = fs::read_to_string(point.join("files/1.txt")).expect("a note");
    let expected = "test--vg-root: 60.0 MiB; a part of it is on another disk";
    assert!(note.contains(expected), "{note}");
    let own = fs::read_to_string(point.join("files/test--vg-root.txt")).expect("a note");
    assert!(
        own.contains("only a part is here") && own.contains("snapshots/NAME"),
        "{own}"
    );
    assert!(note.contains("test--vg-swap: 4.0 MiB"), "{note}");
}

/// What is different between two points is told by the files of the volumes, and that something is by their partition.
#[test]
fn a_difference_is_told_by_the_files_of_a_volume() {
    let scratch = Scratch::new("files-lvm-diff");
    let disk = image(&scratch);
    let root = scratch.file("root.raw");
    let (disks, pieces) = on_one(&disk);
    sh!(
        "mkdir {1}; echo Monday >{1}/plan; mkfs.ext4 -q -d {1} {0} 60M >&2",
        root.display(),
        scratch.file("tree").display()
    );
    put("root", &pieces, &root, disks);
    let (later, image) = (scratch.file("later.raw"), disk.with_file_name("b.qcow2"));
    sh!(
        "cp --sparse=always {0} {1}; echo Tuesday >{3}/new; \
         printf 'write {3}/new new\nrm plan\n' | debugfs -w {2} >&2",
        disk.display(),
        later.display(),
        root.display(),
        scratch.file("tree").display()
    );
    put("root", &pieces, &root, [(&later, 1), (&later, 61)]);
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

/// Two disks, each with a physical volume, under writers that never stop: what lies on both is shown where both are of
/// one instant, and each alone says where that is.
fn volumes_over_two_disks(name: &str, attachment: Attachment) {
    let scratch = Scratch::new(name);
    let content = Content::new(&scratch);
    let raws = ["a.raw", "b.raw"].map(|name| scratch.file(name));
    for raw in &raws {
        sh!(
            "truncate -s 72M {0}; printf 'label: gpt\nsize=60MiB,type=lvm\nsize=8MiB\n' | sfdisk -q {0}",
            raw.display()
        );
    }
    let pieces = sh!(
        "{SCRIPTS}/lvm {} 1 {} 1",
        raws[0].display(),
        raws[1].display()
    );
    content.put(&pieces, [(&raws[0], 1), (&raws[1], 1)]);
    let disks = ["vda", "vdb"].map(|disk| {
        let image = scratch.dir("images").join(format!("{disk}.qcow2"));
        Disk::qcow2(disk, &image)
    });
    for (raw, disk) in raws.iter().zip(&disks) {
        sh!(
            "qemu-img convert -f raw -O qcow2 {0} {1}; rm {0}",
            raw.display(),
            disk.image.display()
        );
    }
    let machine = Machine::start(&scratch, "vm", attachment, &disks);
    let server = machine.endpoint("vda").socket;
    let options = format!("symlinks=guest,nbd_server={}", server.display());
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &["-o", &options]);
    wait::until_true("the disks are in the mount", || {
        mount.disk("vdb").0.is_dir()
    });
    let writers = ["vda", "vdb"].map(|disk| {
        let stretch = 61 << 20..69 << 20;
        Writer::start(&machine.endpoint(disk), stretch, Model::default(), 7)
    });
    let both = mount.snapshots("all");
    fs::create_dir(&both).expect("mkdir");
    let files = both.join("files");
    let listed = |of: &Path| sh!("ls {}", of.display());
    for disk in ["vda", "vdb"] {
        let alone = mount.disk(disk).snapshot("all").0.join("files");
        let expected = "1.txt\n2.txt\ntest--vg-root.txt\ntest--vg-stripe--d.txt";
        assert_eq!(listed(&alone), expected);
        let note = fs::read_to_string(alone.join("test--vg-root.txt")).expect("a note");
        let place = files.join("test--vg-root").display().to_string();
        assert!(
            note.contains(&place) && note.contains("/dev/loop"),
            "{note}"
        );
    }
    assert_eq!(listed(&files), "test--vg-root\ntest--vg-stripe--d");
    content.is_in(&scratch, &files);
    let said = qmpfs_tests::tree::json(&both.join("point.json"));
    assert_eq!(said["filesystems"][0]["volume"], "test--vg-root", "{said}");
    assert_eq!(said["filesystems"][0]["log"], "replayed", "{said}");
    // What both disks hold together is compared, too: here with itself.
    sh!("{0} diff {1} {1}", program().display(), both.display());
    // An open file keeps the points of both disks.
    let file = File::open(files.join("test--vg-stripe--d/big")).expect("it opens");
    for busy in [both.clone(), mount.disk("vdb").snapshot("all").0] {
        let busy = fs::remove_dir(busy).expect_err("a file in it is open");
        assert_eq!(busy.raw_os_error(), Some(libc::EBUSY), "{busy}");
    }
    drop(file);
    // Instants of the running disks are of all of them as well.
    let live = mount.path().join("live/now");
    fs::create_dir(&live).expect("mkdir");
    content.has_big(&live.join("files"));
    wait::until_true("nobody reads it", || fs::remove_dir(&live).is_ok());
    wait::until_true("nobody reads it", || fs::remove_dir(&both).is_ok());
    assert_eq!(mount.wait_idle(), "done\n");
    let gone = fs::metadata(&files).expect_err("it is gone");
    assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
    let log = mount.text("log");
    assert!(!log.contains("read /"), "{log}");
    drop((writers, machine));
}

over_attachments!(a_volume_over_two_disks_beside_writers => volumes_over_two_disks);
