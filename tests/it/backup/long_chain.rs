//! A chain of twenty incremental backups beside a writer that never stops, with everything that happens in twenty days:
//! qmpfs killed, the VM started again, snapshots that come and go, instants removed in the middle, power cuts. Every
//! element that is left restores to the byte: with qemu-img alone, from a copy elsewhere, and through a mount of it.

use qmpfs_tests::bench::Shelf;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{sh, wait};
use serde_json::{Value, json};

use super::{SLOW, assert_stands_on, begin, why_full};
use crate::backup_directory::disk_in;

/// How many there are to be on the full one.
const LENGTH: usize = 20;

fn name_of(number: usize) -> String {
    format!("i{number:02}")
}

/// Makes one at full speed; every word of what happens meanwhile meets it at work.
#[track_caller]
fn next(shelf: &mut Shelf, name: &str, meanwhile: impl FnOnce(&mut Shelf)) -> Value {
    shelf.bench.write(6);
    shelf.keep_alone("incremental", name, |shelf| {
        meanwhile(shelf);
        shelf.bench.machine.limit_jobs(0);
    })
}

/// qmpfs is killed and mounted again.
#[track_caller]
fn fall(shelf: &mut Shelf) {
    shelf.bench.mount.kill9();
    shelf.bench.mount.mount_again();
    shelf.bench.wait_for_disk();
}

/// The power is cut: QEMU and qmpfs are gone at once, and both are started again.
#[track_caller]
fn power_cut(shelf: &mut Shelf) {
    shelf.bench.flush();
    shelf.bench.writer().expect_the_end();
    shelf.bench.mount.kill9();
    shelf.bench.boot_after_a_fall(None);
    shelf.bench.mount.mount_again();
    shelf.bench.wait_for_disk();
}

/// `rmdir`, until the merge is at its end.
#[track_caller]
fn remove(shelf: &mut Shelf, name: &str) {
    let disk = shelf.bench.disk();
    disk.backup("incremental", name).delete_when_closed();
    shelf.forget(name);
    let end = disk.wait();
    assert!(end.is_ok(), "{end:?}\n{}", shelf.bench.mount.text("log"));
}

/// `rmdir` with qmpfs killed as soon as it is accepted: the next mount brings it to its end.
#[track_caller]
fn remove_and_fall(shelf: &mut Shelf, name: &str) {
    let point = shelf.bench.disk().backup("incremental", name);
    point.delete_when_closed();
    fall(shelf);
    wait::until_true("it is gone", || {
        let ended = shelf.bench.disk().wait();
        ended.is_ok() && !shelf.file(name).exists()
    });
    shelf.forget(name);
}

over_attachments! {
    twenty_of_them_restore_to_the_byte => |name, attachment| {
        let mut shelf = Shelf::with_options(name, attachment, SLOW);
        shelf.bench.write(100);
        shelf.keep_alone("full", "full", |shelf| {
            shelf.bench.machine.limit_jobs(0);
        });
        let mut below = "full".to_owned();
        for number in 1..=LENGTH {
            let name = name_of(number);
            let point = match number {
                4 | 15 => next(&mut shelf, &name, fall),
                _ => next(&mut shelf, &name, |_| {}),
            };
            assert_stands_on(&point, &below);
            below = name;
            match number {
                6 => shelf.bench.seal("one"),
                8 => remove(&mut shelf, &name_of(5)),
                10 => shelf.bench.restart(),
                12 => shelf.bench.remove("one"),
                14 => remove_and_fall(&mut shelf, &name_of(9)),
                16 => fall(&mut shelf),
                18 => remove(&mut shelf, &name_of(1)),
                _ => {}
            }
        }
        shelf.verify();
        // what is known of it lies in the image, and is not stored: a whole one, and the chain goes on on that
        power_cut(&mut shelf);
        let after = next(&mut shelf, "after", |_| {});
        let why = why_full(&after);
        assert!(why.contains("bitmap"), "{why}");
        assert_stands_on(&next(&mut shelf, "then", |_| {}), "after");
        // while one is being made: nothing of that one is left, and all the others are
        shelf.bench.write(6);
        begin(&shelf, "incremental", "cut");
        power_cut(&mut shelf);
        wait::until_true("nothing half-made is left", || {
            !shelf.names().iter().any(|name| name.contains("cut"))
        });
        why_full(&next(&mut shelf, "last", |_| {}));
        remove(&mut shelf, "after");
        remove_and_fall(&mut shelf, &name_of(17));
        shelf.verify();
        shelf.read_from_a_copy();
        in_another_place(&mut shelf);
        shelf.bench.finish();
    }
}

/// The directory is moved to where there is no VM: removals in the middle, a kill among them, and all the others are right.
#[track_caller]
fn in_another_place(shelf: &mut Shelf) {
    let scratch = Scratch::new("long-chain-moved");
    let moved = scratch.file("elsewhere");
    shelf.copy_to(&moved);
    let mut mount = Mounted::new(&scratch, &[&moved], &[]);
    let disk = disk_in(mount.path());
    shelf.assert_shown(&disk);
    let all = shelf.kept();
    for (number, name) in all.iter().enumerate() {
        if number % 3 == 2 && name.starts_with('i') {
            disk.backup("incremental", name).delete_when_closed();
            shelf.forget(name);
        }
        if number == all.len() / 2 {
            // in the middle of a queue: what only waited is there again, and is asked for once more
            mount.kill9();
            mount.mount_again();
            wait::until_true("what was begun has ended", || disk.wait().is_ok());
            for name in disk.list("backups/incremental") {
                if !shelf.kept().contains(&name) {
                    disk.backup("incremental", &name).delete_when_closed();
                }
            }
        }
    }
    let end = disk.wait();
    assert!(end.is_ok(), "{end:?}\n{}", mount.text("log"));
    shelf.assert_shown(&disk);
    let output = std::process::Command::new(qmpfs_tests::mounted::program())
        .arg("verify")
        .arg(disk.0.join("backups"))
        .output();
    let output = output.expect("qmpfs verify");
    assert!(output.status.success(), "{}", sh::said(&output));
    let right = String::from_utf8_lossy(&output.stdout).lines().count();
    assert_eq!(right, shelf.kept().len(), "{}", sh::said(&output));
    let point = disk.backup("incremental", "last").json();
    assert_eq!(
        (&point["copied"], &point["error"]),
        (&json!("full"), &json!(null))
    );
    mount.unmount();
    shelf.read_from(&moved);
}
