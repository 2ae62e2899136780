//! `mkdir snapshots/NAME`: a point of the running disk, beside a writer that never stops.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, thread};

use libc::{EACCES, EBUSY, EEXIST, EOPNOTSUPP, EPERM, EROFS, ETIMEDOUT};
use qmpfs_tests::bench::{Bench, SIZE, WRITERS};
use qmpfs_tests::faults::{Immutable, SmallFilesystem, names};
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::{BLOCK, STEP};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::process::Process;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::qmp::Graph;
use qmpfs_tests::rewrite::{holding, rewriting};
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::steps::{Deed, FILES, Steps};
use qmpfs_tests::tree::{DiskDir, assert_errno, write_line};
use qmpfs_tests::{oracle, sh, wait};
use serde_json::json;

over_attachments! {
    /// Three points, a restart with the same command line, one more.
    points_hold_their_instants_and_the_vm_keeps_its_command_line => |name, attachment| {
        let mut bench = Bench::new(name, attachment);
        for point in ["one", "two", "three"] {
            bench.write(8);
            bench.seal(point);
        }
        bench.restart();
        bench.seal("four");
        bench.finish();
    }
}

#[test]
fn an_auto_read_only_disk_loses_nothing() {
    let mut bench = Bench::new("snapshot-aro", Attachment::BlockdevAutoReadOnly);
    for point in ["one", "two"] {
        bench.write(8);
        bench.seal(point);
    }
    bench.restart();
    bench.seal("three");
    bench.finish();
}

#[test]
fn a_paused_vm_stays_paused() {
    let mut bench = Bench::new("snapshot-paused", Attachment::Blockdev);
    bench.machine.qmp.run("stop", json!({}));
    bench.seal("first");
    bench.seal("second");
    assert_eq!(
        bench.machine.qmp.run("query-status", json!({}))["running"],
        false
    );
    bench.machine.qmp.run("cont", json!({}));
    bench.seal("third");
    assert_eq!(
        bench.machine.qmp.run("query-status", json!({}))["running"],
        true
    );
    bench.finish();
}

#[test]
fn new_files_have_the_owner_and_mode_of_the_old() {
    let mut bench = Bench::new("snapshot-owner", Attachment::StorageDaemon);
    if sh::is_root() {
        sh!("chown 1234:2345 {}", bench.active().display());
    }
    fs::set_permissions(bench.active(), PermissionsExt::from_mode(0o640)).expect("chmod");
    let before = bench.active().metadata().expect("the disk");
    bench.seal("one");
    for file in [bench.active(), bench.sealed("one")] {
        let after = file.metadata().expect("a layer");
        let seen = (after.uid(), after.gid(), after.mode());
        assert_eq!(
            seen,
            (before.uid(), before.gid(), before.mode()),
            "{}",
            file.display()
        );
    }
    bench.finish();
}

#[test]
fn a_file_that_stands_in_the_way_is_not_touched() {
    let mut bench = Bench::new("snapshot-taken", Attachment::StorageDaemon);
    let precious = bench.sealed("before");
    fs::write(&precious, "precious").expect("a file");
    assert_errno(bench.point("before").make(), &[EEXIST]);
    assert_eq!(
        fs::read_to_string(&precious).expect("still there"),
        "precious"
    );
    fs::remove_file(&precious).expect("our own file");
    bench.verify();
    bench.seal("before");
    bench.finish();
}

#[test]
fn an_unwritable_directory_is_told_and_nothing_is_left() {
    let mut bench = Bench::new("snapshot-unwritable", Attachment::Blockdev);
    let Some(immutable) = Immutable::new(bench.dir()) else {
        return;
    };
    assert_errno(bench.point("before").make(), &[EACCES, EPERM, EROFS]);
    drop(immutable);
    assert!(
        bench.mount.text("log").contains("cannot create"),
        "the log says what failed: {}",
        bench.mount.text("log")
    );
    assert_eq!(names(bench.dir()), ["web1.qcow2"]);
    assert_eq!(
        oracle::sealed_mark(&bench.active()),
        None,
        "no mark is left"
    );
    assert_eq!(
        bench.machine.qmp.run("query-status", json!({}))["running"],
        true
    );
    bench.seal("before");
    bench.finish();
}

