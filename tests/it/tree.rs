//! What a person sees in the mount, and what the mount refuses.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use libc::{EACCES, EBUSY, EEXIST, EINVAL, ENAMETOOLONG, ENOENT, EPERM, EROFS, ETIMEDOUT};
use qmpfs_tests::bench::{Bench, SIZE};
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::{BLOCK, STEP};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::tree::{Point, assert_errno};
use qmpfs_tests::{mounted, oracle, sh, wait};

/// A view is for reading: EPERM or EROFS; from the kernel itself EACCES, unless the caller is root.
const NO: &[i32] = &[EPERM, EROFS, EACCES];

#[test]
fn the_layout_is_as_the_contract_says() {
    let mut bench = Bench::new("tree-layout", Attachment::StorageDaemon);
    bench.seal("before");
    let top = qmpfs_tests::faults::names(bench.mount.path());
    for name in ["README.txt", "disks", "log", "vm.json", "wait"] {
        assert!(top.iter().any(|n| n == name), "{name} is in {top:?}");
    }
    assert_eq!(bench.mount.disk("").0.read_dir().expect("disks").count(), 1);
    let disk = bench.disk().list("");
    for name in [
        "disk.json",
        "internal",
        "jobs",
        "layers",
        "snapshots",
        "wait",
    ] {
        assert!(disk.iter().any(|n| n == name), "{name} is in {disk:?}");
    }
    let point = bench.disk().list("snapshots/before");
    for name in ["disk.raw", "point.json"] {
        assert!(point.iter().any(|n| n == name), "{name} is in {point:?}");
    }
    assert!(
        bench.mount.text("README.txt").contains("rmdir"),
        "README.txt says how to delete a point"
    );
    bench.finish();
}

over_attachments! {
    /// The disk is called as its device or export is called; JSON says what it is made of.
    json_files_name_the_disk_and_its_layers => |name, attachment: Attachment| {
        let mut bench = Bench::new(name, attachment);
        bench.seal("first");
        bench.seal("second");
        let disk = bench.disk().json();
        assert_eq!(disk["disk"], "vda");
        assert_eq!(disk["format"], "qcow2");
        assert_eq!(disk["virtual_size"], SIZE);
        assert_eq!(Path::new(disk["active"].as_str().expect("a path")), bench.active());
        assert!(disk["node_name"].as_str().is_some_and(|n| !n.is_empty()));
        let layers = disk["layers"].as_array().expect("layers");
        assert!(layers.len() >= 2, "{disk:#}");
        for (i, name) in ["first", "second"].iter().enumerate() {
            assert_eq!(layers[i]["index"], i);
            assert_eq!(layers[i]["point"], *name);
        let layer = layers[i]["name"].as_str().expect("a name");
        assert!(bench.disk().list("layers").iter().any(|l| l == layer), "{layer} is a directory in layers/");
            assert_eq!(Path::new(layers[i]["file"].as_str().expect("a path")), bench.sealed(name));
            assert_eq!(layers[i]["sealed_by_qmpfs"], true);
            assert_eq!(layers[i]["virtual_size"], SIZE);
            assert!(layers[i]["allocated_size"].as_u64().is_some_and(|n| n > 0));
        }
        let point = bench.point("second").json();
        assert_eq!(point["kind"], "external");
        assert_eq!(point["name"], "second");
        assert_eq!(point["virtual_size"], SIZE);
        assert!(point["time"].as_str().is_some_and(|t| t.ends_with('Z')), "RFC 3339, UTC: {point:#}");
        assert_eq!(point["files"].as_array().map(Vec::len), Some(2), "{point:#}");
        assert!(point["missing"].is_array());
        let vm = bench.mount.json("vm.json");
        assert!(vm["qemu_version"].as_str().is_some_and(|v| v.contains('.')), "{vm:#}");
        assert!(vm["capabilities"].is_array());
        if attachment.is_vm() {
            assert_eq!(vm["run_state"], "running");
        }
        bench.finish();
    }
}

