//! A real guest, working on its disk all the while: Debian's kernel, ext4, the guest agent.

use qmpfs_tests::guest::{Guest, fsck_after_crash, fsck_clean};
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{oracle, sh, wait};

#[test]
fn the_test_guest_itself_is_sound() {
    let scratch = Scratch::new("guest-itself");
    let dir = scratch.dir("images");
    let mut guest = Guest::boot(&scratch, &dir, Attachment::Blockdev);
    guest.rounds(4);
    guest.shut_down();
    oracle::check(guest.disk());
    fsck_clean(&scratch, guest.disk());
}

/// Takes two snapshots under load, deletes both, shuts down, boots again with the same command line.
fn snapshots_come_and_go_under(attachment: Attachment) {
    let scratch = Scratch::new("guest-load");
    let dir = scratch.dir("images");
    let mut guest = Guest::boot(&scratch, &dir, attachment);
    let template = oracle::chain(guest.disk())[1].clone();
    let template_before = sh!("sha256sum <{}", template.display());
    let mount = Mounted::new(&scratch, &[guest.machine.qmpfs_socket()], &[]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());

    guest.rounds(4);
    disk.snapshot("before").make().expect("mkdir before");
    guest.rounds(4);
    disk.snapshot("after").make().expect("mkdir after");
    guest.rounds(2);
    for name in ["before", "after"] {
        let expected = scratch.file(&format!("{name}.raw"));
        oracle::convert(&dir.join(format!("web1.{name}.qcow2")), &expected);
        oracle::assert_same(&disk.snapshot(name).disk_raw(), &expected);
        fsck_after_crash(&scratch, &disk.snapshot(name).disk_raw());
    }

    for name in ["before", "after"] {
        disk.snapshot(name).delete().expect("rmdir");
        guest.rounds(2);
        disk.wait()
            .unwrap_or_else(|e| panic!("the merge of {name} failed: {e}\n{}", mount.text("log")));
    }
    assert!(disk.list("snapshots").is_empty());
    guest.rounds(2);

    guest.shut_down();
    assert_eq!(
        oracle::chain(guest.disk()),
        [guest.disk().to_path_buf(), template.clone()]
    );
    oracle::check(guest.disk());
    fsck_clean(&scratch, guest.disk());

    guest.boot_again();
    guest.rounds(1);
    guest.shut_down();
    fsck_clean(&scratch, guest.disk());
    assert_eq!(
        sh!("sha256sum <{}", template.display()),
        template_before,
        "the template was not written"
    );
}

#[test]
fn snapshots_come_and_go_under_a_working_guest() {
    snapshots_come_and_go_under(Attachment::Blockdev);
}

#[test]
fn snapshots_come_and_go_under_a_working_guest_on_a_legacy_drive() {
    snapshots_come_and_go_under(Attachment::Drive);
}