#[test]
fn of_two_at_once_one_is_made() {
    let mut bench = Bench::new("snapshot-race", Attachment::StorageDaemon);
    let point = bench.point("before");
    let barrier = Barrier::new(2);
    let made = thread::scope(|scope| {
        let tries = [(); 2].map(|()| {
            scope.spawn(|| {
                barrier.wait();
                point.make()
            })
        });
        tries.map(|t| t.join().expect("no panic"))
    });
    assert_eq!(made.iter().filter(|r| r.is_ok()).count(), 1, "{made:?}");
    for failed in made.into_iter().filter(std::io::Result::is_err) {
        assert_errno(failed, &[EEXIST, EBUSY]);
    }
    let expected = bench.scratch().file("before.raw");
    oracle::convert(&bench.sealed("before"), &expected);
    oracle::assert_same(&point.disk_raw(), &expected);
    assert_eq!(
        oracle::chain(&bench.active()),
        [bench.active(), bench.sealed("before")]
    );
    point.delete().expect("rmdir");
    bench.disk().wait().expect("the merge");
    bench.verify();
    bench.finish();
}

#[test]
fn a_raw_disk_is_refused_and_not_changed() {
    let scratch = Scratch::new("snapshot-raw");
    let dir = scratch.dir("images");
    let image = dir.join("web1.raw");
    sh!("truncate -s 16M {}", image.display());
    let machine = Machine::start(
        &scratch,
        "vm",
        Attachment::Blockdev,
        &[Disk::raw("vda", &image)],
    );
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    assert_errno(disk.snapshot("before").make(), &[EOPNOTSUPP]);
    assert_errno(disk.internal("before").make(), &[EOPNOTSUPP]);
    assert!(mount.text("log").contains("raw"), "the log says why");
    assert_eq!(names(&dir), ["web1.raw"]);
}

#[test]
fn a_data_file_that_is_not_the_one_in_the_header_is_not_read() {
    let scratch = Scratch::new("snapshot-data-file");
    let images = scratch.dir("images");
    let disks: Vec<_> = ["same", "other"]
        .iter()
        .map(|name| {
            let (image, data) = (images.join(name), images.join(format!("{name}.data")));
            sh!(
                "qemu-img create -q -f qcow2 -o data_file={1} {0} 1M; qemu-io -f qcow2 -c 'write -P 7 0 1M' {0} >/dev/null; cp {1} {1}.2",
                image.display(),
                data.display()
            );
            let used = if *name == "same" { data } else { images.join("other.data.2") };
            format!(
                "driver=qcow2,node-name={name},file.driver=file,file.filename={},data-file.driver=file,data-file.filename={}",
                image.display(),
                used.display()
            )
        })
        .collect();
    let extra: Vec<String> = disks
        .into_iter()
        .flat_map(|disk| ["--blockdev".to_owned(), disk])
        .collect();
    let plain = images.join("plain.qcow2");
    oracle::create(&plain, 1 << 20);
    let machine = Machine::start_with(
        &scratch,
        "vm",
        Attachment::StorageDaemon,
        &[Disk::qcow2("vda", &plain)],
        &extra,
    );
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    wait::until_true("the disks are in the mount", || {
        mount.disk("other").0.is_dir()
    });
    let expected = scratch.file("expected.raw");
    fs::write(&expected, vec![7; 1 << 20]).expect("our own file");
    mount.disk("same").snapshot("before").make().expect("mkdir");
    oracle::assert_same(&mount.disk("same").snapshot("before").disk_raw(), &expected);
    assert_errno(mount.disk("other").snapshot("before").make(), &[EOPNOTSUPP]);
    assert!(
        mount.text("log").contains("another data file"),
        "the log says why"
    );
}

