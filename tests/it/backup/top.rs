//! `mkdir backups/top/NAME`: what the active layer holds, on a copy of the layer below it, beside a writer that never stops.

use std::fs;
use std::path::PathBuf;

use qmpfs_tests::bench::Shelf;
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::text;
use qmpfs_tests::{oracle, sh, wait};
use serde_json::Value;

use super::{SLOW, assert_nothing_left, assert_stands_on, begin, why_full};

/// It holds the active layer alone, and stands on a full backup.
fn assert_top_on(point: &Value, copy: &str) {
    assert_eq!(point["copied"], "top", "{point}");
    assert_eq!(point["previous"], copy, "{point}");
    assert_eq!(point["why_full"], Value::Null, "{point}");
}

/// A shelf whose disk stands on one layer, and has written since.
fn sealed(name: &str, attachment: Attachment, options: &[&str]) -> Shelf {
    let mut shelf = Shelf::with_options(name, attachment, options);
    shelf.bench.write(20);
    shelf.bench.seal("sunday");
    shelf.bench.write(10);
    shelf
}

over_attachments! {
    /// What the disk stands on is copied once, under the name of its point, and stood on until it is another one.
    it_stands_on_a_copy_of_what_the_disk_stands_on => |name, attachment| {
        let mut shelf = Shelf::new(name, attachment);
        let alone = shelf.keep("top", "alone");
        assert!(why_full(&alone).contains("stands on no other"), "{alone}");
        shelf.bench.write(20);
        shelf.bench.seal("sunday");
        shelf.bench.write(10);
        let monday = shelf.keep("top", "monday");
        assert_top_on(&monday, "sunday");
        let copy = shelf.backup("full", "sunday").json();
        let point = shelf.bench.point("sunday").json();
        for known in ["time", "consistency", "virtual_size"] {
            assert_eq!(copy[known], point[known], "{known}");
        }
        assert_eq!(copy["copied"], "full");
        // the copy is used again, also after a restart; what was written since a backup is known as of any other
        assert_top_on(&shelf.keep("top", "tuesday"), "sunday");
        assert_stands_on(&shelf.keep("incremental", "evening"), "tuesday");
        shelf.bench.restart();
        assert_top_on(&shelf.keep("top", "wednesday"), "sunday");
        // no other one stands on it: it goes by itself
        shelf.backup("top", "monday").delete_when_closed();
        shelf.forget("monday");
        shelf.verify();
        // another layer, and the first one again when that is merged
        shelf.bench.seal("next");
        shelf.bench.write(10);
        assert_top_on(&shelf.keep("top", "friday"), "next");
        shelf.bench.remove("next");
        shelf.bench.write(10);
        let saturday = shelf.keep("top", "saturday");
        assert_eq!(saturday["copied"], "top", "{saturday}");
        shelf.read_from_a_copy();
        // what several stand on is merged into each
        shelf.backup("full", "sunday").delete_when_closed();
        shelf.bench.disk().wait().unwrap_or_else(|e| panic!("{e}\n{}", shelf.bench.mount.text("log")));
        shelf.forget("sunday");
        shelf.verify();
        shelf.bench.finish();
    }
}

/// The second job has begun.
#[track_caller]
fn wait_for_the_copy_below(shelf: &Shelf) {
    wait::until_true("what it stands on is copied", || {
        shelf.bench.mount.text("log").contains("as the full backup")
    });
    assert!(shelf.backup("top", "one").exists(), "its job is shown");
    assert_eq!(shelf.bench.disk().list("jobs").len(), 1);
    assert_eq!(
        text(&shelf.backup("top", "one").0.join("state")),
        "running\n"
    );
}

/// Begins one, and waits until its own file is complete.
fn begin_below(shelf: &mut Shelf) {
    begin(shelf, "top", "one");
    wait_for_the_copy_below(shelf);
}

over_attachments! {
    /// qmpfs dies in either of its two jobs: the next mount takes it up.
    qmpfs_killed_in_either_job => |name, attachment| {
        let mut shelf = sealed(name, attachment, SLOW);
        let one = shelf.keep_while("top", "one", |shelf| {
            shelf.bench.mount.kill9();
            shelf.bench.mount.mount_again();
            shelf.bench.wait_for_disk();
            wait_for_the_copy_below(shelf);
            shelf.bench.mount.kill9();
            assert!(!shelf.file("sunday").exists() && !shelf.file("one").exists());
            shelf.bench.mount.mount_again();
            shelf.bench.wait_for_disk();
            shelf.bench.machine.limit_jobs(0);
        });
        assert_top_on(&one, "sunday");
        shelf.bench.finish();
    }
}

over_attachments! {
    /// Taken back while what it stands on is copied, or QEMU dies then: nothing is left of either.
    taken_back_in_its_second_job => |name, attachment| {
        let mut shelf = sealed(name, attachment, SLOW);
        begin_below(&mut shelf);
        shelf.backup("top", "one").delete().expect("rmdir of a running one");
        shelf.bench.disk().wait().expect("taken back is not failed");
        assert_nothing_left(&shelf);
        begin_below(&mut shelf);
        fs::remove_dir(shelf.bench.disk().only_job()).expect("rmdir jobs/ID");
        shelf.bench.disk().wait().expect("cancelled is not failed");
        assert_nothing_left(&shelf);
        begin_below(&mut shelf);
        shelf.bench.flush();
        shelf.bench.writer().expect_the_end();
        shelf.bench.boot_after_a_fall(None);
        shelf.bench.wait_for_disk();
        wait::until_true("nothing half-made is left", || names(&shelf.place()).is_empty());
        shelf.bench.verify();
        shelf.bench.finish();
    }
}

