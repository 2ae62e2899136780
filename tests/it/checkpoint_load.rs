//! `echo NAME > rollback` of the whole VM: it goes on from a checkpoint, disks and RAM, and what it was stays as one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libc::{EIO, ENOENT, EOPNOTSUPP, EPERM};
use qmpfs_tests::bench::Bench;
use qmpfs_tests::faults::names;
use qmpfs_tests::guest::{Guest, fsck_clean};
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::steps::{COMMANDS, Deed, Steps};
use qmpfs_tests::tree::{assert_errno, json, text, write_line};
use qmpfs_tests::{oracle, wait};
use serde_json::json;

/// So much RAM takes long enough to be loaded that a test meets QEMU at it.
const RAM: usize = 64 << 20;

/// Longer than QEMU is waited for where nobody needs it.
const LONG: Duration = Duration::from_secs(20);

const LIVE: [&str; 2] = ["-o", "live_rollback"];

fn save(mount: &Mounted, name: &str) {
    fs::create_dir(mount.path().join("checkpoints").join(name))
        .unwrap_or_else(|e| panic!("mkdir {name}: {e}\n{}", mount.text("log")));
    mount.wait_idle();
}

fn load(mount: &Mounted, name: &str) -> std::io::Result<()> {
    write_line(
        &mount.path().join("rollback"),
        format!("{name}\n").as_bytes(),
    )
}

fn kept(mount: &Mounted) -> Vec<String> {
    let mut kept = names(&mount.path().join("checkpoints"));
    kept.retain(|name| name.starts_with("rolled-back-"));
    kept
}

fn remove_kept(mount: &Mounted) {
    for kept in kept(mount) {
        fs::remove_dir(mount.path().join("checkpoints").join(kept)).expect("rmdir");
        mount.wait_idle();
    }
}

fn status(machine: &mut Machine) -> String {
    let status = machine.qmp.run("query-status", json!({}));
    status["status"].as_str().unwrap_or_default().to_owned()
}

/// The bytes of a checkpoint's part of the bench's disk, by qemu-img.
fn bytes(bench: &Bench, name: &str) -> PathBuf {
    let raw = bench.scratch().file(&format!("{name}.expected"));
    oracle::convert_internal(&bench.active(), name, &raw);
    raw
}

/// There, and back again; nothing of either is lost.
fn goes_back_and_forth(name: &str, attachment: Attachment) {
    let mut bench = Bench::with_options(name, attachment, &LIVE);
    bench.write(20);
    save(&bench.mount, "one");
    let one = bytes(&bench, "one");
    bench.write(20);
    bench.verify();
    let rollback = bench.mount.path().join("rollback");
    assert!(text(&rollback).contains("checkpoints/one\n"));
    let present = bench.begin_rollback();
    load(&bench.mount, "checkpoints/one/").expect("rollback");
    assert_eq!(bench.mount.wait_idle(), "done\n");
    assert_eq!(status(&mut bench.machine), "running");
    let log = bench.mount.text("log");
    let [there] = &kept(&bench.mount)[..] else {
        panic!("what was is kept, once\n{log}")
    };
    oracle::assert_same(&bench.disk().internal(there).disk_raw(), &present);
    oracle::assert_same(&bench.disk().internal("one").disk_raw(), &one);
    assert!(bench.disk().list("jobs").is_empty());
    assert!(!oracle::marks(&bench.active()).contains(&"load".to_owned()));
    let there = there.clone();
    let present = bytes(&bench, &there);
    bench.go_on_holding(&one);

    bench.begin_rollback();
    load(&bench.mount, &there).expect("rollback");
    assert_eq!(bench.mount.wait_idle(), "done\n");
    bench.go_on_holding(&present);
    bench.restart();
    bench.finish();
}

#[test]
fn the_vm_goes_back_and_forth_on_blockdev() {
    goes_back_and_forth("load-blockdev", Attachment::Blockdev);
}

#[test]
fn the_vm_goes_back_and_forth_on_a_drive() {
    goes_back_and_forth("load-drive", Attachment::Drive);
}

#[test]
fn a_vm_that_stood_still_stands_still_after_it() {
    let mut bench = Bench::with_options("load-paused", Attachment::Blockdev, &LIVE);
    save(&bench.mount, "one");
    let one = bytes(&bench, "one");
    bench.begin_rollback();
    bench.machine.qmp.run("stop", json!({}));
    load(&bench.mount, "one").expect("rollback");
    assert_eq!(bench.mount.wait_idle(), "done\n");
    assert_eq!(status(&mut bench.machine), "paused");
    bench.machine.qmp.run("cont", json!({}));
    bench.go_on_holding(&one);
    bench.finish();
}

