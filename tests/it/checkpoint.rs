//! `mkdir checkpoints/NAME`: the disks and the RAM of a running VM, beside a writer that never stops.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libc::{EBUSY, EEXIST, EINVAL, EOPNOTSUPP};
use qmpfs_tests::bench::{Bench, SIZE, WRITERS};
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::{Mounted, program};
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::steps::{COMMANDS, Deed, FILES, Steps};
use qmpfs_tests::tree::{assert_errno, json, text};
use qmpfs_tests::{oracle, sh, wait};
use serde_json::{Value, json};

/// So much RAM takes long enough to be saved that a test meets QEMU at it.
pub(crate) const RAM: usize = 128 << 20;

pub(crate) fn checkpoint(mount: &Mounted, name: &str) -> PathBuf {
    mount.path().join("checkpoints").join(name)
}

pub(crate) fn what(mount: &Mounted, name: &str) -> Value {
    json(&checkpoint(mount, name).join("point.json"))
}

/// `mkdir checkpoints/NAME`, and waits until it is saved.
#[track_caller]
pub(crate) fn save(mount: &Mounted, name: &str) {
    fs::create_dir(checkpoint(mount, name))
        .unwrap_or_else(|e| panic!("mkdir {name}: {e}\n{}", mount.text("log")));
    mount.wait_idle();
    assert_eq!(what(mount, name)["state"], "saved", "{}", mount.text("log"));
}

/// Ids of jobs that QEMU knows.
fn jobs(machine: &mut Machine) -> usize {
    let jobs = machine.qmp.run("query-jobs", json!({}));
    jobs.as_array().map_or(0, Vec::len)
}

/// Made under load, with the bytes of one instant; kept through writes and a restart; removed.
fn comes_and_goes(name: &str, attachment: Attachment) {
    let mut bench = Bench::new(name, attachment);
    bench.write(20);
    let mut expected = Vec::new();
    for point in ["one", "two"] {
        bench.writer().progress(5);
        let before = bench.writer().acknowledged();
        bench.writer().step(&format!("mkdir checkpoints/{point}"));
        save(&bench.mount, point);
        let after = bench.writer().sent();
        let raw = bench.scratch().file(&format!("{point}.expected"));
        oracle::convert_internal(&bench.active(), point, &raw);
        before.assert_between(&after, &raw, WRITERS..SIZE);
        expected.push((point, raw));
        bench.write(20);
        bench.verify();
    }
    let said = what(&bench.mount, "one");
    assert_eq!(said["complete"], true, "{said:#}");
    assert_eq!(said["loadable"], true, "{said:#}");
    assert_eq!(said["disks"], json!(["vda"]));
    assert!(said["vm_state_size"].as_u64() > Some(100 << 10), "{said:#}");
    assert_eq!(said["missing"], json!(["firmware variables", "tpm"]));
    let part = bench.disk().internal("one");
    assert_eq!(part.json()["checkpoint"], "one");
    assert_eq!(part.json()["time"], said["time"]);
    let link = checkpoint(&bench.mount, "one").join("vda");
    let target = fs::read_link(&link).expect("a link");
    assert_eq!(target, Path::new("../../disks/vda/internal/one"));
    assert_errno(fs::create_dir(checkpoint(&bench.mount, "one")), &[EEXIST]);
    assert_errno(bench.disk().internal("one").make(), &[EEXIST]);
    assert_errno(bench.disk().internal("one").delete(), &[EBUSY]);
    let tree = bench.mount.path().join("checkpoints");
    sh::attempt(&format!("rm -rf {0}/one; find {0} -delete", tree.display()));
    assert_eq!(
        names(&tree),
        ["one", "two"],
        "a recursive delete destroys nothing"
    );

    bench.restart();
    assert_eq!(
        names(&bench.mount.path().join("checkpoints")),
        ["one", "two"]
    );
    for (point, raw) in &expected {
        oracle::assert_same(&checkpoint(&bench.mount, point).join("vda/disk.raw"), raw);
    }
    let reader = fs::File::open(link.join("disk.raw")).expect("a reader");
    assert_errno(fs::remove_dir(checkpoint(&bench.mount, "one")), &[EBUSY]);
    drop(reader);
    wait::until_true("it is removed", || {
        fs::remove_dir(checkpoint(&bench.mount, "one")).is_ok()
    });
    bench.mount.wait_idle();
    assert_eq!(names(&bench.mount.path().join("checkpoints")), ["two"]);
    assert_eq!(bench.disk().list("internal"), ["two"]);
    oracle::assert_same(&bench.disk().internal("two").disk_raw(), &expected[1].1);
    assert_eq!(jobs(&mut bench.machine), 0, "nothing is left in QEMU");
    assert!(bench.disk().list("jobs").is_empty());
    bench.verify();
    bench.finish();
}

