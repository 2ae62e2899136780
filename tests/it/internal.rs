//! `mkdir internal/NAME`: a snapshot inside the image, beside a writer that never stops.

use std::fs::File;

use libc::{EBUSY, EEXIST, ENOENT};
use qmpfs_tests::bench::{Bench, SIZE, WRITERS};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::tree::assert_errno;
use qmpfs_tests::{oracle, sh};

over_attachments! {
    /// Made, read, kept through writes, an external snapshot and a restart, deleted.
    internal_points_hold_their_instants => |name, attachment| {
        let mut bench = Bench::new(name, attachment);
        bench.write(30);
        for point in ["one", "two"] {
            let before = bench.writer().acknowledged();
            bench.writer().step(&format!("mkdir internal/{point}"));
            bench.disk().internal(point).make().expect("mkdir");
            let after = bench.writer().sent();
            let expected = expected(&bench, point);
            oracle::convert_internal(&bench.active(), point, &expected);
            before.assert_between(&after, &expected, WRITERS..SIZE);
            bench.write(30);
            bench.verify();
        }
        let json = bench.disk().internal("one").json();
        assert_eq!(json["kind"], "internal");
        assert_eq!(json["virtual_size"], SIZE);
        for point in ["one", "two"] {
            oracle::assert_same(&bench.disk().internal(point).disk_raw(), &expected(&bench, point));
        }
        assert_errno(bench.disk().internal("one").make(), &[EEXIST]);

        bench.restart();
        assert_eq!(bench.disk().list("internal"), ["one", "two"]);
        let reader = File::open(bench.disk().internal("one").disk_raw()).expect("a reader");
        assert_errno(bench.disk().internal("one").delete(), &[EBUSY]);
        oracle::assert_same(&bench.disk().internal("one").disk_raw(), &expected(&bench, "one"));
        drop(reader);
        bench.disk().internal("one").delete_when_closed();
        assert_errno(bench.disk().internal("one").delete(), &[ENOENT]);
        bench.verify();
        oracle::assert_same(&bench.disk().internal("two").disk_raw(), &expected(&bench, "two"));
        bench.disk().internal("two").delete().expect("rmdir");
        assert!(!sh!("qemu-img snapshot -U -l {}", bench.active().display()).contains("two"));
        bench.finish();
    }
}

#[test]
fn internal_and_external_points_live_side_by_side() {
    let mut bench = Bench::new("internal-external", Attachment::Blockdev);
    bench.disk().internal("inside").make().expect("mkdir");
    let expected = expected(&bench, "inside");
    oracle::convert_internal(&bench.active(), "inside", &expected);
    bench.seal("outside");
    // The image with the internal snapshot is a sealed layer now; the instant is the same.
    oracle::assert_same(&bench.disk().internal("inside").disk_raw(), &expected);
    bench.seal("later");
    oracle::assert_same(&bench.disk().internal("inside").disk_raw(), &expected);
    bench.finish();
}

fn expected(bench: &Bench, point: &str) -> std::path::PathBuf {
    bench.scratch().file(&format!("internal-{point}.expected"))
}
