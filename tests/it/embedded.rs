//! Images of a VM that is switched off: the same verbs on the same tree, through qmpfs's own storage daemon.

use std::fs;
use std::path::{Path, PathBuf};

use libc::{EBUSY, EROFS};
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::assert_errno;
use qmpfs_tests::{oracle, sh, wait};

const SIZE: u64 = 16 << 20;

fn image(scratch: &Scratch, name: &str) -> PathBuf {
    let image = scratch.dir("images").join(name);
    oracle::create(&image, SIZE);
    write(&image, 1);
    image
}

fn write(image: &Path, pattern: u8) {
    sh!(
        "qemu-io -f qcow2 -c 'write -P {pattern} 1M 3M' {} >/dev/null",
        image.display()
    );
}

#[test]
fn a_switched_off_disk_has_the_same_verbs() {
    let scratch = Scratch::new("embedded-verbs");
    let image = image(&scratch, "web1.qcow2");
    let dir = scratch.dir("images");
    let expected = scratch.file("expected.raw");
    oracle::convert(&image, &expected);

    let mut mount = Mounted::new(&scratch, &[&image], &[]);
    let disk = mount.disk("web1");
    disk.snapshot("before").make().expect("mkdir");
    disk.internal("inside").make().expect("mkdir internal");
    oracle::assert_same(&disk.snapshot("before").disk_raw(), &expected);
    oracle::assert_same(&disk.internal("inside").disk_raw(), &expected);
    mount.unmount();
    assert_eq!(
        names(&dir),
        ["web1.before.qcow2", "web1.qcow2"],
        "no alias stays when nobody has it open"
    );

    write(&image, 2); // the VM ran and changed its disk
    mount.mount_again();
    assert_eq!(disk.list("snapshots"), ["before"]);
    oracle::assert_same(&disk.snapshot("before").disk_raw(), &expected);
    oracle::assert_same(&disk.internal("inside").disk_raw(), &expected);
    disk.internal("inside").delete().expect("rmdir internal");
    disk.snapshot("before").delete().expect("rmdir");
    disk.wait()
        .unwrap_or_else(|e| panic!("the merge: {e}\n{}", mount.text("log")));
    mount.unmount();
    assert_eq!(names(&dir), ["web1.qcow2"]);
    oracle::check(&image);
    sh!(
        "qemu-io -r -f qcow2 -c 'read -P 2 1M 3M' {} | grep -v failed",
        image.display()
    );
    assert_eq!(oracle::chain(&image), std::slice::from_ref(&image));
}

#[test]
fn several_images_are_several_disks() {
    let scratch = Scratch::new("embedded-several");
    let (one, two) = (image(&scratch, "web1.qcow2"), image(&scratch, "data.qcow2"));
    let mount = Mounted::new(&scratch, &[&one, &two], &[]);
    assert_eq!(mount.disk("").list(""), ["data", "web1"]);
    mount.disk("data").snapshot("only").make().expect("mkdir");
    assert!(mount.disk("web1").list("snapshots").is_empty());
}

/// One that was rolled back past is a disk like any other where somebody mounts it: settling the one that it was part of
/// leaves its node alone.
#[test]
fn a_disk_that_is_called_like_a_layer_of_another_one() {
    let scratch = Scratch::new("embedded-namesake");
    let web1 = image(&scratch, "web1.qcow2");
    let mut mount = Mounted::new(&scratch, &[&web1], &[]);
    mount.disk("web1").snapshot("one").make().expect("mkdir");
    mount.disk("web1").roll_back("one").expect("a rollback");
    let points = mount.disk("web1").list("snapshots");
    let past = points
        .iter()
        .find(|name| name.starts_with("rolled-back"))
        .expect("it is kept");
    let past = web1.with_file_name(format!("web1.{past}.qcow2"));
    mount.unmount();
    let mut mount = Mounted::new(&scratch, &[&web1, &past], &[]);
    let disks = mount.disk("").list("");
    assert_eq!(disks.len(), 2, "{disks:?}");
    for disk in disks {
        let made = mount.disk(&disk).snapshot("new").make();
        made.unwrap_or_else(|e| panic!("{disk}: {e}\n{}", mount.text("log")));
    }
    mount.unmount();
}

