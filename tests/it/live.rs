//! `mkdir live/NAME`: an instant of the running disk, beside a writer that never stops.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use libc::{EBUSY, EEXIST, EIO, ENOENT, ENOSPC, ENOTCONN, EOPNOTSUPP, ETIMEDOUT};
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::{BLOCK, Model, fill};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::nbd::Nbd;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::steps::{COMMANDS, Deed, Steps};
use qmpfs_tests::tree::{DiskDir, assert_errno};
use qmpfs_tests::wait::PATIENCE;
use qmpfs_tests::writer::Writer;
use qmpfs_tests::{oracle, sh, wait};
use serde_json::{Value, json};

mod all;
mod monitor;

/// The test's own blocks are below, the writer's from here on, and behind them is a hole.
const WRITERS: u64 = 8 << 20;
const HOLE: u64 = 16 << 20;
const SIZE: u64 = 24 << 20;

/// A running disk under load, and a mount that reads instants over the machine's own NBD server.
struct Rig {
    writer: Option<Writer>,
    hands: Nbd,
    model: Model,
    writes: u64,
    mount: Mounted,
    machine: Machine,
    dir: PathBuf,
    scratch: Scratch,
}

/// What stands between qmpfs and QEMU.
enum Between {
    Nothing,
    Oracles,
    Steps(Steps),
}

impl Rig {
    fn new(name: &str, attachment: Attachment, format: &str, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        Self::through(scratch, attachment, format, options, Between::Nothing)
    }

    fn through(
        scratch: Scratch,
        attachment: Attachment,
        format: &str,
        options: &[&str],
        between: Between,
    ) -> Self {
        let dir = scratch.dir("images");
        let image = dir.join(format!("web1.{format}"));
        sh!("qemu-img create -q -f {format} {} {SIZE}", image.display());
        let disk = match format {
            "raw" => Disk::raw("vda", &image),
            _ => Disk::qcow2("vda", &image),
        };
        let machine = Machine::start(&scratch, "vm", attachment, &[disk]);
        let server = format!("nbd_server={}", machine.endpoint("vda").socket.display());
        let options: Vec<&str> = ["-o", &server]
            .into_iter()
            .chain(options.iter().copied())
            .collect();
        let source = match &between {
            Between::Nothing => machine.qmpfs_socket().to_owned(),
            Between::Oracles => monitor::with_oracles(&scratch, machine.qmpfs_socket()),
            Between::Steps(steps) => Proxy::new(&scratch, machine.qmpfs_socket(), steps)
                .socket()
                .to_owned(),
        };
        let mount = Mounted::new(&scratch, &[&source], &options);
        let mut rig = Self {
            writer: Some(Writer::start(
                &machine.endpoint("vda"),
                WRITERS..HOLE,
                Model::default(),
                5,
            )),
            hands: machine.nbd("vda"),
            model: Model::default(),
            writes: 0,
            mount,
            machine,
            dir,
            scratch,
        };
        wait::until_true("the disk is in the mount", || rig.disk().0.is_dir());
        rig.write(20);
        rig
    }

    fn disk(&self) -> DiskDir {
        self.mount.disk("vda")
    }

    fn writer(&self) -> &Writer {
        self.writer.as_ref().expect("it writes")
    }

    /// Writes random blocks with the guest's hands.
    fn write(&mut self, count: u64) {
        let mut block = vec![0; BLOCK];
        for _ in 0..count {
            self.writes += 1;
            let offset = self.writes * 7919 % (WRITERS / BLOCK as u64) * BLOCK as u64;
            fill(&mut block, offset, self.writes);
            self.hands
                .write(offset, &block)
                .expect("the guest can write");
            self.model.0.insert(offset, self.writes);
        }
    }

