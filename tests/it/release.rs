//! `rmdir layers/N` of a layer that qmpfs did not make: its bytes go up, its file stays as it is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use libc::{EBUSY, EPERM};
use qmpfs_tests::bench::{Bench, SIZE};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{assert_errno, text};
use qmpfs_tests::{oracle, sh, wait};

/// Behind what the bench writes: what the templates hold.
const TEMPLATES: u64 = 64 << 20;

/// Everything about a file that must not change.
pub(crate) type Fingerprint = (String, i64, i64, i64);

/// Takes it down.
pub(crate) fn fingerprint(path: &Path) -> Fingerprint {
    let metadata = fs::metadata(path).expect("it is there");
    (
        sh!("sha256sum {}", path.display()),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}

fn fill(image: &Path, format: &str, pattern: u8, at: u64) {
    sh!(
        "qemu-io -f {format} -c 'write -q -P {pattern} {at} {}' {}",
        TEMPLATES / 2,
        image.display()
    );
}

/// A disk on a template (`format`) and another image of somebody else on that.
fn on_templates(name: &str, attachment: Attachment, format: &str) -> (Bench, PathBuf, PathBuf) {
    let scratch = Scratch::new(name);
    let dir = scratch.dir("images");
    let base = scratch.dir("templates").join(format!("debian.{format}"));
    let custom = scratch.dir("templates").join("custom.qcow2");
    sh!(
        "qemu-img create -q -f {format} {} {}",
        base.display(),
        SIZE + TEMPLATES
    );
    fill(&base, format, 0x11, SIZE);
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F {format} {}",
        base.display(),
        custom.display()
    );
    fill(&custom, "qcow2", 0x22, SIZE + TEMPLATES / 4);
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F qcow2 {}",
        custom.display(),
        dir.join("web1.qcow2").display()
    );
    let below = vec![custom.clone(), base.clone()];
    let bench = Bench::on(scratch, dir, below, attachment, &[]);
    (bench, base, custom)
}

/// The layer whose name begins so.
pub(crate) fn layer(bench: &Bench, prefix: &str) -> PathBuf {
    // a listing may be a moment older than what was settled
    let name = wait::until(&format!("a layer {prefix}"), || {
        let mut names = bench.disk().list("layers").into_iter();
        names.find(|name| name.starts_with(prefix))
    });
    bench.disk().0.join("layers").join(name)
}

fn release(name: &str, attachment: Attachment, format: &str) {
    let (mut bench, base, custom) = on_templates(name, attachment, format);
    let before = (fingerprint(&base), fingerprint(&custom));
    bench.seal("one");
    bench.write(40);
    bench.seal("two");
    assert_errno(fs::remove_dir(layer(&bench, "0-debian")), &[EPERM]);

    let custom_layer = layer(&bench, "1-custom");
    let plan = text(&custom_layer.join("plan"));
    assert!(
        plan.contains("block-stream") && plan.contains("leaves the chain and stays as it is"),
        "{plan}"
    );
    let reader = fs::File::open(custom_layer.join("disk.raw")).expect("a reader");
    assert_errno(fs::remove_dir(&custom_layer), &[EBUSY]);
    drop(reader);
    wait::until_true("the view is closed", || {
        fs::remove_dir(&custom_layer).is_ok()
    });
    while !bench.disk().list("jobs").is_empty() {
        bench.write(1);
        bench.verify_points();
    }
    bench.disk().wait().expect("the merge");
    bench.released(&custom);
    bench.verify();
    let log = bench.mount.text("log");
    assert!(
        log.contains("custom.qcow2 is in its chain no more"),
        "{log}"
    );

    // a point of ours above it goes as ever, and the template as well
    bench.remove("one");
    let base_layer = layer(&bench, "0-debian");
    bench.machine.limit_jobs(0);
    fs::remove_dir(&base_layer).expect("rmdir flattens");
    bench.disk().wait().expect("the merge");
    bench.released(&base);
    bench.verify();
    assert_eq!(
        oracle::chain(&bench.active()),
        [bench.active(), bench.sealed("two")]
    );
    assert_eq!(
        (fingerprint(&base), fingerprint(&custom)),
        before,
        "untouched"
    );
    let nodes = bench
        .machine
        .qmp
        .run("query-named-block-nodes", serde_json::json!({"flat": true}));
    assert!(
        !nodes.to_string().contains("debian") && !nodes.to_string().contains("custom.qcow2"),
        "{nodes}"
    );
    bench.seal("three");
    bench.remove("two");
    bench.restart();
    bench.finish();
}

over_attachments!(of_templates => |name, attachment| release(name, attachment, "qcow2"));
over_attachments!(of_a_raw_template => |name, attachment| release(name, attachment, "raw"));

/// The base right below the active layer: the disk stands alone afterwards.
#[test]
fn a_template_below_the_active_layer() {
    let (mut bench, base, custom) = on_templates("release-active", Attachment::Blockdev, "qcow2");
    let before = (fingerprint(&base), fingerprint(&custom));
    for (prefix, file) in [("1-custom", &custom), ("0-debian", &base)] {
        fs::remove_dir(layer(&bench, prefix)).expect("rmdir");
        bench.disk().wait().expect("the merge");
        bench.released(file);
        bench.verify();
    }
    assert_eq!(oracle::chain(&bench.active()), [bench.active()]);
    assert_eq!(
        (fingerprint(&base), fingerprint(&custom)),
        before,
        "untouched"
    );
    bench.restart();
    bench.seal("one");
    bench.remove("one");
    bench.finish();
}

over_attachments! {
    /// The next mount finds the job at work and ends it, although nothing is written on the template.
    killed_meanwhile => |name, attachment| {
        let (mut bench, _, custom) = on_templates(name, attachment, "qcow2");
        let before = fingerprint(&custom);
        bench.seal("one");
        bench.limit_what_begins(4 << 10);
        fs::remove_dir(layer(&bench, "1-custom")).expect("rmdir");
        bench.mount.kill9();
        bench.mount.mount_again();
        wait::until_true("it is taken up again", || bench.disk().list("jobs").len() == 1);
        let job = bench.disk().only_job();
        fs::remove_dir(&job).expect("it can still be cancelled");
        bench.disk().wait().expect("nothing is at work");
        wait::until_true("the layer is back", || bench.disk().list("layers").len() == 3);
        bench.verify();
        fs::remove_dir(layer(&bench, "1-custom")).expect("rmdir, again");
        bench.mount.kill9();
        bench.machine.limit_jobs(0);
        bench.mount.mount_again();
        wait::until_true("it is out of the chain", || bench.disk().list("layers").len() == 2);
        bench.disk().wait().expect("nothing is at work");
        bench.released(&custom);
        bench.verify();
        assert_eq!(fingerprint(&custom), before, "untouched");
        assert_eq!(oracle::mark(&bench.sealed("one"), "merge"), None, "nothing is under way");
        bench.restart();
        bench.finish();
    }
}