#[test]
fn what_cannot_be_loaded_is_refused_before_anything_is_done() {
    let mut bench = Bench::with_options("load-refused", Attachment::Blockdev, &LIVE);
    save(&bench.mount, "one");
    assert_errno(load(&bench.mount, "none"), &[ENOENT]);
    let node = bench.disk().json()["node_name"].clone();
    let bitmap = json!({"node": node, "name": "b0"});
    bench
        .machine
        .qmp
        .run("block-dirty-bitmap-add", bitmap.clone());
    assert_errno(load(&bench.mount, "one"), &[EOPNOTSUPP]);
    assert!(bench.mount.text("log").contains("dirty bitmap 'b0'"));
    bench.machine.qmp.run("block-dirty-bitmap-remove", bitmap);
    bench.seal("above");
    assert_errno(load(&bench.mount, "one"), &[EOPNOTSUPP]);
    assert!(bench.mount.text("log").contains("sealed layer"));
    assert!(kept(&bench.mount).is_empty());
    assert_eq!(status(&mut bench.machine), "running");
    bench.finish();

    let bench = Bench::new("load-not-allowed", Attachment::Blockdev);
    save(&bench.mount, "one");
    assert_errno(load(&bench.mount, "one"), &[EPERM]);
    let can = bench.mount.json("vm.json")["capabilities"].to_string();
    assert!(
        can.contains("checkpoints") && !can.contains("rollback"),
        "{can}"
    );
    bench.finish();
}

/// Two disks with a checkpoint `with` that cannot be loaded: the VM of then had one device more.
struct Unloadable {
    mount: Mounted,
    machine: Machine,
    images: [PathBuf; 2],
    scratch: Scratch,
}

impl Unloadable {
    /// The disks hold 1 in the checkpoint, and 2 now.
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let dir = scratch.dir("images");
        let images = ["a.qcow2", "b.qcow2"].map(|name| dir.join(name));
        let disks = [
            Disk::qcow2("vda", &images[0]),
            Disk::qcow2("vdb", &images[1]),
        ];
        images
            .iter()
            .for_each(|image| oracle::create(image, 8 << 20));
        let device = ["-device".to_owned(), "virtio-rng-pci".to_owned()];
        let mut machine =
            Machine::start_with(&scratch, "with", Attachment::Blockdev, &disks, &device);
        write(&machine, 1);
        let mut mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &LIVE);
        save(&mount, "with");
        mount.unmount();
        machine.quit();
        // what it tidies up is where the next one is mounted
        drop(mount);

        let machine = Machine::start(&scratch, "without", Attachment::Blockdev, &disks);
        write(&machine, 2);
        let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &LIVE);
        let vm = Self {
            mount,
            machine,
            images,
            scratch,
        };
        vm.wait_for_checkpoint();
        vm
    }

    fn wait_for_checkpoint(&self) {
        let there = self.mount.path().join("checkpoints/with");
        wait::until_true("the checkpoint is there", || there.is_dir());
    }

    /// The guest runs, on what was there, and nothing is left of the load.
    fn is_as_it_was(&mut self) {
        let log = self.mount.text("log");
        assert_eq!(status(&mut self.machine), "running", "{log}");
        for disk in ["vda", "vdb"] {
            let mut found = [0; 65536];
            let mut hands = self.machine.nbd(disk);
            hands.read(0, &mut found).expect("a read");
            assert!(found == [2; 65536], "{disk} holds {}\n{log}", found[0]);
        }
        for image in &self.images {
            assert!(!oracle::marks(image).contains(&"load".to_owned()));
        }
    }
}

fn write(machine: &Machine, byte: u8) {
    for disk in ["vda", "vdb"] {
        let mut hands = machine.nbd(disk);
        hands.write(0, &[byte; 65536]).expect("a write");
        hands.flush().expect("a flush");
    }
}

/// QEMU has changed the disks when it finds that it cannot load the RAM.
#[test]
fn a_load_that_fails_half_way_leaves_the_vm_as_it_was() {
    let mut vm = Unloadable::new("load-fails");
    // who was answered before the end finds it in the job, who was not has it as his errno
    let answered = load(&vm.mount, "with");
    let told_later = answered.is_ok();
    match answered {
        Ok(()) => assert_errno(fs::read(vm.mount.path().join("wait")), &[EIO]),
        refused => assert_errno(refused, &[EIO]),
    }
    wait::until_true("its end is told", || {
        vm.mount.text("log").contains("the VM goes on as it was")
    });
    vm.is_as_it_was();
    assert_eq!(kept(&vm.mount).len(), 1);
    // what failed is dismissed once, on every disk
    if told_later {
        let job = vm.mount.disk("vda").only_job();
        fs::remove_dir(job).expect("dismissed");
    }
    assert!(vm.mount.disk("vdb").list("jobs").is_empty());
    assert_eq!(vm.mount.wait_idle(), "done\n");
}

