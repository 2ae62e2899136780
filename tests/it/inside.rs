//! What is inside a point: its partitions as files, compared with what the kernel makes of the same disk.

use qmpfs_tests::bench::Bench;
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{oracle, sh, wait};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Instant;

/// A disk with four partitions, as a qcow2 image.
fn partitioned(scratch: &Scratch) -> PathBuf {
    let (raw, image) = (
        scratch.file("made.raw"),
        scratch.dir("images").join("web1.qcow2"),
    );
    sh!(
        "truncate -s 64M {0}; printf 'label: gpt\\nsize=8M,name=boot\\nsize=4M,type=swap\\nsize=16M\\nsize=20M\\n' | sfdisk -q {0}; \
         mkfs.ext4 -q -F -L root -E offset=$((13*1024*1024)) {0} 16M; \
         dd if=/dev/urandom of={0} bs=1M seek=1 count=3 conv=notrunc status=none; \
         printf 'LUKS\\272\\276' | dd of={0} bs=1M seek=29 conv=notrunc status=none; \
         qemu-img convert -f raw -O qcow2 {0} {1}",
        raw.display(),
        image.display()
    );
    image
}

/// The processes that read guests' filesystems for a mount.
fn readers(mount: &Mounted) -> String {
    sh!(
        "ps -o args= --ppid {} | grep guest-reader || true",
        mount.pid()
    )
}

/// `point.json` names what is in the partitions, and nobody parses a guest's files for it. A QEMU that
/// hangs holds it up for a second at most.
fn point_json_names_the_filesystems(name: &str, attachment: Attachment) {
    let scratch = Scratch::new(name);
    let image = partitioned(&scratch);
    let machine = Machine::start(&scratch, "vm", attachment, &[Disk::qcow2("vda", &image)]);
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    wait::until_true("the disk is in the mount", || mount.disk("vda").0.is_dir());
    for name in ["before", "after"] {
        mount.disk("vda").snapshot(name).make().expect("mkdir");
    }
    let point = mount.disk("vda").snapshot("before");
    let all = point.json()["filesystems"].clone();
    let types: Vec<&str> = (0..4).filter_map(|at| all[at]["type"].as_str()).collect();
    assert_eq!(types, ["unknown", "empty", "ext4", "crypto_LUKS"]);
    let ext4 = &all[2];
    assert_eq!(
        (&ext4["partition"], &ext4["label"]),
        (&3.into(), &"root".into())
    );
    let part = mount
        .disk("vda")
        .0
        .join("snapshots/before/partitions/3.raw");
    assert_eq!(
        ext4["uuid"],
        sh!("blkid -p -o value -s UUID {}", part.display())
    );
    assert!(ext4["log"].is_null(), "nobody has looked inside");
    assert_eq!(readers(&mount), "", "no reader is started for it");
    let files = mount.disk("vda").0.join("snapshots/before/files/3");
    assert_eq!(names(&files), ["lost+found"]);
    assert_eq!(point.json()["filesystems"][2]["log"], "clean");
    let can = mount.json("vm.json")["guest_filesystems"].to_string();
    assert!(can.contains("\"ext4\"") && !can.contains("LUKS"), "{can}");

    sh!("kill -STOP {}", machine.pid());
    let asked = Instant::now();
    let said = mount.disk("vda").snapshot("after").json();
    let took = asked.elapsed();
    sh!("kill -CONT {}", machine.pid());
    assert!(took < wait::PATIENCE, "{took:?}");
    assert_eq!(said["name"], "after");
    wait::until_true("it is known afterwards", || {
        mount.disk("vda").snapshot("after").json()["filesystems"].is_array()
    });
    mount
        .disk("vda")
        .snapshot("before")
        .delete()
        .expect("nothing that was looked at keeps it");
    assert_eq!(mount.wait_idle(), "done\n");
}

over_attachments!(filesystems_in_point_json => point_json_names_the_filesystems);

