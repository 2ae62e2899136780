//! A real guest, working on its disk all the while: Debian's kernel, ext4, the guest agent.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use qmpfs_tests::agent::{Witness, freeze_status};
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

/// Whether the journal of the ext4 in a raw image has to be replayed before it can be used.
fn needs_recovery(raw: &Path) -> bool {
    sh!("dumpe2fs -h {} 2>&1", raw.display()).contains("needs_recovery")
}

fn rounds_on(console: &Path) -> usize {
    let said = std::fs::read(console).unwrap_or_default();
    String::from_utf8_lossy(&said).matches("ROUND").count()
}

/// Points taken with the real agent, under load: the guest is frozen for each, stands still as long, and goes on; its
/// filesystem is clean in each, as it is not after a power cut.
fn frozen_points_are_clean(attachment: Attachment) {
    /// In a guest that works without a pause some rounds would pass.
    const LOOK: Duration = Duration::from_secs(3);
    let scratch = Scratch::new("guest-frozen");
    let dir = scratch.dir("images");
    let mut guest = Guest::boot(&scratch, &dir, attachment);
    let (looks, rounds) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let console = guest.console().to_owned();
    let (look, passed) = (Arc::clone(&looks), Arc::clone(&rounds));
    let witness = Witness::new(&scratch, guest.agent(), move || {
        if look.fetch_add(1, Ordering::SeqCst) == 0 {
            let before = rounds_on(&console);
            std::thread::sleep(LOOK);
            passed.store(rounds_on(&console) - before, Ordering::SeqCst);
        }
        true
    });
    let option = format!("{},quiesce=require", witness.option());
    let mut mount = Mounted::new(&scratch, &[guest.machine.qmpfs_socket()], &["-o", &option]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    guest.rounds(2);
    let names: Vec<String> = (0..8).map(|number| format!("frozen{number}")).collect();
    let mut times = Vec::new();
    for name in &names {
        disk.snapshot(name)
            .make()
            .unwrap_or_else(|e| panic!("mkdir {name}: {e}\n{}", mount.text("log")));
        let said = disk.snapshot(name).json();
        assert_eq!(said["consistency"], "filesystem", "{said}");
        times.push(said["frozen_ms"].as_u64().expect("a number"));
        guest.rounds(1);
    }
    println!("frozen for {:?} ms ({attachment:?})", &times[1..]);
    assert_eq!(witness.statuses(), vec!["frozen"; names.len()]);
    // one may have been past its last write
    assert!(
        rounds.load(Ordering::SeqCst) <= 1,
        "the guest went on while it was frozen"
    );
    assert!(times[0] >= 3000, "{times:?}");
    for name in &names {
        let raw = disk.snapshot(name).disk_raw();
        assert!(!needs_recovery(&raw), "{name} needs its journal replayed");
        sh!("e2fsck -fn {}", raw.display());
    }
    disk.internal("inside").make().expect("mkdir internal");
    let inside = disk.internal("inside");
    assert_eq!(inside.json()["consistency"], "filesystem");
    assert!(!needs_recovery(&inside.disk_raw()));
    disk.internal("inside").delete().expect("rmdir internal");
    mount.unmount();
    assert_eq!(freeze_status(guest.agent()), "thawed");

    let plain = Scratch::new("guest-frozen-not");
    let crash = Mounted::new(&plain, &[guest.machine.qmpfs_socket()], &[]);
    let disk = crash.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    disk.snapshot("crash").make().expect("mkdir crash");
    assert_eq!(disk.snapshot("crash").json()["consistency"], "crash");
    assert!(needs_recovery(&disk.snapshot("crash").disk_raw()));
    fsck_after_crash(&plain, &disk.snapshot("crash").disk_raw());
    guest.rounds(2);
    guest.shut_down();
    fsck_clean(&scratch, guest.disk());
}

#[test]
fn points_taken_with_the_agent_need_no_journal() {
    frozen_points_are_clean(Attachment::Blockdev);
}

#[test]
fn points_taken_with_the_agent_on_a_legacy_drive_need_no_journal() {
    frozen_points_are_clean(Attachment::Drive);
}

#[test]
fn a_guest_left_frozen_by_kill_9_is_thawed_by_the_next_mount() {
    let scratch = Scratch::new("guest-killed");
    let dir = scratch.dir("images");
    let mut guest = Guest::boot(&scratch, &dir, Attachment::Blockdev);
    let victim = Arc::new(AtomicI32::new(0));
    let pid = Arc::clone(&victim);
    let witness = Witness::new(&scratch, guest.agent(), move || {
        match pid.swap(0, Ordering::SeqCst) {
            0 => true,
            pid => {
                // SAFETY: a plain system call on a process that this test started.
                assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "it runs");
                false
            }
        }
    });
    let option = format!("{},quiesce=require", witness.option());
    let mut mount = Mounted::new(&scratch, &[guest.machine.qmpfs_socket()], &["-o", &option]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    for (round, name) in ["first", "later"].iter().enumerate() {
        guest.rounds(1);
        victim.store(mount.pid().cast_signed(), Ordering::SeqCst);
        assert!(disk.snapshot(name).make().is_err(), "{name}");
        mount.kill9();
        assert_eq!(freeze_status(guest.agent()), "frozen", "{name}");
        mount.mount_again();
        assert_eq!(freeze_status(guest.agent()), "thawed", "{name}");
        assert!(
            mount.text("log").contains("it is thawed"),
            "{}",
            mount.text("log")
        );
        guest.rounds(2);
        assert!(disk.snapshot(name).exists());
        assert_eq!(disk.list("snapshots").len(), round + 1);
        // the files are as they were at the instant, which nobody could write down any more
        assert_eq!(disk.snapshot(name).json()["consistency"], "crash");
        sh!("e2fsck -fn {}", disk.snapshot(name).disk_raw().display());
    }
    guest.shut_down();
    fsck_clean(&scratch, guest.disk());
}
