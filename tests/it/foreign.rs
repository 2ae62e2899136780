//! Layers in formats that our own reader does not read: QEMU reads them, and every point shows all its bytes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use libc::EIO;
use qmpfs_tests::bench::{Bench, SIZE};
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::fill;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::assert_errno;
use qmpfs_tests::{oracle, sh, wait};

mod encrypted;
mod slices;

/// Behind what the bench writes: what the template holds.
const TEMPLATE: u64 = 8 << 20;
/// What it holds of that.
const HELD: usize = 3 << 20;

/// The bytes of a template, of which most are a hole.
fn content(scratch: &Scratch, size: u64) -> PathBuf {
    let raw = scratch.file("template.raw");
    let file = File::create(&raw).expect("a file");
    file.set_len(size).expect("a hole");
    let mut bytes = vec![0; HELD];
    fill(&mut bytes, 0, 77);
    file.write_all_at(&bytes, size - TEMPLATE + (1 << 20))
        .expect("room");
    raw
}

/// A template in some format, and its bytes.
fn template(scratch: &Scratch, format: &str, size: u64) -> (PathBuf, PathBuf) {
    let raw = content(scratch, size);
    let image = scratch.dir("templates").join(format!("debian.{format}"));
    let exactly = if format == "vpc" { "-o force_size" } else { "" };
    sh!(
        "qemu-img convert -f raw -O {format} {exactly} {} {}",
        raw.display(),
        image.display()
    );
    (image, raw)
}

fn overlay(image: &Path, on: &Path, format: &str) {
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F {format} {}",
        on.display(),
        image.display()
    );
}