over_attachments! {
    /// A link by which a relative backing name means another file than beside the image itself: the
    /// sealed layer would stand on that one.
    a_link_that_changes_what_a_relative_name_means_is_refused => |name, attachment| {
        let scratch = Scratch::new(name);
        let (links, images) = (scratch.dir("links"), scratch.dir("images"));
        let linked = links.join("web1.qcow2");
        for (directory, pattern) in [(&links, 1), (&images, 2)] {
            let base = directory.join("base.qcow2");
            oracle::create(&base, 16 << 20);
            sh!("qemu-io -f qcow2 -c 'write -P {pattern} 0 1M' {} >/dev/null", base.display());
        }
        sh!(
            "cd {}; qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 web1.qcow2; ln -s ../images/web1.qcow2 {}",
            images.display(),
            linked.display()
        );
        let (before, after) = (scratch.file("before.raw"), scratch.file("after.raw"));
        oracle::convert(&linked, &before);
        let start = |vm: &str| {
            let machine = Machine::start(&scratch, vm, attachment, &[Disk::qcow2("vda", &linked)]);
            let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
            wait::until_true("the disk is in the mount", || mount.disk("vda").0.is_dir());
            (machine, mount)
        };
        let (mut machine, mut mount) = start("vm");
        assert_errno(mount.disk("vda").snapshot("before").make(), &[EOPNOTSUPP]);
        assert!(mount.text("log").contains("through a link"), "the log says why");
        mount.unmount();
        machine.quit();
        assert_eq!(names(&images), ["base.qcow2", "web1.qcow2"]);
        oracle::convert(&linked, &after);
        oracle::assert_same(&after, &before);

        // The same of a layer below: a merge would write its own path into the header above.
        let above = scratch.dir("above").join("web2.qcow2");
        oracle::create_overlay(&above, &linked, 16 << 20);
        let above = [Disk::qcow2("vda", &above)];
        let mut machine = Machine::start(&scratch, "above", attachment, &above);
        let mut mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
        wait::until_true("the disk is in the mount", || mount.disk("vda").0.is_dir());
        assert_errno(mount.disk("vda").snapshot("before").make(), &[EOPNOTSUPP]);
        mount.unmount();
        machine.quit();

        // With the absolute name it is a disk like any other.
        sh!(
            "qemu-img rebase -u -F qcow2 -b {}/base.qcow2 {}",
            links.display(),
            linked.display()
        );
        let (mut machine, mut mount) = start("vm2");
        mount.disk("vda").snapshot("before").make().expect("mkdir");
        oracle::assert_same(&mount.disk("vda").snapshot("before").disk_raw(), &before);
        mount.unmount();
        machine.quit();
        oracle::convert(&linked, &after);
        oracle::assert_same(&after, &before);
    }
}

#[test]
fn a_full_disk_gives_no_space_and_leaves_nothing() {
    let scratch = Scratch::new("snapshot-full");
    let Some(small) = SmallFilesystem::new(&scratch, 96) else {
        return;
    };
    oracle::create(&small.path().join("web1.qcow2"), qmpfs_tests::bench::SIZE);
    // The writer's blocks are allocated first, so that filling the rest does not stop it.
    let allocate = "for i in $(seq 32 39); do qemu-io -f qcow2 -c \"write -P 0 ${i}M 1M\"";
    sh!(
        "{allocate} {0}; done; for i in $(seq 0 31); do qemu-io -f qcow2 -c \"write -P 0 ${{i}}M 1M\" {0}; done >/dev/null",
        small.path().join("web1.qcow2").display()
    );
    let mut bench = Bench::on(
        scratch,
        small.path().to_path_buf(),
        Vec::new(),
        Attachment::StorageDaemon,
        &[],
    );
    bench.writer().progress(10);
    small.fill_but(0);
    assert_errno(bench.point("before").make(), &[libc::ENOSPC]);
    let left: Vec<_> = names(small.path())
        .into_iter()
        .filter(|n| n.contains("web1"))
        .collect();
    assert_eq!(left, ["web1.qcow2"], "nothing is left behind");
    small.make_room();
    bench.verify_disk();
    bench.point("before").make().expect("with room it works");
    bench.finish();
}

#[test]
fn a_layer_that_others_made_is_shown_and_never_ours_to_delete() {
    let mut bench = Bench::new("snapshot-others", Attachment::StorageDaemon);
    bench.seal("one");
    let node = Graph::of(&mut bench.machine.qmp).chain().remove(0);
    let foreign = bench.scratch().dir("foreign").join("top.qcow2");
    let arguments = json!({"node-name": node, "snapshot-file": foreign, "format": "qcow2", "snapshot-node-name": "foreign"});
    bench.machine.qmp.run("blockdev-snapshot-sync", arguments);
    // QEMU tells nobody: it is seen when the graph is next asked for, at the latest by the next verb.
    bench
        .point("two")
        .make()
        .expect("mkdir on a chain that others changed");
    assert_eq!(bench.disk().json()["active"].as_str(), foreign.to_str());
    assert!(bench.active().exists() && bench.sealed("one").exists());
    assert_eq!(
        bench.disk().list("snapshots"),
        ["one", "two"],
        "a point has a name that someone gave it"
    );
    assert_eq!(bench.disk().list("layers").len(), 3);
    let expected = bench.scratch().file("layer.raw");
    let sealed = bench.scratch().dir("foreign").join("top.two.qcow2");
    for (view, layer) in [
        (bench.disk().layer(1), bench.active()),
        (bench.point("two"), sealed),
    ] {
        oracle::convert(&layer, &expected);
        oracle::assert_same(&view.disk_raw(), &expected);
    }
    bench.writer().check();
    let removed = bench.disk().layer(1).delete();
    bench.disk().wait().ok();
    assert!(
        bench.active().exists(),
        "a file that others sealed stays, whatever came of {removed:?}"
    );
    bench.writer().progress(20);
}