#[test]
fn partitions_are_files_with_the_bytes_of_the_disk() {
    let scratch = Scratch::new("inside-partitions");
    let image = partitioned(&scratch);
    let machine = Machine::start(
        &scratch,
        "vm",
        Attachment::Blockdev,
        &[Disk::qcow2("vda", &image)],
    );
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    wait::until_true("the disk is in the mount", || mount.disk("vda").0.is_dir());
    mount.disk("vda").snapshot("before").make().expect("mkdir");
    let point = mount.disk("vda").0.join("snapshots/before");
    assert_eq!(
        names(&point.join("partitions")),
        ["1.raw", "2.raw", "3.raw", "4.raw"]
    );
    let expected = scratch.file("expected.raw");
    oracle::convert(&scratch.dir("images").join("web1.before.qcow2"), &expected);
    let places = [(1, 1, 8), (2, 9, 4), (3, 13, 16), (4, 29, 20)];
    for (number, start, length) in places {
        let file = point.join(format!("partitions/{number}.raw"));
        let found = file.metadata().expect("it is there");
        assert_eq!(found.len(), length << 20);
        sh!(
            "dd if={0} bs=1M skip={start} count={length} status=none | cmp {1} -",
            expected.display(),
            file.display()
        );
        let copy = scratch.file("copy.raw");
        sh!(
            "cp --sparse=auto {} {1}; cmp {0} {1}",
            file.display(),
            copy.display()
        );
        // The filesystem that is copied to may need a little more for the pieces.
        let room = found.blocks() * 512 + (1 << 20);
        assert!(oracle::allocated(&copy) <= room, "holes of {number}");
        std::fs::remove_file(copy).expect("our own");
    }
    let first = point
        .join("partitions/1.raw")
        .metadata()
        .expect("it is there");
    assert_eq!(first.blocks() * 512, 3 << 20, "what is allocated of it");
    let (a, b) = (point.join("partitions/3.raw"), point.join("disk.raw"));
    assert_ne!(
        a.metadata().expect("a").ino(),
        b.metadata().expect("b").ino()
    );
    sh!("e2fsck -fn {} >&2", a.display());
    let odd = "dd bs=70000 skip=3 status=none count=1";
    sh!(
        "test \"$({odd} <{0} | sha1sum)\" = \"$(dd if={1} bs=1M skip=13 status=none | {odd} iflag=fullblock | sha1sum)\"",
        a.display(),
        expected.display()
    );
}

#[test]
fn what_is_no_filesystem_says_why() {
    let scratch = Scratch::new("inside-notes");
    let image = partitioned(&scratch);
    // The image that nobody runs is a point once it has an overlay.
    let overlay = scratch.dir("images").join("top.qcow2");
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F qcow2 {}",
        image.display(),
        overlay.display()
    );
    let mount = Mounted::new(&scratch, &[&overlay], &["-o", "ro"]);
    let point = mount.path().join("disks/top/layers/0-web1");
    let files = point.join("files");
    let luks = std::fs::read_to_string(files.join("4.txt")).expect("a note");
    assert!(
        luks.contains("encrypted") && luks.contains("partitions/4.raw"),
        "{luks}"
    );
    let unknown = std::fs::read_to_string(files.join("1.txt")).expect("a note");
    assert!(unknown.contains("called 'boot'"), "{unknown}");
}

/// Nothing of that is opened as long as nobody looks, and looking keeps nobody from a merge.
#[test]
fn a_look_inside_does_not_keep_a_point() {
    let mut bench = Bench::new("inside-merge", Attachment::Drive);
    bench.seal("a");
    bench.write(10);
    let point = bench.disk().0.join("snapshots/a");
    assert_eq!(names(&point.join("partitions")), ["0.raw"]);
    sh!("cmp {0}/disk.raw {0}/partitions/0.raw", point.display());
    let file = std::fs::File::open(point.join("partitions/0.raw")).expect("it opens");
    let busy = std::fs::remove_dir(&point).expect_err("it is read");
    assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
    drop(file);
    wait::until_true("the file is closed", || std::fs::remove_dir(&point).is_ok());
    bench.mount.wait_idle();
}

/// Who sweeps what is inside a point is refused the point itself.
#[test]
fn a_recursive_delete_does_not_get_past_the_inside() {
    let mut bench = Bench::new("inside-sweep", Attachment::StorageDaemon);
    bench.seal("a");
    let point = bench.disk().0.join("snapshots/a");
    sh!(
        "find {} -mindepth 1 -delete 2>/dev/null || true",
        point.display()
    );
    sh!("rm -rf {} 2>/dev/null || true", point.display());
    assert_eq!(names(&point.join("partitions")), ["0.raw"]);
}