    /// `mkdir live/NAME`; gives a copy of what it shows, which holds what was acknowledged before and no more than was
    /// sent after.
    #[track_caller]
    fn take(&mut self, name: &str) -> PathBuf {
        self.writer().progress(20);
        let before = self.writer().acknowledged();
        self.writer().step(&format!("mkdir live/{name}"));
        let made = self.disk().live(name).make();
        made.unwrap_or_else(|e| panic!("mkdir: {e}\n{}", self.mount.text("log")));
        let after = self.writer().sent();
        self.writer().step(&format!("mkdir live/{name} returned"));
        let then = self.model.clone();
        self.write(20);
        let copy = self.scratch.file(&format!("{name}.copy"));
        sh!(
            "cp --sparse=always {} {}",
            self.disk().live(name).disk_raw().display(),
            copy.display()
        );
        then.assert_holds(&copy, 0..WRITERS);
        before.assert_between(&after, &copy, WRITERS..HOLE);
        self.writer().progress(20);
        self.write(20);
        self.assert_shows(name, &copy);
        copy
    }

    /// Has a file ready for the full backup that is made in the transaction of the next instant.
    fn oracle(&mut self, number: usize) -> PathBuf {
        let path = self.scratch.file(&format!("oracle-{number}.raw"));
        sh!("qemu-img create -q -f raw {} {SIZE}", path.display());
        let file = json!({"driver": "file", "filename": path});
        let node = json!({"driver": "raw", "node-name": format!("oracle-{number}"), "file": file});
        self.machine.qmp.run("blockdev-add", node);
        path
    }

    fn others_are_done(&mut self) -> bool {
        !self
            .machine
            .qmp
            .run("query-jobs", json!({}))
            .to_string()
            .contains("oracle")
    }

    #[track_caller]
    fn assert_shows(&self, name: &str, bytes: &std::path::Path) {
        oracle::assert_same(&self.disk().live(name).disk_raw(), bytes);
        self.writer().check();
    }

    /// Nothing of any instant is left, in QEMU or on the host's disk.
    #[track_caller]
    fn assert_no_trace(&mut self) {
        assert!(self.disk().list("live").is_empty());
        assert_no_trace(&mut self.machine);
        assert_eq!(scratch_files(&self.dir), Vec::<String>::new());
    }

    fn finish(mut self) {
        self.writer().progress(5);
        self.writer().check();
        self.writer.take().expect("it writes").stop();
        self.mount.unmount();
        assert_no_trace(&mut self.machine);
        assert_eq!(scratch_files(&self.dir), Vec::<String>::new());
    }
}

#[track_caller]
fn assert_no_trace(machine: &mut Machine) {
    for query in [
        "query-jobs",
        "query-block-exports",
        "query-named-block-nodes",
    ] {
        let answer = machine.qmp.run(query, json!({})).to_string();
        assert!(!answer.contains("qmpfs-live"), "{query}: {answer}");
    }
}

fn scratch_files(dir: &std::path::Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("the images' directory");
    let names = names.map(|entry| {
        entry
            .expect("a name")
            .file_name()
            .into_string()
            .expect("UTF-8")
    });
    names.filter(|name| name.starts_with(".qmpfs")).collect()
}

over_attachments! {
    /// Three at once, each what a full backup of its very transaction holds; removed in any order.
    instants_hold_what_the_disk_held => |name, attachment| {
        let scratch = Scratch::new(name);
        let mut rig = Rig::through(scratch, attachment, "qcow2", &[], Between::Oracles);
        let mut copies = Vec::new();
        for (index, point) in ["one", "two", "three"].into_iter().enumerate() {
            let expected = rig.oracle(index + 1);
            let copy = rig.take(point);
            wait::until_true("the oracle is complete", || rig.others_are_done());
            oracle::assert_same(&copy, &expected);
            copies.push((point, expected));
        }
        for (point, expected) in &copies {
            rig.assert_shows(point, expected);
        }
        assert_eq!(rig.disk().list("live"), ["one", "three", "two"]);
        let json = rig.disk().live("two").json();
        assert_eq!(json["kind"], "live");
        assert_eq!(json["virtual_size"], SIZE);
        assert_eq!(json["consistency"], "crash");
        assert_eq!(json["error"], Value::Null);
        assert!(rig.mount.json("vm.json")["capabilities"].to_string().contains("\"live\""));

        assert_errno(rig.disk().live("one").make(), &[EEXIST]);
        assert_errno(rig.disk().snapshot("s").make(), &[EBUSY]);
        assert!(rig.mount.text("log").contains("live instant"), "{}", rig.mount.text("log"));
        let reader = File::open(rig.disk().live("two").disk_raw()).expect("a reader");
        assert_errno(rig.disk().live("two").delete(), &[EBUSY]);
        drop(reader);
        rig.disk().live("two").delete_when_closed();
        assert_errno(rig.disk().live("two").delete(), &[ENOENT]);
        rig.write(20);
        rig.writer().progress(20);
        rig.assert_shows("one", &copies[0].1);
        rig.assert_shows("three", &copies[2].1);
        rig.disk().live("one").delete_when_closed();
        rig.assert_shows("three", &copies[2].1);
        rig.disk().live("three").delete_when_closed();
        rig.assert_no_trace();
        assert!(rig.disk().snapshot("s").make().is_ok(), "{}", rig.mount.text("log"));
        rig.finish();
    }
}