#[test]
fn forty_points_are_forty_points() {
    let scratch = Scratch::new("snapshot-forty");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 4 << 20);
    let machine = Machine::start(
        &scratch,
        "vm",
        Attachment::StorageDaemon,
        &[Disk::qcow2("vda", &image)],
    );
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    let mut guest = machine.nbd("vda");
    for i in 0..40u8 {
        guest
            .write(u64::from(i) * STEP, &[i + 1; BLOCK])
            .expect("the guest writes");
        disk.snapshot(&format!("n{i}")).make().expect("mkdir");
    }
    assert_eq!(oracle::chain(&image).len(), 41);
    for i in (0..40).step_by(3) {
        let expected = scratch.file("expected.raw");
        oracle::convert(
            &scratch.dir("images").join(format!("web1.n{i}.qcow2")),
            &expected,
        );
        oracle::assert_same(&disk.snapshot(&format!("n{i}")).disk_raw(), &expected);
    }
}

/// Cache mode, aio and discards of the VM's own disk are those of every layer that takes its place.
#[test]
fn a_tuned_disk_keeps_its_options() {
    let mut bench = Bench::new("snapshot-tuned", Attachment::BlockdevDirect);
    for name in ["one", "two", "three"] {
        bench.seal(name);
        bench.write(20);
    }
    let nodes = bench
        .machine
        .qmp
        .run("query-named-block-nodes", json!({"flat": true}));
    let active = |driver: &str| {
        let all = nodes.as_array().expect("nodes").iter();
        all.filter(|node| {
            node["drv"] == driver
                && node["file"]
                    .as_str()
                    .is_some_and(|file| file.contains("/.web1."))
        })
        .cloned()
        .collect::<Vec<_>>()
    };
    let (format, file) = (active("qcow2"), active("file"));
    assert_eq!((format.len(), file.len()), (1, 1), "{nodes:#}");
    assert_eq!(file[0]["cache"]["direct"], true);
    assert_eq!(format[0]["cache"]["direct"], false);
    assert_eq!(format[0]["detect_zeroes"], "unmap");
    let path = bench.active();
    let held = || path.metadata().expect("the active layer").blocks() * 512;
    let before = held();
    let mut guest = |what: &str| {
        let line = format!("qemu-io -d /machine/peripheral/vda/virtio-backend \"{what}\"");
        let line = json!({ "command-line": line });
        bench.machine.qmp.run("human-monitor-command", line);
    };
    guest("write -P 7 0 16M");
    assert!(held() >= before + (12 << 20), "written to the active layer");
    guest("discard 0 16M");
    assert!(held() < before + (8 << 20), "a discard gives the room back");
}

#[test]
fn a_drive_that_copies_on_read_is_refused() {
    let scratch = Scratch::new("snapshot-copy-on-read");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 4 << 20);
    let drive = format!(
        "file={},format=qcow2,if=none,id=d,copy-on-read=on",
        image.display()
    );
    let extra = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d,id=vda"].map(str::to_owned);
    let machine = Machine::start_with(&scratch, "vm", Attachment::Drive, &[], &extra);
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    assert_errno(mount.disk("vda").snapshot("one").make(), &[EOPNOTSUPP]);
    assert_eq!(names(&scratch.dir("images")), ["web1.qcow2"]);
}

