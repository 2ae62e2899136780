//! The faults that a person's machine has in store, one after the other, where no other file asks about them.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use libc::{EBUSY, EIO, ENOTCONN};
use qmpfs_tests::bench::{Bench, SIZE};
use qmpfs_tests::faults::{SmallFilesystem, names};
use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::qmp::Qmp;
use qmpfs_tests::sample::Share;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::steps::{COMMANDS, Deed, FILES, Steps};
use qmpfs_tests::tree::{DiskDir, assert_errno};
use qmpfs_tests::{oracle, sh, wait};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// Fills `range`, in MiB, with one byte.
fn write(machine: &Machine, disk: &str, range: std::ops::Range<u64>, byte: u8) {
    let mut guest = machine.nbd(disk);
    let bytes = vec![byte; 1 << 20];
    for megabyte in range {
        guest
            .write(megabyte * MIB, &bytes)
            .expect("the guest writes");
    }
    guest.flush().expect("the guest flushes");
}

/// What the guest reads now, as a file.
fn read_all(machine: &Machine, scratch: &Scratch, name: &str) -> std::path::PathBuf {
    let mut guest = machine.nbd("vda");
    let mut all = vec![0; usize::try_from(guest.size()).expect("small")];
    for (i, piece) in all.chunks_mut(1 << 20).enumerate() {
        guest
            .read(i as u64 * MIB, piece)
            .expect("the guest can read");
    }
    let file = scratch.file(name);
    fs::write(&file, all).expect("our own file");
    file
}

over_attachments! {
    /// Not one event arrives: every verb works, and every job's end is seen.
    no_event_ever_arrives => |name, attachment| {
        let mut bench = Bench::new(name, attachment);
        let steps = Steps::new(bench.scratch());
        let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
        proxy.lose_events();
        bench.mount.mount_through(proxy.socket());
        bench.wait_for_disk();
        for (victim, lower, upper) in [("streamed", 4, 200), ("committed", 200, 4)] {
            bench.write(lower);
            bench.seal(victim);
            bench.write(upper);
            let above = format!("{victim}-above");
            bench.seal(&above);
            bench.remove(victim);
            bench.remove(&above);
        }
        bench.disk().internal("inside").make().expect("mkdir internal");
        bench.disk().internal("inside").delete().expect("rmdir internal");
        bench.restart();
        bench.finish();
    }
}

/// The filesystem fills up in the middle of a merge: the guest goes on, the job says why it failed, the other points
/// are right all the while, and with room again the merge can be done.
fn the_filesystem_fills_in_mid_merge(name: &str, policy: &str) {
    let scratch = Scratch::new(name);
    let Some(small) = SmallFilesystem::new(&scratch, 320) else {
        return;
    };
    let image = small.path().join("web1.qcow2");
    oracle::create(&image, 96 * MIB);
    let disks = [Disk::qcow2("vda", &image)];
    let mut machine = Machine::start(&scratch, "vm", Attachment::Blockdev, &disks);
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &["-o", policy]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    for (point, range) in [("low", 0..48), ("high", 40..88)] {
        write(&machine, "vda", range, point.as_bytes()[0]);
        disk.snapshot(point).make().expect("mkdir");
    }
    write(&machine, "vda", 88..96, b'x'); // the guest's own room is taken before the filesystem is full
    let high = scratch.file("high.raw");
    oracle::convert(&small.path().join("web1.high.qcow2"), &high);
    let before = read_all(&machine, &scratch, "before.raw");

    disk.snapshot("low").delete().expect("rmdir");
    if machine.limit_jobs(MIB) == 0 {
        eprintln!("{name}: the merge was faster than the test");
        return;
    }
    small.fill_but(0);
    machine.limit_jobs(0);
    let failed = wait::until("the job has failed", || {
        let jobs = disk.0.join("jobs");
        let job = names(&jobs).into_iter().next()?;
        let error = fs::read_to_string(jobs.join(&job).join("error")).ok()?;
        (!error.trim().is_empty()).then_some((jobs.join(job), error))
    });
    assert!(failed.1.contains("No space"), "{}", failed.1);
    assert_errno(disk.wait(), &[EIO]);
    let status = machine.qmp.run("query-status", serde_json::json!({}));
    assert_eq!(status["running"], true, "the VM goes on");
    oracle::assert_same(&read_all(&machine, &scratch, "during.raw"), &before);
    oracle::assert_same(&disk.snapshot("high").disk_raw(), &high);

    small.make_room();
    if disk.snapshot("low").exists() {
        disk.snapshot("low").delete_when_closed();
    } else {
        // a commit has changed the point already: it is taken up again, at the latest by the next mount
        let mut mount = mount;
        mount.kill9();
        mount.mount_again();
        wait::until_true("the disk is back", || mount.disk("vda").0.is_dir());
        finish(
            &mut machine,
            &mount.disk("vda"),
            &scratch,
            [&image, &high, &before],
        );
        return;
    }
    finish(&mut machine, &disk, &scratch, [&image, &high, &before]);
}