#[test]
fn a_checkpoint_comes_and_goes_on_blockdev() {
    comes_and_goes("checkpoint-blockdev", Attachment::Blockdev);
}

#[test]
fn a_checkpoint_comes_and_goes_on_a_drive() {
    comes_and_goes("checkpoint-drive", Attachment::Drive);
}

#[test]
fn a_checkpoint_comes_and_goes_below_a_throttle() {
    comes_and_goes("checkpoint-throttled", Attachment::BlockdevThrottled);
}

#[test]
fn a_storage_daemon_has_no_ram_to_save() {
    let bench = Bench::new("checkpoint-qsd", Attachment::StorageDaemon);
    let refused = fs::create_dir(checkpoint(&bench.mount, "one"));
    assert_errno(refused, &[EOPNOTSUPP]);
    let can = bench.mount.json("vm.json")["capabilities"].clone();
    assert!(!can.to_string().contains("checkpoints"), "{can}");
    bench.finish();
}

/// Two disks on one mount, of which the second one comes first in the alphabet.
struct Two {
    mount: Mounted,
    machine: Machine,
    dir: PathBuf,
    _scratch: Scratch,
}

impl Two {
    fn new(name: &str, second: fn(&str, &Path) -> Disk) -> Self {
        let scratch = Scratch::new(name);
        let dir = scratch.dir("images");
        let images = ["zz.qcow2", "aa.qcow2"].map(|name| dir.join(name));
        oracle::create(&images[0], 8 << 20);
        oracle::create(&images[1], 8 << 20);
        let disks = [Disk::qcow2("vdz", &images[0]), second("vda", &images[1])];
        let machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
        let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
        wait::until_true("the disks are there", || {
            names(&mount.path().join("disks")) == ["vda", "vdz"]
        });
        Two {
            mount,
            machine,
            dir,
            _scratch: scratch,
        }
    }