/// The processes that the mount has started.
fn children(mount: &Mounted) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", mount.pid())).expect("it runs");
    let of_threads = threads
        .flatten()
        // a thread may end while we look
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    of_threads
        .flat_map(|all| {
            all.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The bytes of QEMU's that are locked in a file, by whomever.
fn locked(image: &Path) -> Vec<String> {
    let inode = format!(":{}", fs::metadata(image).expect("the image").ino());
    let locks = fs::read_to_string("/proc/locks").expect("the kernel's locks");
    locks
        .lines()
        .filter(|line| {
            line.split_whitespace()
                .nth(5)
                .is_some_and(|file| file.ends_with(&inode))
        })
        .map(|line| {
            line.split_whitespace()
                .skip(6)
                .collect::<Vec<_>>()
                .join("-")
        })
        .collect()
}

over_attachments!(
    /// A template that is vmdk, vdi or qed, and snapshots, merges and restarts above it.
    a_template_of_another_format => shown
);

fn shown(name: &str, attachment: Attachment) {
    let (format, options): (_, &[&str]) = match attachment {
        Attachment::Drive => ("vdi", &["-o", "merge=commit"]),
        Attachment::StorageDaemon => ("qed", &[]),
        _ => ("vmdk", &["-o", "merge=commit"]),
    };
    let scratch = Scratch::new(name);
    let dir = scratch.dir("images");
    let (base, raw) = template(&scratch, format, SIZE + TEMPLATE);
    overlay(&dir.join("web1.qcow2"), &base, format);
    let before = super::release::fingerprint(&base);
    let mut bench = Bench::on(scratch, dir, vec![base.clone()], attachment, options);

    let bottom = bench.disk().layer(0);
    oracle::assert_same(&bottom.disk_raw(), &raw);
    assert_eq!(bottom.json()["read_by"], "qemu");
    let there = fs::metadata(bottom.disk_raw()).expect("a view").blocks() * 512;
    assert!(
        (HELD as u64..2 * HELD as u64).contains(&there),
        "holes are holes: {there} bytes"
    );

    bench.seal("one");
    bench.write(20);
    bench.seal("two");
    bench.restart();
    bench.seal("three");
    // read by QEMU below, and by us above, all through the merges
    let reader = File::open(bottom.disk_raw()).expect("a reader");
    bench.remove("one");
    bench.remove("two");
    let mut held = vec![0; HELD];
    let mut expected = vec![0; HELD];
    fill(&mut expected, 0, 77);
    reader
        .read_exact_at(&mut held, SIZE + (1 << 20))
        .expect("the template can be read");
    assert_eq!(held, expected, "an open view shows the same bytes");
    drop(reader);
    bench.remove("three");
    oracle::assert_same(&bottom.disk_raw(), &raw);
    assert_eq!(
        super::release::fingerprint(&base),
        before,
        "nobody wrote the template"
    );
    bench.finish();
}

#[test]
fn every_format_of_a_vm_that_is_off() {
    for format in ["vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "parallels"] {
        let scratch = Scratch::new(&format!("foreign-off-{format}"));
        let (base, raw) = template(&scratch, format, TEMPLATE);
        let image = scratch.dir("images").join("web1.qcow2");
        overlay(&image, &base, format);
        sh!(
            "qemu-io -f qcow2 -c 'write -q -P 5 1M 64k' {}",
            image.display()
        );
        sh!("qemu-img snapshot -c inside {}", image.display());
        let inside = scratch.file("inside.raw");
        oracle::convert(&image, &inside);

        let mut mount = Mounted::new(&scratch, &[&image], &["-o", "ro"]);
        let disk = mount.disk("web1");
        assert_eq!(
            children(&mount).len(),
            0,
            "{format}: nothing is started before it is needed"
        );
        let bottom = disk.layer(0);
        let reader = File::open(bottom.disk_raw()).expect("a reader");
        assert_eq!(
            locked(&base),
            ["100-100"],
            "{format}: no lock but one that is shared"
        );
        oracle::assert_same(&bottom.disk_raw(), &raw);
        oracle::assert_same(&disk.internal("inside").disk_raw(), &inside);
        assert_eq!(disk.internal("inside").json()["read_by"], "qemu");
        drop(reader);
        wait::until_true("the daemon has ended", || children(&mount).is_empty());
        assert_eq!(locked(&base), [""; 0]);
        // and again
        oracle::assert_same(&bottom.disk_raw(), &raw);
        mount.unmount();
    }
}

#[test]
fn a_vm_that_is_off_has_its_verbs_over_a_template_of_another_format() {
    let scratch = Scratch::new("foreign-off-verbs");
    let (base, raw) = template(&scratch, "vmdk", TEMPLATE);
    let image = scratch.dir("images").join("web1.qcow2");
    overlay(&image, &base, "vmdk");
    let mut mount = Mounted::new(&scratch, &[&image], &["-o", "merge=commit"]);
    let disk = mount.disk("web1");
    disk.snapshot("before").make().expect("mkdir");
    disk.snapshot("after").make().expect("mkdir");
    oracle::assert_same(&disk.snapshot("before").disk_raw(), &raw);
    disk.snapshot("before").delete_when_closed();
    disk.wait().expect("the merge");
    oracle::assert_same(&disk.snapshot("after").disk_raw(), &raw);
    mount.unmount();
    oracle::check(&image);
}

#[test]
fn a_daemon_that_dies_costs_the_views_that_are_open() {
    let scratch = Scratch::new("foreign-daemon-dies");
    let (base, raw) = template(&scratch, "vmdk", TEMPLATE);
    let image = scratch.dir("images").join("web1.qcow2");
    overlay(&image, &base, "vmdk");
    let mount = Mounted::new(&scratch, &[&image], &["-o", "ro"]);
    let bottom = mount.disk("web1").layer(0).disk_raw();
    let reader = File::open(&bottom).expect("a reader");
    let daemon = children(&mount);
    assert_eq!(daemon.len(), 1, "{daemon:?}");
    sh!("kill -9 {}", daemon[0]);
    let mut bytes = vec![0; 4096];
    wait::until_true("the view says that it cannot be read", || {
        let read = reader.read_exact_at(&mut bytes, 2 << 20);
        read.is_err_and(|error| error.raw_os_error() == Some(EIO))
    });
    // whoever opens it now is served by another
    wait::until_true("it is seen to be gone", || {
        oracle::compare(&bottom, &raw).is_ok()
    });
    assert_ne!(children(&mount), daemon);
}

#[test]
fn a_qemu_that_is_gone_is_not_needed() {
    let scratch = Scratch::new("foreign-qemu-gone");
    let (base, raw) = template(&scratch, "vdi", TEMPLATE);
    let image = scratch.dir("images").join("web1.qcow2");
    overlay(&image, &base, "vdi");
    let disks = [Disk::qcow2("vda", &image)];
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let disk = mount.disk("vda");
    disk.snapshot("one").make().expect("mkdir");
    machine.kill9();
    oracle::assert_same(&disk.snapshot("one").disk_raw(), &raw);
    oracle::assert_same(&disk.layer(0).disk_raw(), &raw);
}

#[test]
fn no_name_in_a_header_is_followed() {
    let scratch = Scratch::new("foreign-names");
    let raw = content(&scratch, TEMPLATE);
    let dir = scratch.dir("templates");
    let (flat, on_another, qed) = (
        dir.join("flat.vmdk"),
        dir.join("on.vmdk"),
        dir.join("on.qed"),
    );
    sh!(
        "qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat {} {}",
        raw.display(),
        flat.display()
    );
    let (single, _) = template(&scratch, "vmdk", TEMPLATE);
    sh!(
        "qemu-img create -q -f vmdk -b {} -F vmdk {}",
        single.display(),
        on_another.display()
    );
    sh!(
        "qemu-img create -q -f qed -b {} -F raw {}",
        raw.display(),
        qed.display()
    );
    for (base, format, why) in [
        (&flat, "vmdk", "names other files"),
        (&on_another, "vmdk", "is not followed"),
        (&qed, "qed", "is not followed"),
    ] {
        let image = scratch.dir("images").join("web1.qcow2");
        let _ = fs::remove_file(&image);
        overlay(&image, base, format);
        for options in [&["-o", "ro"][..], &[]] {
            let (code, said) = Mounted::refused(&scratch, &[&image], options);
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains(why), "{}: {said}", base.display());
        }
    }
    // by its own name it is not taken for raw
    let (code, said) = Mounted::refused(&scratch, &[&single], &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("format=vmdk"), "{said}");
    let mount = Mounted::new(&scratch, &[&single], &["-o", "format=vmdk"]);
    assert_eq!(mount.disk("debian").json()["format"], "vmdk");
    let live = mount.disk("debian").live("now");
    live.make().expect("mkdir live");
    oracle::assert_same(&live.disk_raw(), &raw);
}