/// Two mounts through two monitors: one at a time changes a disk.
#[test]
fn two_mounts_of_one_vm_take_turns() {
    let scratch = Scratch::new("snapshot-two-mounts");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 4 << 20);
    let monitor = scratch.socket("other.qmp");
    let extra = [
        "-qmp".to_owned(),
        format!("unix:{},server=on,wait=off", monitor.display()),
    ];
    let mut machine = Machine::start_with(
        &scratch,
        "vm",
        Attachment::Blockdev,
        &[Disk::qcow2("vda", &image)],
        &extra,
    );
    let elsewhere = Scratch::new("snapshot-two-mounts-b");
    let mounts = [
        Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]),
        Mounted::new(&elsewhere, &[&monitor], &[]),
    ];
    let mut guest = machine.nbd("vda");
    let mut made = Vec::new();
    for round in 0..8u8 {
        guest
            .write(u64::from(round) * STEP, &[round + 1; BLOCK])
            .expect("the guest writes");
        let points: Vec<_> = ["a", "b"]
            .iter()
            .zip(&mounts)
            .map(|(side, mount)| {
                (
                    format!("{side}{round}"),
                    mount.disk("vda").snapshot(&format!("{side}{round}")),
                )
            })
            .collect();
        std::thread::scope(|scope| {
            let calls: Vec<_> = points
                .iter()
                .map(|(name, point)| scope.spawn(move || (name.clone(), point.make())))
                .collect();
            for call in calls {
                let (name, outcome) = call.join().expect("mkdir returns");
                match outcome {
                    Ok(()) => made.push(name),
                    Err(error) => assert_errno::<()>(Err(error), &[EBUSY]),
                }
            }
        });
    }
    let mut expected = vec![0; 4 << 20];
    guest.read(0, &mut expected).expect("the guest reads");
    machine.quit();
    assert_eq!(oracle::chain(&image).len(), made.len() + 1, "{made:?}");
    let (bytes, now) = (scratch.file("expected.raw"), scratch.file("now.raw"));
    std::fs::write(&bytes, &expected).expect("the expected bytes");
    oracle::convert(&image, &now);
    oracle::assert_same(&now, &bytes);
}

/// What one mount is at work on another one does not settle, not when it begins either.
#[test]
fn a_second_mount_leaves_the_work_of_the_first_alone() {
    let scratch = Scratch::new("snapshot-second-mount");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 16 << 20);
    let monitor = scratch.socket("other.qmp");
    let extra = [
        "-qmp".to_owned(),
        format!("unix:{},server=on,wait=off", monitor.display()),
    ];
    let disk = Disk::qcow2("vda", &image);
    let mut machine = Machine::start_with(&scratch, "vm", Attachment::Blockdev, &[disk], &extra);
    let slowly = rewriting(&scratch, machine.qmpfs_socket(), |message| {
        if message["execute"] == "block-stream" {
            message["arguments"]["speed"] = 1.into();
        }
    });
    let first = Mounted::new(&scratch, &[&slowly], &["-o", "merge=stream"]);
    let mut guest = machine.nbd("vda");
    for (at, point) in [(0, "one"), (4 << 20, "two")] {
        guest
            .write(at, &vec![1; 4 << 20])
            .expect("the guest writes");
        first.disk("vda").snapshot(point).make().expect("mkdir");
    }
    first.disk("vda").snapshot("one").delete().expect("rmdir");
    let job = first.disk("vda").only_job();
    let state = || fs::read_to_string(job.join("state")).unwrap_or_default();
    wait::until_true("a person holds it", || {
        let _just_beginning = write_line(&job.join("ctl"), b"pause");
        state() == "paused\n"
    });

    let elsewhere = Scratch::new("snapshot-second-mount-b");
    let second = Mounted::new(&elsewhere, &[&monitor], &[]);
    wait::until_true("it has tried", || {
        second.text("log").contains("another qmpfs is at work")
    });
    let log = second.text("log");
    assert!(!log.contains("taking up"), "{log}");
    assert_eq!(state(), "paused\n");
    assert_errno(second.disk("vda").snapshot("three").make(), &[EBUSY]);
    machine.limit_jobs(0);
    write_line(&job.join("ctl"), b"resume").expect("and lets it go on");
    first.disk("vda").wait().expect("the merge");
    wait::until_true("the second one settles it then", || {
        second.text("log").contains("disk 'vda': settled")
    });
    assert_eq!(second.disk("vda").list("snapshots"), ["two"]);
    second.disk("vda").snapshot("three").make().expect("mkdir");
    machine.quit();
}