fn finish(
    machine: &mut Machine,
    disk: &DiskDir,
    scratch: &Scratch,
    [image, high, before]: [&std::path::PathBuf; 3],
) {
    disk.wait().expect("with room the merge ends");
    wait::until_true("one point is left", || disk.list("snapshots") == ["high"]);
    oracle::assert_same(&disk.snapshot("high").disk_raw(), high);
    oracle::assert_same(&read_all(machine, scratch, "after.raw"), before);
    machine.quit();
    assert_eq!(oracle::chain(image).len(), 2);
    let after = scratch.file("off.raw");
    oracle::convert(image, &after);
    oracle::assert_same(&after, before);
}

/// Through proxies of one process two VMs look like one; while the guest of one is stopped, the other's can be.
#[test]
fn guests_behind_one_proxy_are_stopped_apart() {
    let behind = |name: &str| {
        let mut bench = Bench::new(name, Attachment::Drive);
        let steps = Steps::new(bench.scratch());
        let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
        bench.mount.mount_through(proxy.socket());
        bench.wait_for_disk();
        (bench, steps)
    };
    let ((mut held, steps), (mut other, _)) = (behind("proxy-held"), behind("proxy-other"));
    steps.arm(COMMANDS, usize::from(u16::MAX), Deed::Pass, [0, 0]);
    held.seal("first");
    let (_, commands) = steps.disarm();
    let cont = commands.iter().position(|name| name.contains("cont"));
    let cont = cont.unwrap_or_else(|| panic!("nobody was stopped: {commands:?}"));
    steps.arm(COMMANDS, cont, Deed::Silence, [0, 0]);
    thread::scope(|scope| {
        let path = held.disk().snapshot("second").0;
        let caller = scope.spawn(move || fs::create_dir(path));
        wait::until_true("the guest is stopped", || steps.fired());
        other.seal("meanwhile");
        assert!(!caller.is_finished(), "the guest is stopped still");
        let _ = caller.join().expect("the caller");
    });
    steps.disarm();
    wait::until_true("the guest goes on", || {
        let status = held.machine.qmp.run("query-status", serde_json::json!({}));
        status["running"] == true
    });
    other.finish();
}

#[test]
fn the_filesystem_fills_in_mid_stream() {
    the_filesystem_fills_in_mid_merge("full-stream", "merge=stream");
}

#[test]
fn the_filesystem_fills_in_mid_commit() {
    the_filesystem_fills_in_mid_merge("full-commit", "merge=commit");
}

