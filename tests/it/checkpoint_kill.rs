//! kill -9 of a QEMU that saves a checkpoint, at moments from its first byte to after its last.

use std::fs;
use std::path::Path;

use libc::ENOTCONN;
use qmpfs_tests::bench::Bench;
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::tree::text;
use qmpfs_tests::{sh, wait};

use crate::checkpoint::{RAM, checkpoint, save, stopped_in_the_midst, what};

/// The disk boots what was written; the checkpoint that was there is whole, and `name` is, or is not called so.
#[track_caller]
fn assert_whole_or_none(bench: &mut Bench, name: &str) {
    bench.wait_for_disk();
    let mut there = Vec::new();
    wait::until_true("what is there is settled", || {
        there = names(&bench.mount.path().join("checkpoints"));
        there
            .iter()
            .all(|name| what(&bench.mount, name)["state"] == "saved")
    });
    assert!(there.contains(&"whole".to_owned()), "{there:?}");
    assert_eq!(what(&bench.mount, "whole")["loadable"], true);
    if there.iter().any(|there| there == name) {
        // QEMU names a snapshot in the image last of all
        let said = what(&bench.mount, name);
        assert_eq!(said["loadable"], true, "{said:#}");
        assert!(
            said["vm_state_size"].as_u64() > Some(RAM as u64),
            "{said:#}"
        );
        sh!(
            "qemu-img snapshot -U -l {} | grep -w {name}",
            bench.active().display()
        );
    }
    bench.verify();
}

#[test]
fn a_qemu_killed_while_it_saves_boots_what_was_written() {
    let mut bench = Bench::with_ram("checkpoint-qemu-killed", Attachment::Blockdev, RAM, &[]);
    save(&bench.mount, "whole");
    bench.writer().expect_the_end();
    let caller = stopped_in_the_midst(&bench, "half");
    bench.boot_after_a_fall(None);
    let answered = caller.join().expect("the caller");
    assert!(answered.is_ok() || answered.is_err_and(|e| e.raw_os_error() == Some(ENOTCONN)));
    wait::until_true("there is no half checkpoint", || {
        names(&bench.mount.path().join("checkpoints")) == ["whole"]
    });
    assert_whole_or_none(&mut bench, "half");
    save(&bench.mount, "after");
    bench.verify();
    bench.finish();
}

/// What QEMU has written since its start. (Its image does not grow each time: what a killed save took is free.)
fn written(bench: &Bench) -> u64 {
    let io = text(Path::new(&format!("/proc/{}/io", bench.machine.pid())));
    let bytes = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    bytes.expect("a count").parse().expect("a number")
}

/// When a quarter of the RAM is in the image, when a half is, when nearly all is.
#[test]
fn a_qemu_killed_at_moments_of_its_save_boots_what_was_written() {
    let mut bench = Bench::with_ram("checkpoint-moments", Attachment::Blockdev, RAM, &[]);
    save(&bench.mount, "whole");
    for eighths in [2, 4, 7] {
        let name = format!("half{eighths}");
        bench.writer().expect_the_end();
        let before = written(&bench);
        let path = checkpoint(&bench.mount, &name);
        let caller = std::thread::spawn(move || fs::create_dir(path));
        wait::until_true("so much is saved", || {
            written(&bench) - before >= RAM as u64 / 8 * eighths
        });
        bench.boot_after_a_fall(None);
        let answered = caller.join().expect("the caller");
        assert!(answered.is_ok() || answered.is_err_and(|e| e.raw_os_error() == Some(ENOTCONN)));
        assert_whole_or_none(&mut bench, &name);
    }
    save(&bench.mount, "after");
    bench.verify();
    bench.finish();
}