/// After the first snapshot since its start the guest stands still until the path it boots from names what it writes: it
/// goes on by itself, and loses nothing if its host dies instead.
#[test]
fn a_guest_whose_disk_cannot_be_named_stands_still() {
    let mut bench = Bench::new("snapshot-unnamed", Attachment::Blockdev);
    let steps = Steps::new(bench.scratch());
    let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
    bench.mount.set_environment(steps.environment(bench.dir()));
    bench.mount.mount_through(proxy.socket());
    bench.wait_for_disk();
    proxy.stops(Some(bench.writer().gate()));
    steps.arm(FILES, 1000, Deed::Pass, [0, 0]);
    bench.seal("one");
    let (_, seen) = steps.disarm();
    let named = seen.iter().position(|step| step == "rename web1.qcow2");
    let named = named.expect("D gets another file");
    let runs =
        |bench: &mut Bench| bench.machine.qmp.run("query-status", json!({}))["running"] == true;

    for point in ["two", "three"] {
        bench.restart();
        proxy.stops(Some(bench.writer().gate()));
        bench.writer().progress(20);
        let before = bench.writer().acknowledged();
        let erofs = EROFS.unsigned_abs();
        steps.arm(FILES, named, Deed::FailFrom(erofs), [0, 0]);
        assert_errno(bench.point(point).make(), &[EROFS]);
        // what is tried again meanwhile fails as well
        thread::sleep(Duration::from_millis(300));
        assert!(!runs(&mut bench));
        let log = bench.mount.text("log");
        assert!(log.contains("what stands still goes on by itself"), "{log}");
        if point == "three" {
            bench.writer().expect_the_end();
            bench.mount.kill9();
            steps.disarm();
            bench.boot_after_a_fall(Some(&before));
            proxy.stops(None);
            bench.mount.mount_again();
            break;
        }
        let after = bench.writer().sent();
        steps.disarm();
        wait::until_true("it goes on by itself", || runs(&mut bench));
        bench.writer().progress(20);
        let bytes = bench.scratch().file("two.raw");
        oracle::convert(&bench.sealed("two"), &bytes);
        before.assert_between(&after, &bytes, WRITERS..SIZE);
        bench.hold("two", &bytes);
        bench.wait_for_disk();
        bench.verify();
    }
    bench.wait_for_disk();
    bench.verify();
    bench.finish();
}

/// What a QEMU on another machine calls by the name of a file here is another file: it is neither shown nor changed.
#[test]
fn a_monitor_of_another_machine_changes_nothing_here() {
    let scratch = Scratch::new("snapshot-elsewhere");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 4 << 20);
    // a VM of this machine has it open by that name
    let alias = scratch.dir("images").join(".web1.qcow2.0123456789ab");
    fs::hard_link(&image, &alias).expect("another name");
    // whoever listens on a socket of another machine here is called so
    let program = scratch.file("ssh");
    sh!("cp $(command -v qemu-storage-daemon) {}", program.display());
    let monitor = scratch.socket("far.qmp");
    let mut far = std::process::Command::new(&program);
    for (option, value) in [
        (
            "--chardev",
            format!("socket,id=m,server=on,wait=off,path={}", monitor.display()),
        ),
        ("--monitor", "chardev=m".to_owned()),
        (
            "--blockdev",
            format!(
                "qcow2,node-name=vda,file.driver=file,file.filename={}",
                image.display()
            ),
        ),
        (
            "--nbd-server",
            format!(
                "addr.type=unix,addr.path={}",
                scratch.socket("far.nbd").display()
            ),
        ),
        (
            "--export",
            "nbd,id=vda,node-name=vda,writable=on".to_owned(),
        ),
    ] {
        far.args([option, &value]);
    }
    let mut far = Process::spawn(far, &scratch.file("far.log"), libc::SIGKILL);
    wait::until_true("it listens", || monitor.exists());
    let mut mount = Mounted::new(&scratch, &[&monitor], &[]);
    let disks = names(&mount.path().join("disks"));
    let [disk] = &disks[..] else {
        panic!("one disk: {disks:?}")
    };
    assert_errno(mount.disk(disk).snapshot("one").make(), &[EOPNOTSUPP]);
    let log = mount.text("log");
    assert!(log.contains("cannot be seen from here"), "{log}");
    mount.unmount();
    let left = names(&scratch.dir("images"));
    assert_eq!(left, [".web1.qcow2.0123456789ab", "web1.qcow2"]);
    far.kill9();
}