over_attachments! {
    /// Two VMs on one template, both mounted, both merging at the same time: neither touches it, nor the other.
    two_vms_on_one_template => |name, attachment| {
        let scratch = Scratch::new(name);
        let template = scratch.dir("templates").join("debian.qcow2");
        oracle::create(&template, SIZE);
        sh!("qemu-io -f qcow2 -c 'write -P 7 0 8M' {} >/dev/null", template.display());
        let before = sh!("sha256sum {}", template.display());
        let mut benches: Vec<Bench> = ["a", "b"].iter().map(|vm| {
            let own = Scratch::new(&format!("{name}-{vm}"));
            let dir = own.dir("images");
            oracle::create_overlay(&dir.join("web1.qcow2"), &template, SIZE);
            for megabyte in 0..8 {
                // the bench's own model begins with zeros
                sh!("qemu-io -f qcow2 -c 'write -z {megabyte}M 1M' {} >/dev/null", dir.join("web1.qcow2").display());
            }
            Bench::on(own, dir, vec![template.clone()], attachment, &[])
        }).collect();
        for bench in &mut benches {
            for (point, blocks) in [("one", 60), ("two", 4)] {
                bench.write(blocks);
                bench.seal(point);
            }
        }
        for victim in ["one", "two"] {
            thread::scope(|scope| {
                let merges: Vec<_> = benches.iter_mut().map(|bench| scope.spawn(|| bench.remove(victim))).collect();
                for merge in merges {
                    merge.join().expect("the merge is right");
                }
            });
        }
        assert_eq!(sh!("sha256sum {}", template.display()), before);
        for mut bench in benches {
            assert_eq!(oracle::chain(&bench.active()), [bench.active(), template.clone()]);
            bench.restart();
            bench.finish();
        }
    }
}