    fn hmp(&mut self, line: &str) -> String {
        let said = self
            .machine
            .qmp
            .run("human-monitor-command", json!({"command-line": line}));
        said.as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn the_ram_lies_where_loadvm_looks_for_it() {
    let mut two = Two::new("checkpoint-two", Disk::qcow2);
    save(&two.mount, "both");
    let said = what(&two.mount, "both");
    assert_eq!(said["disks"], json!(["vda", "vdz"]));
    assert!(said["vm_state_sizes"]["vdz"].as_u64() > Some(0), "{said:#}");
    assert_eq!(said["vm_state_sizes"]["vda"], 0);
    let part = two.mount.disk("vda").internal("both").json();
    assert_eq!(part["same_instant"], json!(["vda", "vdz"]));
    assert_eq!(two.hmp("loadvm both"), "");
    let status = two.machine.qmp.run("query-status", json!({}));
    assert_eq!(status["status"], "running");
}

#[test]
fn what_others_saved_is_a_checkpoint_and_what_is_half_there_says_so() {
    let mut two = Two::new("checkpoint-others", Disk::qcow2);
    assert_eq!(two.hmp("savevm theirs"), "");
    wait::until_true("it is listed", || checkpoint(&two.mount, "theirs").is_dir());
    assert_eq!(what(&two.mount, "theirs")["complete"], true);
    // as QEMU leaves it when it is killed between the disks
    let id = json!({"device": "vda-node", "name": "theirs"});
    two.machine
        .qmp
        .run("blockdev-snapshot-delete-internal-sync", id);
    // QEMU tells nobody of that: a listing looks
    wait::until_true("the part is gone", || {
        names(&two.mount.path().join("checkpoints")) == ["theirs"]
            && what(&two.mount, "theirs")["gone"] == json!(["vda"])
    });
    let said = what(&two.mount, "theirs");
    assert_eq!(said["loadable"], false);
    let missing = said["missing"].to_string();
    assert!(missing.contains("disk vda"), "{missing}");
    fs::remove_dir(checkpoint(&two.mount, "theirs")).expect("rmdir");
    two.mount.wait_idle();
    assert!(two.mount.disk("vdz").list("internal").is_empty());
}

#[test]
fn a_disk_that_takes_no_internal_snapshot_is_named() {
    let two = Two::new("checkpoint-raw", |name, image| {
        fs::write(image, vec![0; 1 << 20]).expect("a raw image");
        Disk::raw(name, image)
    });
    let refused = fs::create_dir(checkpoint(&two.mount, "one"));
    assert_errno(refused, &[EOPNOTSUPP]);
    let log = two.mount.text("log");
    assert!(log.contains("disk 'vda'") && log.contains("raw"), "{log}");
    assert!(names(&two.mount.path().join("checkpoints")).is_empty());
}

#[test]
fn a_number_is_no_name_as_qemu_would_load_another() {
    let mut two = Two::new("checkpoint-number", Disk::qcow2);
    assert_errno(fs::create_dir(checkpoint(&two.mount, "1")), &[EINVAL]);
    assert_eq!(two.hmp("savevm theirs"), "");
    assert_eq!(two.hmp("savevm 1"), "");
    wait::until_true("it is listed", || checkpoint(&two.mount, "1").is_dir());
    let said = what(&two.mount, "1");
    assert_eq!(said["loadable"], false, "{said:#}");
    assert_eq!(what(&two.mount, "theirs")["loadable"], true);
}

#[test]
fn a_checkpoint_below_a_snapshot_is_there_and_stays() {
    let two = Two::new("checkpoint-sealed", Disk::qcow2);
    save(&two.mount, "below");
    let raw = two.dir.join("below.expected");
    oracle::convert_internal(&two.dir.join("aa.qcow2"), "below", &raw);
    fs::create_dir(two.mount.path().join("snapshots/above")).expect("mkdir snapshots/above");
    let said = what(&two.mount, "below");
    assert_eq!(said["complete"], true, "{said:#}");
    assert_eq!(said["loadable"], false, "{said:#}");
    let why = said["why_not"].to_string();
    assert!(why.contains("sealed"), "{why}");
    oracle::assert_same(&checkpoint(&two.mount, "below").join("vda/disk.raw"), &raw);
    assert_errno(
        fs::remove_dir(checkpoint(&two.mount, "below")),
        &[EOPNOTSUPP],
    );
    // another one in the active layers
    save(&two.mount, "on-top");
    assert_eq!(what(&two.mount, "on-top")["loadable"], true);
    fs::remove_dir(checkpoint(&two.mount, "on-top")).expect("rmdir");
    two.mount.wait_idle();
    assert_eq!(names(&two.mount.path().join("checkpoints")), ["below"]);
}

/// Sends a signal to QEMU.
fn signal(machine: &Machine, signal: i32) {
    let pid = machine.pid().cast_signed();
    // SAFETY: a plain system call on a process that this test started.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Begins to save, and stops QEMU in the midst of it. Gives the thread that waits for its mkdir.
pub(crate) fn stopped_in_the_midst(
    bench: &Bench,
    name: &str,
) -> std::thread::JoinHandle<std::io::Result<()>> {
    bench.writer().progress(5);
    let events = bench.mount.path().join("events");
    let stops = |events: &Path| text(events).matches("\"STOP\"").count();
    let before = stops(&events);
    let path = checkpoint(&bench.mount, name);
    let caller = std::thread::spawn(move || fs::create_dir(path));
    wait::until_true("QEMU has begun to save", || stops(&events) > before);
    signal(&bench.machine, libc::SIGSTOP);
    caller
}

#[test]
fn nobody_waits_for_a_qemu_that_saves() {
    let mut bench = Bench::with_ram("checkpoint-busy", Attachment::Blockdev, RAM, &[]);
    bench.seal("before");
    let caller = stopped_in_the_midst(&bench, "big");
    let began = Instant::now();
    caller
        .join()
        .expect("the caller")
        .expect("mkdir returns when QEMU is at work");
    let mount = &bench.mount;
    assert_eq!(what(mount, "big")["state"], "saving");
    assert_eq!(names(&mount.path().join("checkpoints")), ["big"]);
    let job = bench.disk().only_job();
    assert_eq!(text(&job.join("state")), "running\n");
    assert_eq!(json(&job.join("progress"))["verb"], "snapshot-save");
    let looked = Instant::now();
    for _ in 0..20 {
        bench.disk().list("snapshots");
        bench.disk().list("internal");
        mount.json("vm.json");
        bench.disk().json();
    }
    assert!(
        looked.elapsed() < Duration::from_secs(2),
        "listings do not wait: {:?}",
        looked.elapsed()
    );
    for refused in [
        bench.point("later").make(),
        bench.point("before").delete(),
        bench.disk().internal("later").make(),
        fs::create_dir(mount.snapshots("later")),
        fs::create_dir(checkpoint(mount, "later")),
        fs::remove_dir(checkpoint(mount, "big")),
        fs::remove_dir(&job),
    ] {
        assert_errno(refused, &[EBUSY]);
    }
    oracle::assert_same(&bench.point("before").disk_raw(), bench.bytes_of("before"));
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    signal(&bench.machine, libc::SIGCONT);
    let output = sh!(
        "{} wait -q {}",
        program().display(),
        checkpoint(mount, "big").display()
    );
    assert_eq!(output, "");
    assert_eq!(mount.wait_idle(), "done\n");
    let said = what(&bench.mount, "big");
    assert_eq!(said["state"], "saved", "{}", bench.mount.text("log"));
    assert!(
        said["vm_state_size"].as_u64() > Some(RAM as u64),
        "{said:#}"
    );
    bench.write(3);
    bench.verify();
    bench.finish();
}

#[test]
fn a_daemon_killed_while_qemu_saves_finds_the_checkpoint() {
    let mut bench = Bench::with_ram("checkpoint-killed", Attachment::Blockdev, RAM, &[]);
    let caller = stopped_in_the_midst(&bench, "big");
    bench.mount.kill9();
    assert!(caller.join().is_ok());
    signal(&bench.machine, libc::SIGCONT);
    wait::until_true("QEMU has saved", || {
        bench.machine.qmp.run("query-status", json!({}))["status"] == "running"
    });
    bench.mount.mount_again();
    bench.wait_for_disk();
    assert_eq!(what(&bench.mount, "big")["complete"], true);
    assert_eq!(jobs(&mut bench.machine), 0, "the job was dismissed");
    save(&bench.mount, "next");
    bench.verify();
    bench.finish();
}

/// What is done to a checkpoint while qmpfs is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Make,
    Remove,
}

/// Killed before and after each step: the next mount finds the whole checkpoint or none, no job, and the VM running.
fn killed_at_every_step(name: &str, verb: Verb) {
    let mut bench = Bench::new(name, Attachment::Blockdev);
    let steps = Steps::new(bench.scratch());
    bench.mount.set_environment(steps.environment(bench.dir()));
    let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
    bench.mount.mount_through(proxy.socket());
    bench.wait_for_disk();
    save(&bench.mount, "kept");
    let mut round = 0;
    for deed in [Deed::KillBefore, Deed::KillAfter] {
        for number in 0.. {
            round += 1;
            let name = format!("n{round}");
            let path = checkpoint(&bench.mount, &name);
            if verb == Verb::Remove {
                save(&bench.mount, &name);
            }
            bench.write(2);
            bench.writer().progress(3);
            steps.arm(COMMANDS | FILES, number, deed, [bench.mount.pid(), 0]);
            let answer = match verb {
                Verb::Make => fs::create_dir(&path),
                Verb::Remove => fs::remove_dir(&path),
            };
            let _ = fs::read(bench.mount.path().join("wait"));
            let (fired, seen) = steps.disarm();
            println!(
                "{deed:?} at step {number}, {:?}: {answer:?}",
                seen.get(number)
            );
            if fired {
                bench.mount.kill9();
                bench.mount.mount_again();
                bench.wait_for_disk();
            } else {
                answer.expect("undisturbed it works");
                assert_eq!(path.is_dir(), verb == Verb::Make);
            }
            wait::until_true("no job is left", || jobs(&mut bench.machine) == 0);
            let status = bench.machine.qmp.run("query-status", json!({}));
            assert_eq!(status["status"], "running");
            for there in names(&bench.mount.path().join("checkpoints")) {
                let said = what(&bench.mount, &there);
                assert_eq!(said["complete"], true, "{said:#}");
                let raw = bench.scratch().file("now.raw");
                oracle::convert_internal(&bench.active(), &there, &raw);
                oracle::assert_same(&bench.disk().internal(&there).disk_raw(), &raw);
            }
            if path.is_dir() {
                wait::until_true("it is removed", || fs::remove_dir(&path).is_ok());
                bench.mount.wait_idle();
            }
            assert_eq!(names(&bench.mount.path().join("checkpoints")), ["kept"]);
            bench.verify();
            if !fired {
                assert!(!seen.is_empty(), "no step was seen");
                break;
            }
        }
    }
    bench.restart();
    bench.finish();
}

#[test]
fn killed_at_every_step_of_a_mkdir() {
    killed_at_every_step("checkpoint-kill-make", Verb::Make);
}

#[test]
fn killed_at_every_step_of_a_rmdir() {
    killed_at_every_step("checkpoint-kill-remove", Verb::Remove);
}