/// The disk of a VM that is off, 16 MiB on a template of 8 MiB, with clusters of other sizes.
fn on_a_template(name: &str, below: &str, above: &str) -> (Scratch, PathBuf, Mounted) {
    let scratch = Scratch::new(name);
    let (image, template) = (scratch.file("vda.qcow2"), scratch.file("template.qcow2"));
    sh!(
        "qemu-img create -q -f qcow2 -o cluster_size={below} {template} 8M
        qemu-io -f qcow2 -c 'write -P 7 0 8M' {template} >/dev/null
        qemu-img create -q -f qcow2 -o {above} -b {template} -F qcow2 {image} 16M
        qemu-io -f qcow2 -c 'write -P 8 1000k 3k' -c 'write -z 2M 70k' -c 'discard 3M 1M' -c 'write -P 9 7M 2M' {image} >/dev/null",
        template = template.display(),
        image = image.display()
    );
    let dir = scratch.dir("backups").display().to_string();
    let options = ["--backup-dir", &dir, "-o", "name=web1"];
    let mount = Mounted::new(&scratch, &[&image], &options);
    (scratch, template, mount)
}

/// Makes one of what the disk holds. Gives point.json.
fn make(scratch: &Scratch, mount: &Mounted, name: &str) -> Value {
    let point = mount.disk("vda").backup("top", name);
    let made = point.make();
    made.unwrap_or_else(|e| panic!("mkdir {name}: {e}\n{}", mount.text("log")));
    let end = mount.disk("vda").wait();
    end.unwrap_or_else(|e| panic!("{name}: {e}\n{}", mount.text("log")));
    let (read, expected) = (scratch.file("read.raw"), scratch.file("expected.raw"));
    oracle::convert(
        &scratch.file(&format!("backups/web1/vda/{name}.qcow2")),
        &read,
    );
    oracle::convert(&scratch.file("vda.qcow2"), &expected);
    oracle::assert_same(&read, &expected);
    oracle::assert_same(&point.disk_raw(), &expected);
    point.json()
}

/// By its file's name, once; what is taken is not taken again; one that somebody has written to is another one.
#[test]
fn a_template_is_copied_once() {
    let (scratch, template, mut mount) = on_a_template("top-template", "64k", "cluster_size=64k");
    assert_top_on(&make(&scratch, &mount, "one"), "template");
    let copy = mount.disk("vda").backup("full", "template");
    assert_eq!(
        copy.json()["consistency"],
        "unknown",
        "nobody wrote that down"
    );
    assert_eq!(copy.json()["virtual_size"], 8 << 20);
    assert_top_on(&make(&scratch, &mount, "two"), "template");
    let small = oracle::allocated(&scratch.file("backups/web1/vda/two.qcow2"));
    assert!(small < 4 << 20, "{small}");
    let prune = concat!(env!("CARGO_MANIFEST_DIR"), "/../mountscripts/prune");
    let plan = sh!("{prune} --daily 1 {} 2>&1", mount.disk("vda").0.display());
    for line in ["/top/two newest", "/full/template below", "/top/one -"] {
        assert!(plan.contains(line), "{line}: {plan}");
    }
    mount.unmount();
    sh!(
        "qemu-io -f qcow2 -c 'write -P 5 4M 1M' {} >/dev/null",
        template.display()
    );
    mount.mount_again();
    assert_top_on(&make(&scratch, &mount, "three"), "template-2");
    // the same of one that lies below a point
    mount.disk("vda").snapshot("sealed").make().expect("mkdir");
    assert_top_on(&make(&scratch, &mount, "four"), "sealed");
    assert_top_on(&make(&scratch, &mount, "five"), "sealed");
    mount.unmount();
    sh!(
        "qemu-io -f qcow2 -c 'write -P 6 6M 1M' {} >/dev/null",
        template.display()
    );
    mount.mount_again();
    assert_top_on(&make(&scratch, &mount, "six"), "sealed-2");
    mount.disk("vda").snapshot("sealed").delete_when_closed();
    mount.disk("vda").wait().expect("a merge");
    assert_top_on(&make(&scratch, &mount, "seven"), "template-3");
    // somebody has had his hands on the copy
    sh!(
        "touch {}",
        scratch.file("backups/web1/vda/template-3.qcow2").display()
    );
    assert_top_on(&make(&scratch, &mount, "template-4"), "template-5");
    mount.unmount();
}

/// Clusters larger and smaller than those below, and subclusters; the disk is longer than what it stands on.
#[test]
fn clusters_of_other_sizes() {
    for (below, above) in [
        ("2M", "cluster_size=4k"),
        ("4k", "cluster_size=2M"),
        ("64k", "cluster_size=64k,extended_l2=on"),
        ("4k", "cluster_size=1M,extended_l2=on"),
    ] {
        let (scratch, _, mut mount) = on_a_template("top-clusters", below, above);
        assert_top_on(&make(&scratch, &mount, "one"), "template");
        mount.unmount();
    }
}