over_attachments! {
    /// A raw disk has no other points. Holes are holes, also to lseek and stat.
    a_raw_disk_has_instants => |name, attachment| {
        let mut rig = Rig::new(name, attachment, "raw", &[]);
        let copy = rig.take("now");
        let view = rig.disk().live("now").disk_raw();
        let meta = view.metadata().expect("stat");
        assert_eq!(meta.len(), SIZE);
        assert!(meta.blocks() * 512 <= HOLE, "the hole takes no room: {}", meta.blocks());
        assert!(copy.metadata().expect("stat").blocks() * 512 <= HOLE + (1 << 20));
        let file = File::open(&view).expect("a reader");
        let mut end = vec![1; 4096];
        file.read_exact_at(&mut end, SIZE - 4096).expect("the last bytes");
        assert!(end.iter().all(|byte| *byte == 0));
        assert_eq!(file.read_at(&mut end, SIZE).expect("beyond the end"), 0);
        drop(file);
        assert_errno(rig.disk().snapshot("s").make(), &[EOPNOTSUPP]);
        // the mount's end is the instant's
        rig.finish();
    }
}

#[test]
fn a_mount_that_ends_with_an_open_reader_leaves_nothing() {
    let mut rig = Rig::new("live-unmount", Attachment::Blockdev, "qcow2", &[]);
    let copy = rig.take("now");
    let reader = File::open(rig.disk().live("now").disk_raw()).expect("a reader");
    let target = rig.mount.path().to_owned();
    sh!("umount -l {}", target.display());
    let mut bytes = vec![0; 1 << 20];
    reader
        .read_exact_at(&mut bytes, 0)
        .expect("it reads to its end");
    let mut expected = vec![0; 1 << 20];
    File::open(copy)
        .expect("the copy")
        .read_exact_at(&mut expected, 0)
        .expect("bytes");
    assert!(bytes == expected);
    drop(reader);
    wait::until_true("the scratch file is gone", || {
        scratch_files(&rig.dir).is_empty()
    });
    rig.writer().progress(5);
    rig.writer.take().expect("it writes").stop();
    assert_no_trace(&mut rig.machine);
}

#[test]
fn an_instant_that_has_no_room_is_not_made() {
    let mut rig = Rig::new(
        "live-room",
        Attachment::Blockdev,
        "raw",
        &["-o", "scratch_limit=20M"],
    );
    assert_errno(rig.disk().live("now").make(), &[ENOSPC]);
    assert!(
        rig.mount.text("log").contains("scratch_limit"),
        "{}",
        rig.mount.text("log")
    );
    rig.assert_no_trace();
    rig.finish();
}