#[test]
fn read_only_mounts_have_no_verbs_and_start_nothing() {
    let scratch = Scratch::new("embedded-ro");
    let image = image(&scratch, "web1.qcow2");
    sh!("qemu-img snapshot -c inside {}", image.display());
    let expected = scratch.file("expected.raw");
    oracle::convert(&image, &expected);
    let before = fs::read(&image).expect("the image");

    let mut mount = Mounted::new(&scratch, &[&image], &["-o", "ro"]);
    let disk = mount.disk("web1");
    oracle::assert_same(&disk.internal("inside").disk_raw(), &expected);
    assert_errno(disk.snapshot("new").make(), &[EROFS]);
    assert_errno(disk.internal("inside").delete(), &[EROFS]);
    let children = sh!("cat /proc/{0}/task/*/children", mount.pid());
    assert_eq!(children.trim(), "", "no daemon is started");
    mount.unmount();
    assert_eq!(
        fs::read(&image).expect("the image"),
        before,
        "not a byte of it changed"
    );
}

#[test]
fn an_image_in_use_by_a_vm_is_refused() {
    let scratch = Scratch::new("embedded-in-use");
    let image = image(&scratch, "web1.qcow2");
    let _machine = Machine::start(
        &scratch,
        "vm",
        Attachment::Blockdev,
        &[Disk::qcow2("vda", &image)],
    );
    let (code, said) = Mounted::refused(&scratch, &[&image], &[]);
    assert_ne!(code, Some(0));
    assert!(said.contains("web1.qcow2"), "it names the image: {said}");
    assert_eq!(names(&scratch.dir("images")), ["web1.qcow2"]);
}

#[test]
fn an_image_that_somebody_writes_is_not_read_either() {
    let scratch = Scratch::new("embedded-ro-in-use");
    let base = image(&scratch, "base.qcow2");
    let overlay = scratch.dir("images").join("web1.qcow2");
    oracle::create_overlay(&overlay, &base, SIZE);
    let program = qmpfs_tests::mounted::program().display();
    for (vm, written) in [("base-vm", &base), ("vm", &overlay)] {
        let machine = Machine::start(
            &scratch,
            vm,
            Attachment::StorageDaemon,
            &[Disk::qcow2("vda", written)],
        );
        let (code, said) = Mounted::refused(&scratch, &[&overlay], &["-o", "ro"]);
        assert_ne!(code, Some(0));
        for words in [
            "is in use",
            "mount the QMP socket of that VM",
            &*written.to_string_lossy(),
        ] {
            assert!(said.contains(words), "{words} is not in: {said}");
        }
        let output = sh::attempt(&format!("{program} cat {}", overlay.display()));
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(said.contains(sh::said(&output).trim()), "cat says the same");
        drop(machine);
    }
    let mount = Mounted::new(&scratch, &[&overlay], &["-o", "ro"]);
    assert_eq!(mount.disk("").list(""), ["web1"]);
}

/// Under `-o ro` nobody says that a VM is started on an image: it is looked at with every open.
#[test]
fn an_image_that_somebody_begins_to_write_is_read_no_more() {
    let scratch = Scratch::new("embedded-ro-later");
    let base = image(&scratch, "base.qcow2");
    sh!("qemu-img snapshot -c inside {}", base.display());
    let middle = scratch.dir("images").join("middle.qcow2");
    oracle::create_overlay(&middle, &base, SIZE);
    let overlay = scratch.dir("images").join("web1.qcow2");
    oracle::create_overlay(&overlay, &middle, SIZE);
    let mount = Mounted::new(&scratch, &[&overlay], &["-o", "ro"]);
    let disk = mount.disk("web1");
    let points = [disk.layer(0), disk.layer(1), disk.internal("inside")];
    let expected = scratch.file("expected.raw");
    for pattern in [7, 8] {
        let disks = [Disk::qcow2("vda", &base)];
        let mut machine = Machine::start(&scratch, "vm", Attachment::StorageDaemon, &disks);
        for point in &points {
            assert_errno(fs::File::open(point.disk_raw()).map(drop), &[EBUSY]);
        }
        let log = mount.text("log");
        assert!(log.contains("base.qcow2 is being written"), "{log}");
        machine.quit();
        write(&base, pattern);
        oracle::convert(&base, &expected);
        oracle::assert_same(&points[0].disk_raw(), &expected);
        oracle::assert_same(&points[1].disk_raw(), &expected);
        oracle::convert_internal(&base, "inside", &expected);
        oracle::assert_same(&points[2].disk_raw(), &expected);
    }
}