/// By another monitor, between the look at the disk and its instant: an overlay of the old size would cut the guest's disk.
#[test]
fn a_disk_that_is_resized_meanwhile_keeps_its_new_size() {
    let scratch = Scratch::new("snapshot-resized");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, 16 << 20);
    let disks = [Disk::qcow2("vda", &image)];
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    // nobody resizes under a server
    machine.qmp.run("nbd-server-stop", json!({}));
    let (monitor, held) = holding(&scratch, machine.qmpfs_socket(), "stop");
    let mount = Mounted::new(&scratch, &[&monitor], &[]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    let made = thread::scope(|scope| {
        let made = scope.spawn(|| disk.snapshot("one").make());
        held.meanwhile(|| machine.resize("vda", 32 << 20));
        made.join().expect("no panic")
    });
    assert_errno(made, &[EBUSY]);
    let log = mount.text("log");
    assert!(
        log.contains("resized in this moment, from 16777216 bytes to 33554432"),
        "{log}"
    );
    assert_eq!(names(&scratch.dir("images")), ["web1.qcow2"]);
    assert_eq!(machine.qmp.run("query-status", json!({}))["running"], true);
    disk.snapshot("one").make().expect("a snapshot");
    assert_eq!(disk.json()["virtual_size"], 32 << 20);
}

/// It has begun to format the overlay, and answers nobody from then on.
#[test]
fn a_qemu_that_hangs_while_it_formats_holds_mkdir_up_once() {
    let mut bench = Bench::new("snapshot-format-hangs", Attachment::Blockdev);
    let (formats, hangs) = (AtomicBool::new(false), AtomicBool::new(false));
    let pid = bench.machine.pid();
    let monitor = rewriting(
        bench.scratch(),
        bench.machine.qmpfs_socket(),
        move |message| {
            if message["execute"] == "blockdev-create" {
                formats.store(true, Ordering::SeqCst);
            } else if formats.load(Ordering::SeqCst) && !hangs.swap(true, Ordering::SeqCst) {
                sh!("kill -STOP {pid}");
            }
        },
    );
    bench.mount.mount_through(&monitor);
    bench.wait_for_disk();
    let point = bench.point("one");
    let made = thread::scope(|scope| {
        let made = scope.spawn(|| point.make());
        wait::poll(Duration::from_secs(60), || made.is_finished().then_some(()));
        sh!("kill -CONT {pid}");
        made.join().expect("no panic")
    });
    assert_errno(made, &[ETIMEDOUT]);
    wait::until_true("it is settled", || {
        bench.mount.text("log").contains("settled\n") && !point.exists()
    });
    bench.verify();
    bench.seal("one");
    bench.remove("one");
    bench.finish();
}

/// Two disks whose files are called the same, in two directories: each goes on with its own options.
#[test]
fn disks_whose_files_are_called_the_same_have_options_of_their_own() {
    let scratch = Scratch::new("snapshot-called-the-same");
    let images = ["a", "b"].map(|dir| scratch.dir(dir).join("web1.qcow2"));
    images
        .iter()
        .for_each(|image| oracle::create(image, 16 << 20));
    let tuned = format!(
        "file={},if=none,id=d1,format=qcow2,cache=none,aio=native,discard=unmap",
        images[1].display()
    );
    let extra = [
        "-drive",
        &tuned,
        "-device",
        "virtio-blk-pci,drive=d1,id=vdb",
    ];
    let machine = Machine::start_with(
        &scratch,
        "vm",
        Attachment::Blockdev,
        &[Disk::qcow2("vda", &images[0])],
        &extra.map(str::to_owned),
    );
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let disks = ["vda", "vdb"].map(|name| mount.disk(name));
    wait::until_true("the disks are in the mount", || {
        disks.iter().all(|disk| disk.0.is_dir())
    });
    let assumed = |disk: &DiskDir| disk.json()["assumed"].as_array().map(Vec::len);
    assert_eq!(disks.each_ref().map(assumed), [Some(2), Some(0)]);
    for disk in &disks {
        let made = disk.snapshot("one").make();
        made.unwrap_or_else(|error| panic!("{error}\n{}", mount.text("log")));
    }
    assert_eq!(disks.each_ref().map(assumed), [Some(2), Some(0)]);
}