/// What the promise of room is for: a filesystem that gets full later costs the guest nothing.
#[test]
fn a_scratch_directory_that_gets_full_harms_nobody() {
    let scratch = Scratch::new("live-full");
    let Some(small) = qmpfs_tests::faults::SmallFilesystem::new(&scratch, 64) else {
        return; // only root mounts filesystems
    };
    let directory = small.path().display().to_string();
    let mut rig = Rig::through(
        scratch,
        Attachment::Drive,
        "qcow2",
        &["--scratch-dir", &directory],
        Between::Nothing,
    );
    rig.disk().live("now").make().expect("mkdir");
    small.fill_but(0);
    let then = rig.model.clone();
    // every block of the disk is written anew
    rig.write(WRITERS / BLOCK as u64);
    rig.writer().progress(200);
    let copy = rig.scratch.file("now.copy");
    fs::copy(rig.disk().live("now").disk_raw(), &copy).expect("a copy");
    then.assert_holds(&copy, 0..WRITERS);
    assert_errno(rig.disk().live("another").make(), &[ENOSPC]);
    rig.disk().live("now").delete_when_closed();
    assert_eq!(scratch_files(small.path()), Vec::<String>::new());
    rig.finish();
}

#[test]
fn an_instant_whose_job_others_end_shows_no_byte_more() {
    let mut rig = Rig::new("live-cancelled", Attachment::Blockdev, "qcow2", &[]);
    rig.take("now");
    let reader = File::open(rig.disk().live("now").disk_raw()).expect("a reader");
    let jobs = rig.machine.qmp.run("query-jobs", json!({}));
    rig.machine
        .qmp
        .run("job-cancel", json!({"id": jobs[0]["id"]}));
    wait::until_true("reads fail", || {
        reader
            .read_at(&mut [0; 512], 0)
            .is_err_and(|e| e.raw_os_error() == Some(EIO))
    });
    wait::until_true("it says so", || {
        rig.disk().live("now").json()["error"].is_string()
    });
    drop(reader);
    rig.disk().live("now").delete_when_closed();
    rig.assert_no_trace();
    rig.finish();
}

#[test]
fn a_qemu_that_is_killed_takes_its_instants_along() {
    let mut rig = Rig::new("live-qemu-killed", Attachment::Drive, "qcow2", &[]);
    rig.take("now");
    let reader = File::open(rig.disk().live("now").disk_raw()).expect("a reader");
    rig.writer().expect_the_end();
    rig.machine.kill9();
    let began = Instant::now();
    assert!(reader.read_at(&mut [0; 512], 0).is_err());
    assert!(began.elapsed() < PATIENCE);
    drop(reader);
    wait::until_true("the mount knows", || {
        rig.mount.json("vm.json")["connection"] == "down"
    });
    assert_errno(rig.disk().live("now").delete(), &[ENOTCONN]);
    rig.writer.take().expect("it wrote").fallen();
    rig.machine.start_again();
    wait::until_true("the instant is gone", || {
        rig.mount.json("vm.json")["connection"] == "up" && rig.disk().list("live").is_empty()
    });
    rig.assert_no_trace();
}

#[test]
fn killed_at_every_command() {
    for (attachment, name) in [
        (Attachment::StorageDaemon, "live-killed-qsd"),
        (Attachment::Blockdev, "live-killed-blockdev"),
    ] {
        let scratch = Scratch::new(name);
        let steps = Steps::new(&scratch);
        let mut rig = Rig::through(
            scratch,
            attachment,
            "raw",
            &[],
            Between::Steps(steps.clone()),
        );
        let deeds = [Deed::KillBefore, Deed::KillAfter];
        for (verb, deed) in [
            ("mkdir", deeds[0]),
            ("mkdir", deeds[1]),
            ("rmdir", deeds[0]),
            ("rmdir", deeds[1]),
        ] {
            for number in 0.. {
                let point = rig.disk().live("now");
                if verb == "rmdir" {
                    point.make().expect("mkdir");
                }
                steps.arm(COMMANDS, number, deed, [rig.mount.pid(), 0]);
                rig.writer()
                    .step(&format!("{verb}, to be killed at command {number}"));
                let outcome = if verb == "mkdir" {
                    point.make()
                } else {
                    point.delete()
                };
                let (fired, seen) = steps.disarm();
                if !fired {
                    outcome.unwrap_or_else(|e| panic!("{e}: {seen:?}"));
                    if verb == "mkdir" {
                        rig.disk().live("now").delete_when_closed();
                    }
                    assert!(number > 2, "it has more steps than {seen:?}");
                    break;
                }
                rig.mount.mount_again();
                wait::until_true("the disk is back", || rig.disk().0.is_dir());
                rig.assert_no_trace();
                rig.write(5);
                rig.writer().progress(5);
                rig.writer().check();
            }
        }
        rig.take("after");
        rig.finish();
    }
}