#[test]
fn stat_and_seek_tell_the_truth() {
    let mut bench = Bench::new("tree-stat", Attachment::StorageDaemon);
    bench.write(20);
    bench.seal("before");
    let view = bench.point("before").disk_raw();
    let stat = view.metadata().expect("disk.raw");
    assert_eq!(stat.len(), SIZE);
    assert_eq!(stat.permissions().mode() & 0o222, 0, "nobody may write it");
    assert_eq!(
        stat.permissions().mode() & 0o077,
        0,
        "nobody else may read it"
    );
    assert!(
        (oracle::allocated(&view)) < SIZE,
        "not all of it is allocated"
    );
    assert!(oracle::allocated(&view) >= 20 * STEP, "what was written is");
    assert!(stat.mtime() > 1_700_000_000, "mtime is the instant");

    let ranges = oracle::data_ranges(&view);
    let covered: u64 = ranges.iter().map(|r| r.end - r.start).sum();
    assert!(covered < SIZE, "holes are holes");
    let bytes = fs::read(bench.bytes_of("before")).expect("the expected bytes");
    for (offset, block) in (0..SIZE).step_by(BLOCK).zip(bytes.chunks_exact(BLOCK)) {
        let is_data = block != [0; BLOCK];
        let found = ranges
            .iter()
            .any(|r| r.start <= offset && offset + STEP <= r.end);
        assert!(
            found || !is_data,
            "there is data at {offset}, but the view says {ranges:?}"
        );
    }
    bench.finish();
}

#[test]
fn what_is_no_verb_is_refused_to_root_too() {
    let mut bench = Bench::new("tree-refused", Attachment::StorageDaemon);
    bench.seal("before");
    let (root, disk) = (bench.mount.path().to_path_buf(), bench.disk().0);
    let point = bench.point("before").0;
    for file in ["disk.raw", "point.json"] {
        assert_errno(fs::remove_file(point.join(file)), NO);
        assert_errno(File::options().write(true).open(point.join(file)), NO);
        assert_errno(
            fs::set_permissions(point.join(file), PermissionsExt::from_mode(0o777)),
            NO,
        );
        assert_errno(fs::rename(point.join(file), point.join("other")), NO);
    }
    for dir in [
        &root,
        &root.join("disks"),
        &disk,
        &disk.join("layers"),
        &disk.join("jobs"),
        &point,
    ] {
        assert_errno(File::create(dir.join("new")), NO);
        assert_errno(fs::create_dir(dir.join("new")), NO);
        assert_errno(symlink("x", dir.join("new")), NO);
        assert_errno(mkfifo(&dir.join("new")), NO);
    }
    assert_errno(fs::rename(&point, disk.join("snapshots/other")), NO);
    for dir in [
        root.join("disks"),
        disk.join("snapshots"),
        disk.join("layers"),
        disk.join("jobs"),
    ] {
        assert_errno(fs::remove_dir(dir), NO);
    }
    // its verb is for one that nobody uses
    assert_errno(fs::remove_dir(&disk), &[EBUSY]);
    assert_errno(
        fs::hard_link(point.join("disk.raw"), point.join("link")),
        NO,
    );
    bench.verify();
    bench.finish();
}

#[test]
fn bad_names_are_refused_by_kind() {
    let mut bench = Bench::new("tree-names", Attachment::StorageDaemon);
    bench.seal("before");
    let snapshots = bench.disk().0.join("snapshots");
    for bad in [
        ".hidden",
        "-dash",
        "two words",
        "naïve",
        "a:b",
        "star*",
        "new\nline",
        &"n".repeat(129),
    ] {
        assert_errno(fs::create_dir(snapshots.join(bad)), &[EINVAL]);
    }
    assert_errno(
        fs::create_dir(snapshots.join("n".repeat(256))),
        &[EINVAL, ENAMETOOLONG],
    );
    assert_errno(fs::create_dir(snapshots.join("before")), &[EEXIST]);
    assert_errno(fs::remove_dir(snapshots.join("never-was")), &[ENOENT]);
    bench.verify();
    bench.seal("Az0._-9");
    bench.finish();
}

#[test]
fn rm_and_rsync_let_loose_on_the_mount_destroy_nothing() {
    let mut bench = Bench::new("tree-rm-rf", Attachment::StorageDaemon);
    bench.seal("before");
    bench.seal("after");
    let root = bench.mount.path().display().to_string();
    assert!(!sh::attempt(&format!("rm -rf {root}/*")).status.success());
    bench.verify();
    let empty = bench.scratch().dir("empty");
    let line = format!("rsync -a --delete {}/ {root}/disks/vda/", empty.display());
    assert!(!sh::attempt(&line).status.success());
    bench.verify();
    bench.finish();
}

