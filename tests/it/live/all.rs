//! `mkdir live/NAME` at the top of the mount: all disks at one instant, beside a writer that would tell two apart.

use std::fs::{self, File};

use libc::{EBUSY, EEXIST};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::several::{RAW, SEALED, Several, reached};
use qmpfs_tests::tree::{Point, assert_errno};
use qmpfs_tests::{sh, wait};
use serde_json::json;

fn rig(name: &str, attachment: Attachment) -> Several {
    let scratch = Scratch::new(name);
    let dirs = ["one", "two", "three"].map(|dir| scratch.dir(dir));
    let server = format!("nbd_server={}", scratch.socket("vm.nbd").display());
    Several::on(scratch, dirs, attachment, &["-o", &server])
}

fn of_all(several: &Several, name: &str) -> Point {
    Point(several.mount.path().join("live").join(name))
}

over_attachments! {
    one_instant_of_all_disks => |name, attachment| {
        let mut several = rig(name, attachment);
        let names = ["a", "b", "c"];
        for name in names {
            several.writer().progress(3);
            let before = several.writer().done();
            let made = of_all(&several, name).make();
            made.unwrap_or_else(|e| panic!("{e}\n{}", several.mount.text("log")));
            let after = several.writer().done() + 1;
            several.writer().progress(5);
            let found = SEALED.map(|(disk, _)| {
                let copy = several.scratch().file("copy.raw");
                let view = of_all(&several, name).0.join(disk).join("disk.raw");
                sh!("cp --sparse=always {} {}", view.display(), copy.display());
                let found = reached(&copy);
                fs::remove_file(&copy).expect("the copy goes");
                found
            });
            assert!(found[0] == found[1] || found[0] == found[1] + 1, "two instants: {found:?}");
            assert!(found[1] >= before && found[0] <= after, "{found:?}, made between {before} and {after}");
        }
        let json = of_all(&several, "b").json();
        assert_eq!(json["disks"], json!([SEALED[0].0, SEALED[1].0, RAW]));
        assert_eq!(json["complete"], true);
        let member = several.mount.disk("vdb").live("b");
        assert_eq!(member.json()["same_instant"], json["disks"]);
        assert_errno(of_all(&several, "b").make(), &[EEXIST]);
        assert_errno(member.make(), &[EEXIST]);
        assert_errno(several.group("s").make(), &[EBUSY]);

        // nothing of it goes while one is read
        let reader = File::open(member.disk_raw()).expect("a reader");
        assert_errno(of_all(&several, "b").delete(), &[EBUSY]);
        assert_eq!(of_all(&several, "b").json()["complete"], true);
        drop(reader);
        several.mount.disk(RAW).live("a").delete_when_closed();
        assert_eq!(of_all(&several, "a").json()["gone"], json!([RAW]));
        for name in names {
            of_all(&several, name).delete_when_closed();
        }
        for (disk, _) in SEALED {
            assert!(several.mount.disk(disk).list("live").is_empty());
        }
        several.seal("s");
        assert!(of_all(&several, "last").make().is_ok(), "{}", several.mount.text("log"));
        several.mount.unmount();
        crate::live::assert_no_trace(&mut several.machine);
        several.mount.mount_again();
        several.wait_for_disks();
        several.finish();
    }
}

#[test]
fn of_two_at_once_one_is_made() {
    let several = rig("live-race", Attachment::StorageDaemon);
    let [one, all] = [several.mount.disk("vda").live("x"), of_all(&several, "x")];
    for round in 0..8 {
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| one.make());
            let other = if round % 2 == 0 { &one } else { &all };
            let second = scope.spawn(|| other.make());
            (
                first.join().expect("no panic"),
                second.join().expect("no panic"),
            )
        });
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
        assert_errno(first.and(second), &[EEXIST]);
        let made = if all.exists() { &all } else { &one };
        made.delete_when_closed();
        wait::until_true("nothing is left", || {
            several.mount.disk("vda").list("live").is_empty()
        });
    }
    several.finish();
}