/// A VM without an NBD server: qmpfs has one started, on a socket of its own, and ends it.
#[test]
fn the_server_of_our_own_is_started_and_ended() {
    let scratch = Scratch::new("live-own-server");
    let image = scratch.file("web1.raw");
    sh!("qemu-img create -q -f raw {} {SIZE}", image.display());
    let mut machine = Machine::start(
        &scratch,
        "vm",
        Attachment::Blockdev,
        &[Disk::raw("vda", &image)],
    );
    let mut mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let live = mount.disk("vda").live("now");
    assert_errno(live.make(), &[EBUSY]);
    assert!(
        mount.text("log").contains("nbd_server=SOCKET"),
        "{}",
        mount.text("log")
    );
    assert_no_trace(&mut machine);

    machine.qmp.run("nbd-server-stop", json!({}));
    hmp_write(&mut machine, 7);
    for round in 0..2 {
        live.make()
            .unwrap_or_else(|e| panic!("{e}\n{}", mount.text("log")));
        let other = mount.disk("vda").live("other");
        other.make().expect("a second one, over the same server");
        hmp_write(&mut machine, 8 + round);
        let bytes = fs::read(live.disk_raw()).expect("the instant");
        let holds = 7 + round;
        assert!(
            bytes[..4 << 20].iter().all(|byte| *byte == holds),
            "round {round}"
        );
        assert!(bytes[4 << 20..].iter().all(|byte| *byte == 0));
        live.delete_when_closed();
        assert_eq!(
            fs::read(other.disk_raw()).expect("the other").len(),
            SIZE as usize
        );
        other.delete_when_closed();
        assert_no_trace(&mut machine);
        // it is free for others again
        let addr = json!({"type": "unix", "data": {"path": scratch.socket("again")}});
        machine.qmp.run("nbd-server-start", json!({"addr": addr}));
        machine.qmp.run("nbd-server-stop", json!({}));
        fs::remove_file(scratch.socket("again")).ok();
    }
    // killed: the next mount stops it
    live.make().expect("mkdir");
    mount.kill9();
    mount.mount_again();
    assert!(mount.disk("vda").list("live").is_empty());
    assert_no_trace(&mut machine);
    live.make()
        .unwrap_or_else(|e| panic!("{e}\n{}", mount.text("log")));
    mount.unmount();
    assert_no_trace(&mut machine);
    assert_eq!(scratch_files(scratch.path()), Vec::<String>::new());
}

/// Another tool has begun to use QEMU's server, and has no export on it yet.
#[test]
fn a_server_that_others_have_just_started_stays() {
    let scratch = Scratch::new("live-others-server");
    let image = scratch.file("web1.raw");
    sh!("qemu-img create -q -f raw {} {SIZE}", image.display());
    let disks = [Disk::raw("vda", &image)];
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    let mut mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let live = mount.disk("vda").live("now");
    // what a killed mount leaves: its server, of which nothing but the directory tells
    machine.qmp.run("nbd-server-stop", json!({}));
    live.make().expect("mkdir");
    mount.kill9();
    take_down_by_hand(&mut machine);
    mount.mount_again();
    start_server(&scratch, &mut machine);

    for directory in [live.0.clone(), mount.path().join("live/now")] {
        assert_errno(fs::create_dir(&directory), &[EBUSY]);
    }
    let is_served = |scratch: &Scratch| UnixStream::connect(scratch.socket("theirs")).is_ok();
    assert!(is_served(&scratch), "after a mkdir that was refused");
    mount.kill9();
    mount.mount_again();
    assert!(is_served(&scratch), "after the look of a mount");
    mount.unmount();
    assert!(is_served(&scratch), "after its end");
}