fn mkfifo(path: &Path) -> std::io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
    // SAFETY: the string ends with NUL and lives through the call.
    if unsafe { libc::mkfifo(path.as_ptr(), 0o600) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

#[test]
fn the_log_can_be_followed() {
    let bench = Bench::new("tree-log", Attachment::StorageDaemon);
    let mut log = File::open(bench.mount.path().join("log")).expect("the log");
    let mut seen = String::new();
    log.read_to_string(&mut seen).expect("text");
    assert!(!seen.contains("disks/vda/internal/x"), "{seen}");
    bench.disk().internal("x").make().expect("mkdir");
    let mut more = String::new();
    log.read_to_string(&mut more).expect("more of it");
    assert!(more.contains("mkdir /disks/vda/internal/x ok"), "{more}");
    assert_eq!(more.lines().count(), 1, "{more}");
    drop(log);
    bench.finish();
}

#[test]
fn a_hanging_qemu_holds_a_verb_up_once() {
    let bench = Bench::new("tree-hang", Attachment::StorageDaemon);
    let signal = |signal| {
        let pid = i32::try_from(bench.machine.pid()).expect("a pid");
        // SAFETY: the machine is our own child and is not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    let of_all_disks = Point(bench.mount.snapshots("z"));
    for point in [bench.point("z"), bench.disk().internal("z"), of_all_disks] {
        signal(libc::SIGSTOP);
        let began = Instant::now();
        let made = point.make();
        signal(libc::SIGCONT);
        assert_errno(made, &[ETIMEDOUT]);
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "{:?}",
            began.elapsed()
        );
        wait::until_true("it is settled", || !point.exists());
    }
    bench.finish();
}

/// Who names everything by its whole path, as most programs do, is not asked for each directory on the way again.
#[test]
fn directories_on_the_way_cost_no_request_each() {
    let mut bench = Bench::new("tree-paths", Attachment::StorageDaemon);
    bench.seal("before");
    let file = bench.point("before").0.join("point.json");
    let pid = bench.mount.pid();
    // each request is read from the device
    let requests = || {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("its counters");
        let line = io.lines().find_map(|line| line.strip_prefix("syscr: "));
        line.expect("reads").parse::<u64>().expect("a number")
    };
    let times = 300;
    let before = requests();
    for _ in 0..times {
        file.metadata().expect("the point is there");
    }
    let asked = requests() - before;
    assert!(asked >= times, "{asked}: what may change is asked for");
    // its name, and its length
    assert!(asked < times * 3, "{asked} requests for {times} looks");
    bench.finish();
}

#[test]
fn umount_from_inside_the_mount_ends() {
    let mut bench = Bench::new("tree-inside", Attachment::StorageDaemon);
    let mount = bench.mount.path().to_owned();
    let umount = std::process::Command::new(mounted::program())
        .arg("umount")
        .arg(&mount)
        .current_dir(mount.join("disks"))
        .spawn();
    let mut umount = umount.expect("it is started");
    let ended = wait::poll(Duration::from_secs(20), || umount.try_wait().expect("ours"));
    if ended.is_none() {
        umount.kill().expect("our own child");
        umount.wait().expect("our own child");
    }
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    bench.mount.mount_again();
    bench.finish();
}

#[test]
fn a_base_that_was_rewritten_while_the_vm_was_off_shows_its_new_bytes() {
    let scratch = Scratch::new("tree-rewritten");
    let dir = scratch.dir("images");
    let (base, image) = (dir.join("base.qcow2"), dir.join("web1.qcow2"));
    let fill = |byte: u8| {
        sh!(
            "qemu-io -f qcow2 -c 'write -P {byte} 0 1M' {}",
            base.display()
        )
    };
    oracle::create(&base, 1 << 20);
    fill(1);
    oracle::create_overlay(&image, &base, 1 << 20);
    let disks = [Disk::qcow2("vda", &image)];
    let mut machine = Machine::start(&scratch, "vm", Attachment::StorageDaemon, &disks);
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let read =
        || fs::read(mount.disk("vda").layer(0).disk_raw()).map(|bytes| (bytes.len(), bytes[4096]));
    assert_eq!(read().expect("the base"), (1 << 20, 1));
    let above = mount.disk("vda").snapshot("above");
    above.make().expect("mkdir");
    let read_above = || fs::read(above.disk_raw()).map(|bytes| bytes[4096]);
    assert_eq!(read_above().expect("a point on the base"), 1);
    machine.quit();
    fill(2);
    sh!("qemu-img resize -q {} 2M", base.display());
    machine.start_again();
    wait::until_true("it is connected again", || {
        mount.text("log").contains("QEMU is connected")
    });
    assert_eq!(read().expect("the base"), (2 << 20, 2));
    assert_eq!(
        read_above().expect("a point on the base"),
        2,
        "what the guest would see"
    );
}