/// Killed before and after each command of such a load: the next mount brings back what was there before the guest goes on.
#[test]
fn killed_at_every_command_of_a_load_that_fails() {
    let mut vm = Unloadable::new("load-fails-killed");
    let steps = Steps::new(&vm.scratch);
    let proxy = Proxy::new(&vm.scratch, vm.machine.qmpfs_socket(), &steps);
    vm.mount.mount_through(proxy.socket());
    for number in 0.. {
        vm.wait_for_checkpoint();
        let deed = match number % 2 {
            0 => Deed::KillBefore,
            _ => Deed::KillAfter,
        };
        steps.arm(COMMANDS, number / 2, deed, [vm.mount.pid(), 0]);
        let _ = load(&vm.mount, "with");
        let _ = fs::read(vm.mount.path().join("wait"));
        let (fired, commands) = steps.disarm();
        eprintln!("{number}: {commands:?}");
        if !fired {
            assert!(number >= 12, "stop, save, load, load and cont: {number}");
            break;
        }
        vm.mount.kill9();
        vm.mount.mount_again();
        wait::until_true("it is settled", || {
            vm.images
                .iter()
                .all(|image| !oracle::marks(image).contains(&"load".to_owned()))
        });
        vm.is_as_it_was();
        let jobs = vm.machine.qmp.run("query-jobs", json!({}));
        assert_eq!(jobs, json!([]));
        remove_kept(&vm.mount);
    }
    vm.is_as_it_was();
}

/// Whoever unmounts while the VM is on its way back does not leave it standing still, however long that takes.
#[test]
fn an_unmount_in_the_midst_of_a_load_lets_the_vm_go_on() {
    let mut bench = Bench::with_ram("load-unmount", Attachment::Blockdev, RAM, &LIVE);
    let steps = Steps::new(bench.scratch());
    let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
    bench.mount.mount_through(proxy.socket());
    bench.wait_for_disk();
    save(&bench.mount, "one");
    let one = bytes(&bench, "one");
    bench.begin_rollback();
    steps.arm(COMMANDS, usize::from(u16::MAX), Deed::Pass, [0, 0]);
    let pid = i32::try_from(bench.machine.pid()).expect("a process id");
    // SAFETY: a plain system call on a process that the test started.
    let signal = move |signal| unsafe { libc::kill(pid, signal) };
    let Bench { mount, .. } = &mut bench;
    std::thread::scope(|scope| {
        let rollback = mount.path().join("rollback");
        let asked = scope.spawn(move || write_line(&rollback, b"one\n"));
        wait::until_true("QEMU is at it", || {
            steps.seen().iter().any(|step| step == "snapshot-load")
        });
        signal(libc::SIGSTOP);
        scope.spawn(move || {
            std::thread::sleep(LONG);
            signal(libc::SIGCONT);
        });
        let _late = asked.join().expect("no panic");
        mount.unmount();
    });
    assert_eq!(status(&mut bench.machine), "running");
    assert!(!oracle::marks(&bench.active()).contains(&"load".to_owned()));
    bench.mount.mount_again();
    bench.wait_for_disk();
    bench.go_on_holding(&one);
    bench.finish();
}

/// Killed before and after each command, the VM runs again at the next mount, on disks of one moment.
#[test]
fn killed_at_every_command_of_a_load() {
    let mut bench = Bench::with_options("load-killed", Attachment::Blockdev, &LIVE);
    let steps = Steps::new(bench.scratch());
    let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
    bench.mount.mount_through(proxy.socket());
    bench.wait_for_disk();
    save(&bench.mount, "one");
    let one = bytes(&bench, "one");
    let mut number = 0;
    loop {
        bench.write(5);
        let present = bench.begin_rollback();
        // the commands of a load go out and are answered while the caller has his answer already
        let deed = match number % 2 {
            0 => Deed::KillBefore,
            _ => Deed::KillAfter,
        };
        steps.arm(COMMANDS, number / 2, deed, [bench.mount.pid(), 0]);
        let answered = load(&bench.mount, "one");
        let ended = fs::read(bench.mount.path().join("wait"));
        let (fired, commands) = steps.disarm();
        if !fired {
            assert!(answered.is_ok() && ended.is_ok(), "{commands:?}");
            bench.go_on_holding(&one);
            break;
        }
        eprintln!("{number}: {commands:?}");
        bench.mount.kill9();
        bench.mount.mount_again();
        bench.wait_for_disk();
        assert_eq!(
            status(&mut bench.machine),
            "running",
            "{}",
            bench.mount.text("log")
        );
        let jobs = bench.machine.qmp.run("query-jobs", json!({}));
        assert_eq!(jobs, json!([]));
        assert!(!oracle::marks(&bench.active()).contains(&"load".to_owned()));
        let now = bench.scratch().file("now.raw");
        let mut hands = bench.machine.nbd("vda");
        hands.flush().expect("the guest can flush");
        drop(hands);
        oracle::convert(&bench.active(), &now);
        let as_it_was = oracle::compare(&now, &present);
        let as_one = oracle::compare(&now, &one);
        assert!(
            as_it_was.is_ok() || as_one.is_ok(),
            "{as_it_was:?} {as_one:?}"
        );
        remove_kept(&bench.mount);
        bench.go_on_holding(&now);
        number += 1;
    }
    assert!(number >= 8, "stop, save, load and cont: {number}");
    bench.finish();
}