/// A login manager, or who sweeps /tmp, takes the socket of our server away: it is ours all the same.
#[test]
fn a_server_whose_socket_is_gone_is_stopped() {
    let scratch = Scratch::new("live-socket-gone");
    let image = scratch.file("web1.raw");
    sh!("qemu-img create -q -f raw {} {SIZE}", image.display());
    let disks = [Disk::raw("vda", &image)];
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    machine.qmp.run("nbd-server-stop", json!({}));
    let run = scratch.socket("run");
    fs::create_dir(&run).expect("a directory");
    let environment = vec![("XDG_RUNTIME_DIR", run.clone())];
    let mount = Mounted::in_environment(&scratch, &[machine.qmpfs_socket()], &[], environment);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    for name in ["a", "b"] {
        disk.live(name).make().expect("mkdir");
        sh!("rm {}/qmpfs-nbd-*/nbd", run.display());
        disk.live(name).delete().expect("rmdir");
    }
    // and another may be started now
    start_server(&scratch, &mut machine);
}

/// `-o nbd_server=` names a socket on which nobody listens, or a server that knows nothing of this VM.
#[test]
fn a_server_that_is_not_the_vms_makes_no_instant() {
    let scratch = Scratch::new("live-wrong-server");
    let machine = |name: &str| {
        let image = scratch.dir(name).join("web1.raw");
        sh!("qemu-img create -q -f raw {} {SIZE}", image.display());
        let disks = [Disk::raw("vda", &image)];
        Machine::start(&scratch, name, Attachment::Blockdev, &disks)
    };
    let (mut ours, theirs) = (machine("vm"), machine("other"));
    for wrong in [scratch.socket("nobody"), theirs.endpoint("vda").socket] {
        let server = format!("nbd_server={}", wrong.display());
        let mut mount = Mounted::new(&scratch, &[ours.qmpfs_socket()], &["-o", &server]);
        let live = mount.disk("vda").live("now");
        for directory in [live.0.clone(), mount.path().join("live/now")] {
            assert_errno(fs::create_dir(&directory), &[EIO]);
        }
        let log = mount.text("log");
        assert!(log.contains("the instant cannot be read"), "{log}");
        assert!(log.contains("-o nbd_server=SOCKET"), "{log}");
        assert!(mount.disk("vda").list("live").is_empty());
        assert_no_trace(&mut ours);
        assert_eq!(
            scratch_files(&scratch.path().join("vm")),
            Vec::<String>::new()
        );
        mount.unmount();
    }
    assert!(UnixStream::connect(ours.endpoint("vda").socket).is_ok());
}

/// Only what a mount of ours has made is removed by the next, whatever a file is called.
#[test]
fn a_file_that_is_only_called_as_a_scratch_file_stays() {
    let mut rig = Rig::new("live-called-so", Attachment::Blockdev, "raw", &[]);
    let theirs = rig.dir.join(".qmpfs-live-0123456789ab.qcow2");
    fs::write(&theirs, b"shopping list").expect("a file of somebody's");
    rig.take("now");
    let ours = scratch_files(&rig.dir);
    assert_eq!(ours.len(), 2, "{ours:?}");
    rig.mount.kill9();
    rig.mount.mount_again();
    wait::until_true("the disk is back", || rig.disk().0.is_dir());
    assert_eq!(scratch_files(&rig.dir).len(), 1, "what we had made is gone");
    assert_eq!(fs::read(&theirs).expect("it is there"), b"shopping list");
    fs::remove_file(&theirs).expect("ours again");
    rig.finish();
}

/// QEMU would refuse it after the guest was stopped.
#[test]
fn a_disk_on_which_another_mount_has_an_instant_is_not_sealed() {
    let (scratch, elsewhere) = (Scratch::new("live-others"), Scratch::new("live-second"));
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, SIZE);
    let monitor = scratch.socket("second.qmp");
    let extra = [
        "-qmp".to_owned(),
        format!("unix:{},server=on,wait=off", monitor.display()),
    ];
    let disks = [Disk::qcow2("vda", &image)];
    let mut machine = Machine::start_with(&scratch, "vm", Attachment::Blockdev, &disks, &extra);
    let server = format!("nbd_server={}", machine.endpoint("vda").socket.display());
    let first = Mounted::new(&scratch, &[machine.qmpfs_socket()], &["-o", &server]);
    let second = Mounted::new(&elsewhere, &[&monitor], &[]);
    let live = first.disk("vda").live("now");
    live.make().expect("mkdir");
    let point = second.disk("vda").snapshot("x");
    for directory in [point.0.clone(), second.path().join("snapshots/x")] {
        assert_errno(fs::create_dir(&directory), &[EBUSY]);
        let log = second.text("log");
        assert!(log.contains("has a live instant of another mount"), "{log}");
    }
    live.delete_when_closed();
    point.make().expect("it is free");
    assert_no_trace(&mut machine);
}

