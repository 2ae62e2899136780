//! `qmpfs mount DIR_OF_BACKUPS`: backups browsed without QEMU and without the VM.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libc::{EPERM, EROFS};
use qmpfs_tests::bench::Shelf;
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::mounted::{Mounted, program};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{DiskDir, assert_errno, json, text};
use qmpfs_tests::{oracle, sh, wait};

/// The disk of the tests in a mount of a directory.
pub(crate) fn disk_in(mount: &Path) -> DiskDir {
    DiskDir(mount.join("web1").join("disks").join("vda"))
}

/// A chain of three, and a copy of the directory.
fn a_copy(name: &str) -> (Shelf, PathBuf) {
    let mut shelf = Shelf::new(name, Attachment::StorageDaemon);
    shelf.keep("full", "one");
    shelf.bench.write(10);
    shelf.keep("incremental", "two");
    shelf.bench.write(10);
    shelf.keep("incremental", "three");
    let copy = shelf.bench.scratch().file("copied");
    shelf.copy_to(&copy);
    (shelf, copy)
}

#[test]
fn a_copy_is_browsed_without_the_vm() {
    let (mut shelf, copy) = a_copy("shelf");
    // a second VM, called like a file of the mount, and what is none of ours
    sh!(
        "mkdir {0}/log && cp -a {0}/web1/vda {0}/log/vdb && mkdir -p {0}/lost+found {0}/web1/empty",
        copy.display()
    );
    let scratch = Scratch::new("shelf-mount");
    let mut mount = Mounted::new(&scratch, &[&copy], &[]);
    assert_eq!(
        names(mount.path()),
        [
            "README.txt",
            "events",
            "log",
            "log.vm",
            "metrics",
            "wait",
            "web1"
        ]
    );
    assert_eq!(names(&mount.path().join("web1")), ["disks"]);
    assert_eq!(names(&mount.path().join("web1/disks")), ["vda"]);
    let disk = disk_in(mount.path());
    assert_eq!(names(&disk.0), ["backups", "jobs", "wait"]);
    shelf.assert_shown(&disk);
    shelf.assert_shown(&DiskDir(mount.path().join("log.vm/disks/vdb")));
    let point = disk.backup("incremental", "two").json();
    assert_eq!(
        (&point["disk"], &point["vm"]),
        (&"vda".into(), &"web1".into())
    );
    assert_eq!(point["previous"], "one", "{point}");
    assert!(mount.text("README.txt").contains("restore"));
    assert!(mount.text("metrics").ends_with("# EOF\n"));
    // nothing is made here
    for path in ["web1/disks/vda/backups/full/x", "web1/disks/vdz", "web2"] {
        assert_errno(fs::create_dir(mount.path().join(path)), &[EROFS]);
    }
    assert_errno(fs::remove_dir(mount.path().join("web1")), &[EPERM]);
    assert!(mount.text("log").contains("without their VM"));
    let output = Command::new(program())
        .arg("verify")
        .arg(disk.0.join("backups"))
        .output()
        .expect("qmpfs verify");
    assert!(output.status.success(), "{}", sh::said(&output));

    // what others put there is seen, and what is gone is gone
    for name in ["four.json", "four.qcow2"] {
        let from = copy.join("web1/vda").join(name.replace("four", "three"));
        fs::copy(&from, copy.join("web1/vda").join(name)).expect("a copy");
    }
    let manifest = copy.join("web1/vda/four.json");
    let told = text(&manifest).replace("\"name\": \"three\"", "\"name\": \"four\"");
    let id = json(&manifest)["id"].as_str().expect("an id").to_owned();
    fs::write(&manifest, told.replace(&id, "0123456789ab")).expect("a manifest");
    wait::until_true("a fourth is seen", || {
        disk.list("backups/incremental")
            .contains(&"four".to_owned())
    });
    oracle::assert_same(
        &disk.backup("incremental", "four").disk_raw(),
        &disk.backup("incremental", "three").disk_raw(),
    );
    disk.backup("incremental", "four").delete_when_closed();
    assert!(!manifest.exists());
    shelf.assert_shown(&disk);
    mount.unmount();
    shelf.verify();
    shelf.bench.finish();
}

#[test]
fn on_read_only_media_everything_is_read() {
    let (shelf, copy) = a_copy("shelf-ro");
    let media = shelf.bench.scratch().dir("media");
    let bind = format!(
        "mount --bind {0} {1} && mount -o remount,bind,ro {1}",
        copy.display(),
        media.display()
    );
    if !sh::attempt(&bind).status.success() {
        eprintln!("not allowed to mount read-only: nothing is tested");
        return;
    }
    let scratch = Scratch::new("shelf-ro-mount");
    let mut mount = Mounted::new(&scratch, &[&media], &[]);
    let disk = disk_in(mount.path());
    shelf.assert_shown(&disk);
    assert_errno(disk.backup("incremental", "three").delete(), &[EROFS]);
    shelf.assert_shown(&disk);
    mount.unmount();
    sh!("umount {}", media.display());
    shelf.bench.finish();
}

#[test]
fn another_user_browses_a_copy_of_his_own() {
    let (shelf, copy) = a_copy("shelf-user");
    let place = tempfile_for_nobody(&copy);
    let run = |line: &str| {
        sh::attempt(&format!(
            "cd / && setpriv --reuid=65534 --regid=65534 --clear-groups {line}"
        ))
    };
    let (here, mnt) = (place.join("backups"), place.join("mnt"));
    let bin = place.join("qmpfs");
    fs::copy(program(), &bin).expect("the program where he may run it");
    let mounted = run(&format!(
        "{} mount {} {}",
        bin.display(),
        here.display(),
        mnt.display()
    ));
    // where /dev/fuse is root's alone the files are all he has
    let may_mount = mounted.status.success();
    let path = match may_mount {
        true => mnt.join("web1/disks/vda/backups"),
        false => here.clone(),
    };
    let told = run(&format!("{} verify {}", bin.display(), path.display()));
    if may_mount {
        let ended = run(&format!("{} umount {}", bin.display(), mnt.display()));
        assert!(ended.status.success(), "{}", sh::said(&ended));
    } else {
        eprintln!("nobody may not mount here: {}", sh::said(&mounted));
    }
    let right = sh::said(&told).matches(": right, ").count();
    assert!(told.status.success() && right == 3, "{}", sh::said(&told));
    fs::remove_dir_all(&place).expect("what was made for him goes");
    shelf.bench.finish();
}

/// A directory that is his, with a copy of the backups.
fn tempfile_for_nobody(copy: &Path) -> PathBuf {
    let place = std::env::temp_dir().join(format!("qmpfs-nobody-{}", std::process::id()));
    sh!(
        "mkdir {0} {0}/mnt && cp -a {1} {0}/backups && chown -R 65534:65534 {0}",
        place.display(),
        copy.display()
    );
    fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).expect("his alone");
    place
}

#[test]
fn what_is_no_directory_of_backups_is_refused() {
    let scratch = Scratch::new("shelf-refused");
    let empty = scratch.dir("empty");
    let (code, said) = Mounted::refused(&scratch, &[&empty], &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no backups of qmpfs"), "{said}");
    let (code, said) = Mounted::refused(&scratch, &[&empty, &empty], &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("by itself"), "{said}");
}