/// QEMU takes a relative backing name against the name it was given; our points lie beside the file.
#[test]
fn a_symlink_that_changes_what_a_relative_name_means_is_refused() {
    let scratch = Scratch::new("embedded-symlink");
    let (links, images) = (scratch.dir("links"), scratch.dir("images"));
    let linked = links.join("web1.qcow2");
    image(&scratch, "alone.qcow2");
    image(&scratch, "base.qcow2");
    sh!(
        "cp {0}/base.qcow2 {1}; qemu-io -f qcow2 -c 'write -P 9 0 1M' {1}/base.qcow2 >/dev/null",
        images.display(),
        links.display()
    );
    sh!(
        "cd {}; qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 web1.qcow2; ln -s ../images/web1.qcow2 {2}; ln -s ../images/alone.qcow2 {1}/alone.qcow2",
        images.display(),
        links.display(),
        linked.display()
    );
    let before = fs::read(&linked).expect("the image");
    let (code, said) = Mounted::refused(&scratch, &[&linked], &[]);
    assert_ne!(code, Some(0));
    assert!(said.contains("relative name"), "{said}");
    assert_eq!(fs::read(&linked).expect("the image"), before);
    assert_eq!(names(&images), ["alone.qcow2", "base.qcow2", "web1.qcow2"]);
    // Without a name in it, a link is as good as the file.
    let expected = scratch.file("expected.raw");
    oracle::convert(&images.join("alone.qcow2"), &expected);
    let mut mount = Mounted::new(&scratch, &[&links.join("alone.qcow2")], &[]);
    let disk = mount.disk("alone");
    disk.snapshot("before").make().expect("mkdir");
    oracle::assert_same(&disk.snapshot("before").disk_raw(), &expected);
    mount.unmount();
}

#[test]
fn a_killed_mount_leaves_an_image_that_can_be_mounted_again() {
    let scratch = Scratch::new("embedded-kill");
    let image = image(&scratch, "web1.qcow2");
    let mut mount = Mounted::new(&scratch, &[&image], &[]);
    let disk = mount.disk("web1");
    disk.snapshot("before").make().expect("mkdir");
    mount.kill9();
    // Its storage daemon must not outlive it: it holds the image's lock.
    wait::until_true("the image is free", || {
        sh::attempt(&format!("qemu-img check -q -f qcow2 {}", image.display()))
            .status
            .success()
    });
    mount.mount_again();
    assert_eq!(disk.list("snapshots"), ["before"]);
    disk.snapshot("before").delete().expect("rmdir");
    disk.wait().expect("the merge");
    mount.unmount();
    assert_eq!(names(&scratch.dir("images")), ["web1.qcow2"]);
    oracle::check(&image);
}

/// Its storage daemon ends with it, but not in the same moment: who mounts again at once is not told of another VM.
#[test]
fn a_killed_mount_is_mounted_again_at_once() {
    let scratch = Scratch::new("embedded-at-once");
    let image = image(&scratch, "web1.qcow2");
    let mut mount = Mounted::new(&scratch, &[&image], &[]);
    for round in 0..5 {
        let point = mount.disk("web1").snapshot(&format!("p{round}"));
        point.make().expect("mkdir");
        mount.kill9();
        mount.mount_again();
        assert!(point.exists(), "{round}");
    }
    mount.unmount();
    oracle::check_after_a_fall(&image);
}
