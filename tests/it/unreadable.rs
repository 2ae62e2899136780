//! Files beside a disk, and disks, that qmpfs may not read: they keep nothing else from it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::program;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{DiskDir, text};
use qmpfs_tests::{oracle, sh, wait};
use serde_json::json;

/// A mount by a root who may not read what is another user's alone.
struct Mount(PathBuf);

impl Mount {
    fn new(scratch: &Scratch, machine: &Machine) -> Self {
        let mount = scratch.dir("mnt");
        sh!(
            "setpriv --bounding-set=-dac_override,-dac_read_search {} mount {} {}",
            program().display(),
            machine.qmpfs_socket().display(),
            mount.display()
        );
        Mount(mount)
    }

    fn disk(&self) -> DiskDir {
        DiskDir(self.0.join("disks/vda"))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        sh::attempt(&format!(
            "{} umount {1} || umount -l {1}",
            program().display(),
            self.0.display()
        ));
    }
}

fn keep_for_another(file: &Path) {
    chown(file, Some(65534), Some(65534)).expect("a test of root's");
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("his alone");
}

/// The names that a snapshot of `active` has made when it is cut short, and its mark: the guest stands still for it.
fn cut_short(active: &Path) {
    let (hidden, sealed) = (
        active.with_file_name(".web1.qcow2.0123456789ab"),
        active.with_file_name("web1.one.qcow2"),
    );
    fs::write(&hidden, b"").expect("a file");
    fs::hard_link(active, &sealed).expect("a name");
    let inode = sh!("stat -c %i {}", active.display());
    let mark = json!({"version": 1, "overlay": hidden, "sealed": sealed, "resume": true, "inode": inode.trim().parse::<u64>().expect("a number")});
    sh!(
        "setfattr -n user.qmpfs.seal -v '{mark}' {}",
        active.display()
    );
}

/// Who let a guest stand still for one disk lets it go on, whatever the others are.
#[test]
fn a_disk_that_may_not_be_read_does_not_keep_the_guest_stopped() {
    if !sh::is_root() {
        return;
    }
    let scratch = Scratch::new("unreadable-disk");
    let dir = scratch.dir("images");
    let (web1, other, raw) = (
        dir.join("web1.qcow2"),
        dir.join("db.qcow2"),
        dir.join("log.raw"),
    );
    oracle::create(&web1, 16 << 20);
    oracle::create(&other, 16 << 20);
    sh!("truncate -s 16M {}", raw.display());
    let disks = [
        Disk::qcow2("vda", &web1),
        Disk::qcow2("vdb", &other),
        Disk::raw("vdc", &raw),
    ];
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    keep_for_another(&other);
    keep_for_another(&raw);
    machine.qmp.run("stop", json!({}));
    cut_short(&web1);
    let mount = Mount::new(&scratch, &machine);
    wait::until_true("the guest goes on", || {
        machine.qmp.run("query-status", json!({}))["running"] == true
    });
    let log = text(&mount.0.join("log"));
    assert!(log.contains("the VM was left stopped"), "{log}");
    mount.disk().snapshot("one").make().expect("a snapshot");
}

/// It is somebody else's, and no reason to refuse anything.
#[test]
fn a_file_beside_a_disk_that_may_not_be_read_is_passed_over() {
    if !sh::is_root() {
        return;
    }
    let scratch = Scratch::new("unreadable-sibling");
    let web1 = scratch.dir("images").join("web1.qcow2");
    oracle::create(&web1, 16 << 20);
    let beside = web1.with_file_name("web1.old.qcow2");
    fs::write(&beside, b"somebody's").expect("a file");
    keep_for_another(&beside);
    let disks = [Disk::qcow2("vda", &web1)];
    let machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    cut_short(&web1);
    let mount = Mount::new(&scratch, &machine);
    let log = text(&mount.0.join("log"));
    assert!(log.contains("taking back an unfinished snapshot"), "{log}");
    assert!(log.contains("is passed over: "), "{log}");
    assert!(!log.contains("could not be settled"), "{log}");
    mount.disk().snapshot("one").make().expect("a snapshot");
    mount.disk().internal("one").make().expect("another one");
    assert_eq!(fs::read(&beside).expect("root reads it"), b"somebody's");
}