/// How many commands go before `snapshot-load`, by a load that nothing disturbs.
fn commands_before_a_load(bench: &mut Bench, steps: &Steps, expected: &Path) -> usize {
    bench.begin_rollback();
    steps.arm(COMMANDS, usize::from(u16::MAX), Deed::Pass, [0, 0]);
    load(&bench.mount, "one").expect("a load that nothing disturbs");
    bench.mount.wait_idle();
    let (_, commands) = steps.disarm();
    bench.go_on_holding(expected);
    remove_kept(&bench.mount);
    let load = commands
        .iter()
        .position(|name| name.contains("snapshot-load"));
    load.unwrap_or_else(|| panic!("no load in {commands:?}"))
}

/// Killed in the midst of a load QEMU may leave a disk of two moments; both checkpoints are whole, and the next mount
/// says which one to start with.
#[test]
fn a_qemu_killed_while_it_loads_leaves_both_checkpoints() {
    let mut bench = Bench::with_ram("load-qemu-killed", Attachment::Blockdev, RAM, &LIVE);
    let steps = Steps::new(bench.scratch());
    let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
    bench.mount.mount_through(proxy.socket());
    bench.wait_for_disk();
    save(&bench.mount, "one");
    let one = bytes(&bench, "one");
    let number = commands_before_a_load(&mut bench, &steps, &one);
    bench.write(20);
    let present = bench.begin_rollback();
    // at its answer to the command: nobody hears how far it came
    let qemu = bench.machine.pid();
    steps.arm(COMMANDS, number, Deed::KillAfter, [qemu, 0]);
    let _ = load(&bench.mount, "one");
    wait::until_true("QEMU has begun to load", || steps.fired());
    steps.disarm();
    bench.boot_after_a_fall(None);
    bench.wait_for_disk();
    wait::until_true("it is settled", || {
        !oracle::marks(&bench.active()).contains(&"load".to_owned())
    });
    wait::until_true("what was is kept", || kept(&bench.mount).len() == 1);
    let there = kept(&bench.mount).remove(0);
    let log = bench.mount.text("log");
    assert!(log.contains("start it with -loadvm"), "{log}");
    for (name, expected) in [("one", &one), (there.as_str(), &present)] {
        oracle::assert_same(&bytes(&bench, name), expected);
        oracle::assert_same(&bench.disk().internal(name).disk_raw(), expected);
    }
    bench.machine.quit();
}

/// A real guest: what it counts in its memory goes back with the files on its disk, and both fit.
#[test]
fn a_working_guest_goes_back_and_works_on() {
    let scratch = Scratch::new("load-guest");
    let dir = scratch.dir("images");
    let mut guest = Guest::boot(&scratch, &dir, Attachment::Blockdev);
    let mount = Mounted::new(&scratch, &[guest.machine.qmpfs_socket()], &LIVE);
    wait::until_true("the disk is in the mount", || mount.disk("vda").0.is_dir());
    guest.rounds(3);
    save(&mount, "early");
    let at = last_round(&guest);
    guest.rounds(6);
    let late = last_round(&guest);
    load(&mount, "early").expect("rollback");
    assert_eq!(mount.wait_idle(), "done\n");
    guest.rounds(1);
    let now = last_round(&guest);
    assert!(
        now < late && now + 2 >= at,
        "it was at {at}, at {late}, and is at {now}"
    );
    // every fourth round it reads all its files from the disk and compares
    guest.rounds(5);
    let said = json(&mount.path().join("checkpoints/early/point.json"));
    println!(
        "{} MiB of RAM",
        said["vm_state_size"].as_u64().unwrap_or(0) >> 20
    );
    println!("{}", mount.text("log"));
    guest.shut_down();
    oracle::check(guest.disk());
    fsck_clean(&scratch, guest.disk());
}

fn last_round(guest: &Guest) -> u64 {
    let said = fs::read(guest.console()).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).into_owned();
    let mut rounds = said.lines().rev();
    rounds
        .find_map(|line| line.trim().strip_prefix("ROUND ")?.parse().ok())
        .expect("it has done a round")
}