#[test]
fn a_hundred_readers_during_merges_read_every_byte() {
    let mut bench = Bench::new("survive-readers", Attachment::Blockdev);
    for point in ["one", "two", "three"] {
        bench.write(80);
        bench.seal(point);
    }
    let expected = fs::read(bench.bytes_of("three")).expect("the bytes");
    let view = bench.point("three").disk_raw();
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..100usize)
            .map(|reader| {
                let (view, expected, done) = (&view, &expected, &done);
                scope.spawn(move || {
                    let mut rounds = 0;
                    while rounds == 0 || !done.load(std::sync::atomic::Ordering::SeqCst) {
                        let file = File::open(view).expect("the view opens");
                        let piece = expected.len() / 100;
                        let mut read = vec![0; piece];
                        for turn in 0..8 {
                            let at = (reader + turn * 13) % 100 * piece;
                            std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, at as u64)
                                .expect("the view is read");
                            assert!(read == expected[at..at + piece], "at {at}");
                        }
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        for victim in ["two", "one"] {
            bench.begin_removal(victim);
            bench.disk().wait().expect("the merge");
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        let rounds: usize = readers.into_iter().map(|r| r.join().expect("right")).sum();
        println!("{rounds} rounds of 100 readers");
    });
    bench.verify();
    bench.finish();
}

#[test]
fn a_monitor_taken_while_qemu_was_away_is_taken_back_when_it_is_free() {
    let mut bench = Bench::new("survive-taken", Attachment::StorageDaemon);
    bench.seal("one");
    let expected = bench.bytes_of("one").to_path_buf();
    bench.flush();
    bench.writer().expect_the_end();
    bench.machine.kill9();
    assert_errno(bench.point("two").make(), &[ENOTCONN]);
    bench.boot_after_a_fall(None);
    bench.wait_for_disk();
    // now somebody else is faster
    let mut machine_is_back = false;
    for _ in 0..10 {
        bench.flush();
        bench.writer().expect_the_end();
        bench.machine.kill9();
        wait::until_true("it is noticed", || !bench.mount_is_connected());
        bench.boot_after_a_fall(None);
        let taken = Qmp::try_connect(bench.machine.qmpfs_socket(), Duration::from_secs(1));
        if let Some(holder) = taken {
            assert_errno(bench.point("two").make(), &[ENOTCONN, EBUSY]);
            oracle::assert_same(&bench.point("one").disk_raw(), &expected);
            drop(holder);
            machine_is_back = true;
            break;
        }
    }
    if !machine_is_back {
        eprintln!("left out: qmpfs was faster ten times");
    }
    bench.wait_for_disk();
    bench.seal("two");
    bench.remove("one");
    bench.finish();
}

#[test]
fn a_thousand_internal_points_are_a_thousand_points() {
    // QEMU writes the whole table at each, a piece at a time: a thousand take it a minute and a half
    let all: u32 = match Share::asked_for() {
        Share::Full => 1000,
        Share::Everyday | Share::Rounds(_) | Share::Kills => 300,
    };
    let scratch = Scratch::new("survive-thousand");
    let image = scratch.dir("images").join("web1.qcow2");
    // most of them by QEMU itself, in memory, which is quick; ours come on top
    let many = all - 10;
    let memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let quick = memory.path().join("web1.qcow2");
    oracle::create(&quick, 4 * MIB);
    let disks = [Disk::qcow2("vda", &quick)];
    let mut machine = Machine::start(&scratch, "maker", Attachment::StorageDaemon, &disks);
    let blocks = machine
        .qmp
        .run("query-named-block-nodes", json!({"flat": true}));
    let nodes = blocks.as_array().expect("a list");
    let node = nodes.iter().find(|node| node["drv"] == "qcow2");
    let node = node.expect("the disk's node")["node-name"].clone();
    for i in 1..=many {
        machine.qmp.run(
            "blockdev-snapshot-internal-sync",
            json!({"device": node, "name": format!("p{i}")}),
        );
    }
    machine.quit();
    fs::copy(&quick, &image).expect("a copy of the image");
    drop(memory);
    let disks = [Disk::qcow2("vda", &image)];
    let machine = Machine::start(&scratch, "vm", Attachment::StorageDaemon, &disks);
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &[]);
    let disk = mount.disk("vda");
    wait::until_true("the disk is in the mount", || disk.0.is_dir());
    for i in many + 1..=all {
        write(&machine, "vda", 0..1, u8::try_from(i % 200).expect("small"));
        disk.internal(&format!("p{i}")).make().expect("mkdir");
    }
    assert_eq!(disk.list("internal").len(), all as usize);
    let expected = scratch.file("expected.raw");
    for i in [1, all / 2, many, many + 5, all] {
        oracle::convert_internal(&image, &format!("p{i}"), &expected);
        oracle::assert_same(&disk.internal(&format!("p{i}")).disk_raw(), &expected);
    }
    disk.internal(&format!("p{}", all / 2)).delete_when_closed();
    assert_eq!(disk.list("internal").len(), all as usize - 1);
}

#[test]
fn nobody_else_sees_the_disk() {
    if !sh::is_root() {
        eprintln!("left out: becoming somebody else needs root");
        return;
    }
    let mut bench = Bench::new("survive-others", Attachment::StorageDaemon);
    bench.seal("one");
    let view = bench.point("one").disk_raw();
    for path in [bench.mount.path().to_path_buf(), view] {
        let mut other = Command::new("head");
        other.args(["-c", "1"]).arg(&path).uid(65534).gid(65534);
        let output = other.output().expect("head can be started");
        assert!(!output.status.success() && output.stdout.is_empty());
    }
    bench.finish();
}

/// The directory can be read only just after a merge was written down: the rmdir says so, and the point stays.
#[test]
fn a_refused_merge_is_not_begun_later() {
    let options = ["-o", "merge=commit"];
    let mut bench = Bench::with_options("survive-refused", Attachment::StorageDaemon, &options);
    let steps = Steps::new(bench.scratch());
    let environment = steps.environment(bench.dir());
    bench.mount.set_environment(environment);
    bench.mount.kill9();
    bench.mount.mount_again();
    bench.wait_for_disk();
    bench.seal("one");
    bench.write(8);
    // the journal is set and synced; what comes next, the alias of the new active layer, fails, and all after it
    let erofs = libc::EROFS.unsigned_abs();
    steps.arm(FILES, 2, Deed::FailFrom(erofs), [0, 0]);
    assert_errno(bench.point("one").delete(), &[libc::EROFS]);
    let (_, seen) = steps.disarm();
    assert!(seen[2].starts_with("link "), "{seen:?}");
    wait::until_true("it is written down no more", || {
        bench.work_written_down().is_empty()
    });
    bench.verify();
    bench.remove("one");
    bench.finish();
}