/// Ends everything of an instant in QEMU but its server.
fn take_down_by_hand(machine: &mut Machine) {
    let exports = machine.qmp.run("query-block-exports", json!({}));
    let id = exports[0]["id"].as_str().expect("an export").to_owned();
    let end = json!({"id": id, "mode": "hard"});
    machine.qmp.run("block-export-del", end);
    wait::until_true("the export is gone", || {
        machine.qmp.run("query-block-exports", json!({})) == json!([])
    });
    machine.qmp.run("job-cancel", json!({"id": id}));
    wait::until_true("its job is over", || {
        let jobs = machine.qmp.run("query-jobs", json!({}));
        jobs == json!([]) || jobs[0]["status"] == "concluded"
    });
    // one that has gone by itself is no harm
    let _gone = machine.qmp.execute("job-dismiss", json!({"id": id}));
    for node in [id.clone(), format!("{id}-f")] {
        machine.qmp.run("blockdev-del", json!({"node-name": node}));
    }
}

fn start_server(scratch: &Scratch, machine: &mut Machine) {
    let addr = json!({"type": "unix", "data": {"path": scratch.socket("theirs")}});
    machine.qmp.run("nbd-server-start", json!({"addr": addr}));
}

fn hmp_write(machine: &mut Machine, pattern: u8) {
    let line =
        format!("qemu-io -d /machine/peripheral/vda/virtio-backend \"write -P {pattern} 0 4M\"");
    let said = machine
        .qmp
        .run("human-monitor-command", json!({"command-line": line}));
    assert_eq!(said, "", "QEMU tells errors");
}

/// Images of a VM that is off are in a storage daemon of our own, which has no server yet.
#[test]
fn images_of_a_vm_that_is_off_have_instants() {
    let scratch = Scratch::new("live-off");
    let image = scratch.file("web1.qcow2");
    sh!(
        "qemu-img create -q -f qcow2 {0} 8M; qemu-io -f qcow2 -c 'write -P 5 1M 1M' {0}",
        image.display()
    );
    let expected = scratch.file("expected");
    oracle::convert(&image, &expected);
    let mut mount = Mounted::new(&scratch, &[&image], &[]);
    let live = mount.disk("web1").live("now");
    live.make()
        .unwrap_or_else(|e| panic!("{e}\n{}", mount.text("log")));
    oracle::assert_same(&live.disk_raw(), &expected);
    live.delete_when_closed();
    live.make().expect("mkdir");
    mount.kill9();
    mount.mount_again();
    assert_eq!(scratch_files(scratch.path()), Vec::<String>::new());
    mount.unmount();
}

/// The caller's directory is locked while it waits: once, for one command, and what was begun is found later.
#[test]
fn a_qemu_that_hangs_holds_mkdir_up_once() {
    let mut rig = Rig::new("live-hangs", Attachment::Blockdev, "raw", &[]);
    rig.writer().progress(5);
    let pid = rig.machine.pid();
    sh!("kill -STOP {pid}");
    let began = Instant::now();
    let made = rig.disk().live("now").make();
    let waited = began.elapsed();
    sh!("kill -CONT {pid}");
    assert_errno(made, &[ETIMEDOUT, ENOTCONN]);
    assert!(waited < PATIENCE, "{waited:?}");
    wait::until_true("the mount has settled", || {
        rig.mount.json("vm.json")["connection"] == "up" && rig.disk().live("again").make().is_ok()
    });
    rig.disk().live("again").delete_when_closed();
    wait::until_true("nothing is left", || scratch_files(&rig.dir).is_empty());
    rig.assert_no_trace();
    rig.finish();
}
