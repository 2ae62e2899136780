//! Points with the guest frozen by its agent: that it is frozen then and thawed afterwards, whatever the agent does,
//! and that nobody is told so who should not be. The agent is one that a test tells how to behave; a real one is in
//! `guest`.

use std::time::{Duration, Instant, SystemTime};

use libc::{EIO, ENOTCONN, ETIMEDOUT, SIGCONT, SIGKILL, SIGSTOP, SIGTERM};
use qmpfs_tests::agent::{FakeAgent, Manner, When};
use qmpfs_tests::bench::Bench;
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::sample;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::several::{SEALED, Several};
use qmpfs_tests::steps::{COMMANDS, Deed, Steps};
use qmpfs_tests::tree::{Point, assert_errno};
use qmpfs_tests::{oracle, sh, wait};
use serde_json::{Value, json};

/// A verb whose agent fails it is answered within this time, even on a busy host.
const PROMPT: Duration = Duration::from_secs(15);
/// No guest may be frozen for longer.
const FROZEN_MAX: Duration = Duration::from_secs(10);

fn bench(name: &str, attachment: Attachment, agent: &FakeAgent, quiesce: &str) -> Bench {
    let option = format!("{},quiesce={quiesce}", agent.option());
    Bench::with_options(name, attachment, &["-o", &option])
}

/// The point was made with a frozen guest, and says so.
#[track_caller]
fn assert_frozen(point: &Point, log: &str) {
    let said = point.json();
    assert_eq!(said["consistency"], "filesystem", "{said}\n{log}");
    assert!(said["frozen_ms"].is_u64(), "{said}");
    assert_eq!(said["quiesce_error"], Value::Null, "{said}");
}

/// The point was made without, and says why.
#[track_caller]
fn assert_crash(point: &Point, why: &str) {
    let said = point.json();
    assert_eq!(said["consistency"], "crash", "{said}");
    let error = said["quiesce_error"].as_str().unwrap_or_default();
    assert!(error.contains(why), "{error:?} must say {why:?}");
}

#[track_caller]
fn wait_thawed(agent: &FakeAgent) {
    wait::until_true("the guest is thawed", || !agent.frozen());
}

/// Nothing is left of a freeze: no note on any file.
#[track_caller]
fn assert_no_note(bench: &Bench) {
    wait::until_true("no file carries the note of a freeze", || {
        names(bench.dir())
            .iter()
            .all(|name| oracle::freeze_note(&bench.dir().join(name)).is_none())
    });
}

fn nanos(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_nanos()
}

over_attachments! {
    /// Two external points and an internal one: each between a freeze and a thaw, by the clock.
    a_point_is_made_while_the_guest_is_frozen => |name, attachment| {
        let agent = FakeAgent::new(name, Manner::Good);
        let mut bench = bench(name, attachment, &agent, "require");
        for point in ["one", "two"] {
            bench.write(4);
            bench.seal(point);
            assert_frozen(&bench.point(point), &bench.mount.text("log"));
        }
        let internal = bench.disk().internal("inside");
        internal.make().expect("mkdir internal");
        assert_frozen(&internal, &bench.mount.text("log"));
        assert!(!agent.frozen());
        assert_eq!((agent.freezes().len(), agent.thaws().len()), (3, 3));
        let points = [bench.point("one"), bench.point("two"), internal];
        for (index, point) in points.iter().enumerate() {
            let (freeze, thaw) = (nanos(agent.freezes()[index]), nanos(agent.thaws()[index]));
            let time = sh!("date -d {} +%s%N", point.json()["time"].as_str().expect("a time"))
                .parse::<u128>()
                .expect("nanoseconds");
            // point.json has milliseconds
            assert!(freeze / 1_000_000 * 1_000_000 <= time && time <= thaw, "{freeze} {time} {thaw}");
        }
        let vm = bench.mount.json("vm.json");
        assert_eq!(vm["quiesce"], "require");
        assert_eq!(vm["guest_agent_state"], "answers");
        assert_eq!(vm["guest_agent_version"], "9.9.9");
        assert!(bench.mount.text("log").contains("the guest was frozen for "));
        assert_no_note(&bench);
        // what was written down is there at the next mount, and goes with its point
        bench.mount.unmount();
        bench.mount.mount_again();
        bench.wait_for_disk();
        assert_frozen(&bench.disk().internal("inside"), "");
        assert_frozen(&bench.point("one"), "");
        bench.disk().internal("inside").delete().expect("rmdir internal");
        bench.remove("one");
        assert_frozen(&bench.point("two"), "");
        bench.finish();
    }
}

over_attachments! {
    /// Snapshots of all disks, the first since the start and later ones: one freeze for each.
    all_disks_are_taken_in_one_freeze => |name, attachment| {
        let agent = FakeAgent::new(name, Manner::Good);
        let option = format!("{},quiesce=require", agent.option());
        let mut several = Several::with_options(name, attachment, &["-o", &option]);
        for (index, point) in ["one", "two", "three"].iter().enumerate() {
            several.seal(point);
            let log = several.mount.text("log");
            assert_frozen(&several.group(point), &log);
            for (disk, _) in SEALED {
                assert_frozen(&several.mount.disk(disk).snapshot(point), &log);
            }
            assert_eq!((agent.freezes().len(), agent.thaws().len()), (index + 1, index + 1));
        }
        agent.be(Manner::RefusesToFreeze);
        assert_errno(several.group("four").make(), &[EIO]);
        for (disk, _) in SEALED {
            assert!(!several.mount.disk(disk).snapshot("four").exists());
        }
        several.finish();
    }
}

#[test]
fn nothing_is_frozen_where_nobody_asked_for_it() {
    let agent = FakeAgent::new("quiesce-off", Manner::Good);
    let mut bench = bench("quiesce-off", Attachment::Blockdev, &agent, "off");
    bench.seal("a");
    let said = bench.point("a").json();
    assert_eq!(said["consistency"], "crash");
    assert_eq!(said["quiesce_error"], Value::Null);
    assert!(agent.freezes().is_empty());
    bench.finish();
}

#[test]
fn without_an_agent_there_is_nothing_to_require() {
    let scratch = Scratch::new("quiesce-none");
    let image = scratch.file("web1.qcow2");
    oracle::create(&image, 1 << 20);
    for options in [
        &["-o", "quiesce=require"][..],
        &["-o", "quiesce=try"],
        &["--guest-agent", "/nowhere"],
    ] {
        let (code, said) = Mounted::refused(&scratch, &[&image], options);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("guest agent"), "{said}");
    }
}

/// A point under `try`, and one under `require`, with an agent that cannot freeze.
fn cannot_freeze(name: &str, manner: Option<Manner>, why: &str, errno: i32) {
    let agent = manner.map(|manner| FakeAgent::new(name, manner));
    let socket = agent.as_ref().map_or_else(
        || "guest_agent=/nowhere/agent".to_owned(),
        FakeAgent::option,
    );
    for quiesce in ["try", "require"] {
        let option = format!("{socket},quiesce={quiesce}");
        let mut bench = Bench::with_options(
            &format!("{name}-{quiesce}"),
            Attachment::Blockdev,
            &["-o", &option],
        );
        let began = Instant::now();
        if quiesce == "try" {
            bench.seal("a");
            assert_crash(&bench.point("a"), why);
        } else {
            assert_errno(bench.point("a").make(), &[errno]);
            assert!(!bench.sealed("a").exists(), "nothing is left");
            assert_errno(bench.disk().internal("i").make(), &[errno]);
            assert!(bench.disk().list("internal").is_empty());
        }
        assert!(
            began.elapsed() < PROMPT * 2,
            "it took {:?}",
            began.elapsed()
        );
        let log = bench.mount.text("log");
        assert!(log.contains(why), "{log}");
        assert_eq!(bench.mount.json("vm.json")["guest_agent_state"], "unusable");
        if let Some(agent) = &agent {
            wait_thawed(agent);
        }
        assert_no_note(&bench);
        bench.verify();
        bench.finish();
    }
}

#[test]
fn an_agent_that_never_answers() {
    cannot_freeze(
        "quiesce-deaf",
        Some(Manner::Deaf),
        "did not answer",
        ETIMEDOUT,
    );
}

#[test]
fn nobody_at_the_socket() {
    cannot_freeze("quiesce-nobody", None, "no such socket", ENOTCONN);
}

#[test]
fn an_agent_that_refuses_is_quoted() {
    let words = "failed to freeze /: Operation not supported";
    cannot_freeze("quiesce-refuses", Some(Manner::RefusesToFreeze), words, EIO);
}

#[test]
fn something_that_is_no_agent() {
    cannot_freeze(
        "quiesce-garbage",
        Some(Manner::Garbage),
        "answers guest-fsfreeze-status with",
        EIO,
    );
}

#[test]
fn a_freeze_that_comes_too_late_is_taken_back_and_is_not_the_next_ones() {
    let agent = FakeAgent::new("quiesce-late", Manner::SlowToFreeze(Duration::from_secs(6)));
    let mut bench = bench("quiesce-late", Attachment::Blockdev, &agent, "try");
    bench.seal("a");
    assert_crash(&bench.point("a"), "did not answer guest-fsfreeze-freeze");
    wait::until_true("the late freeze came and went", || {
        agent.thaws().len() == agent.freezes().len() && !agent.freezes().is_empty()
    });
    assert!(!agent.frozen());
    let (freeze, thaw) = (agent.freezes()[0], agent.thaws()[0]);
    assert!(thaw.duration_since(freeze).expect("in order") < Duration::from_secs(2));
    agent.be(Manner::Good);
    bench.seal("b");
    assert_frozen(&bench.point("b"), &bench.mount.text("log"));
    assert_no_note(&bench);
    bench.finish();
}

#[test]
fn an_agent_that_hangs_up_while_frozen_is_called_again() {
    let agent = FakeAgent::new("quiesce-hangup", Manner::HangsUpFrozen);
    let mut bench = bench("quiesce-hangup", Attachment::Blockdev, &agent, "try");
    bench.seal("a");
    // whether it was frozen then is not known: the answer was cut off
    assert_crash(&bench.point("a"), "connection was closed");
    wait_thawed(&agent);
    assert_no_note(&bench);
    bench.seal("b");
    assert_frozen(&bench.point("b"), &bench.mount.text("log"));
    bench.finish();
}

#[test]
fn an_agent_that_hangs_up_at_the_thaw_is_called_again() {
    let agent = FakeAgent::new("quiesce-hangup-thaw", Manner::HangsUpAtThaw);
    let mut bench = bench(
        "quiesce-hangup-thaw",
        Attachment::Blockdev,
        &agent,
        "require",
    );
    bench.seal("a");
    assert_frozen(&bench.point("a"), &bench.mount.text("log"));
    assert!(!agent.frozen());
    assert_no_note(&bench);
    bench.finish();
}

#[test]
fn a_guest_that_cannot_be_thawed_is_shouted_about_and_tried_on() {
    let agent = FakeAgent::new("quiesce-stuck", Manner::DeafOnceFrozen);
    let mut bench = bench("quiesce-stuck", Attachment::Blockdev, &agent, "try");
    bench.seal("a");
    assert_crash(&bench.point("a"), "connection was closed");
    wait::until_true("the log tells what to do by hand", || {
        let log = bench.mount.text("log");
        log.contains("THE GUEST MAY STILL BE FROZEN") && log.contains("| socat -t3 - UNIX-CONNECT:")
    });
    assert!(agent.frozen());
    agent.be(Manner::Good);
    wait_thawed(&agent);
    wait::until_true("the log says that it is over", || {
        bench.mount.text("log").contains("thawed at last")
    });
    assert_no_note(&bench);
    bench.finish();
}

#[test]
fn a_thaw_that_is_refused_is_asked_for_again() {
    let agent = FakeAgent::new("quiesce-again", Manner::RefusesToThawOnce);
    let mut bench = bench("quiesce-again", Attachment::Blockdev, &agent, "require");
    bench.seal("a");
    assert_frozen(&bench.point("a"), &bench.mount.text("log"));
    assert!(!agent.frozen());
    bench.finish();
}

#[test]
fn a_guest_thawed_by_others_is_not_called_frozen() {
    let agent = FakeAgent::new("quiesce-others", Manner::ThawedByOthers);
    let mut bench = bench("quiesce-others", Attachment::Blockdev, &agent, "try");
    bench.seal("a");
    assert_crash(&bench.point("a"), "thawed by others");
    bench.finish();
}

#[test]
fn what_others_have_frozen_stays_so() {
    let agent = FakeAgent::new("quiesce-theirs", Manner::Good);
    let mut bench = bench("quiesce-theirs", Attachment::Blockdev, &agent, "try");
    agent.freeze();
    bench.seal("a");
    assert_crash(&bench.point("a"), "frozen already, and not by us");
    bench.mount.kill9();
    bench.mount.mount_again();
    bench.wait_for_disk();
    assert!(agent.frozen() && agent.thaws().is_empty());
    bench.finish();
}

#[test]
fn a_guest_that_does_not_run_is_not_asked() {
    let agent = FakeAgent::new("quiesce-paused", Manner::Good);
    let mut bench = bench("quiesce-paused", Attachment::Blockdev, &agent, "try");
    bench.machine.qmp.run("stop", json!({}));
    bench.seal("a");
    assert_crash(&bench.point("a"), "does not run");
    assert!(agent.freezes().is_empty());
    bench.machine.qmp.run("cont", json!({}));
    bench.finish();
}

/// A QEMU that hangs while its guest is frozen: thawed in time, and nobody says that it was frozen.
#[test]
fn a_qemu_that_hangs_does_not_keep_the_guest_frozen() {
    let agent = FakeAgent::new("quiesce-hang", Manner::Good);
    let mut bench = bench("quiesce-hang", Attachment::Blockdev, &agent, "try");
    bench.seal("first");
    let qemu = bench.machine.pid();
    agent.strike_at_freeze(qemu, SIGSTOP, When::After);
    let point = bench.point("a");
    let maker = std::thread::spawn(move || point.make());
    wait::until_true("QEMU hangs", || agent.has_struck());
    wait::until_true("the guest is thawed", || agent.thaws().len() == 2);
    let frozen = agent.thaws()[1]
        .duration_since(agent.freezes()[1])
        .expect("in order");
    assert!(frozen < FROZEN_MAX, "frozen for {frozen:?}");
    sh!("kill -{SIGCONT} {qemu}");
    maker
        .join()
        .expect("the caller")
        .expect("QEMU has gone on in time");
    assert_crash(&bench.point("a"), "took longer than a guest may be frozen");
    bench.point("a").delete().expect("rmdir");
    bench.disk().wait().expect("the merge");
    bench.finish();
}

/// kill -9 of qmpfs before and after the freeze and the thaw: the next mount leaves nobody frozen.
fn killed(name: &str, attachment: Attachment) {
    let agent = FakeAgent::new(name, Manner::Good);
    let mut bench = bench(name, attachment, &agent, "require");
    type Strike = fn(&FakeAgent, u32, i32, When);
    let moments: [(Strike, When); 4] = [
        (FakeAgent::strike_at_freeze, When::Before),
        (FakeAgent::strike_at_freeze, When::After),
        (FakeAgent::strike_at_thaw, When::Before),
        (FakeAgent::strike_at_thaw, When::After),
    ];
    for kind in ["external", "internal"] {
        for (round, (strike, when)) in moments.iter().enumerate() {
            strike(&agent, bench.mount.pid(), SIGKILL, *when);
            let point = match kind {
                "external" => bench.point(&format!("k{round}")),
                _ => bench.disk().internal(&format!("k{round}")),
            };
            assert!(point.make().is_err(), "{kind} {round}");
            assert!(agent.has_struck(), "{kind} {round}");
            bench.mount.mount_again();
            wait::until_true("the disk is back", || {
                bench.disk().0.join("snapshots").is_dir()
            });
            assert!(
                !agent.frozen(),
                "thawed before the mount is ready: {kind} {round}"
            );
            assert_no_note(&bench);
            if point.exists() {
                // that it was frozen was not written down any more
                assert_eq!(point.json()["consistency"], "crash", "{kind} {round}");
                point.delete().expect("rmdir");
                bench.disk().wait().expect("the merge");
            }
            bench.verify();
        }
    }
    bench.finish();
}

#[test]
fn killed_while_the_guest_is_frozen() {
    killed("quiesce-kill", Attachment::Blockdev);
}

#[test]
fn killed_while_the_guest_is_frozen_on_a_legacy_drive() {
    killed("quiesce-kill-drive", Attachment::Drive);
}

/// kill -9 of qmpfs before and after each QMP command of a snapshot: whichever of them the guest is frozen at, the next
/// mount leaves it thawed, and the point is there or not.
fn killed_at_every_command(name: &str, first: bool) {
    /// Far more changing commands than a snapshot has.
    const TOO_MANY: usize = 40;
    let agent = FakeAgent::new(name, Manner::Good);
    let mut bench = bench(name, Attachment::Blockdev, &agent, "require");
    if !first {
        bench.seal("first");
    }
    let steps = Steps::new(bench.scratch());
    let proxy = Proxy::new(bench.scratch(), bench.machine.qmpfs_socket(), &steps);
    let direct = bench.machine.qmpfs_socket().to_path_buf();
    let mut while_frozen = 0;
    for (nth, deed) in [Deed::KillBefore, Deed::KillAfter].into_iter().enumerate() {
        for number in sample::steps(nth) {
            assert!(number < TOO_MANY, "it never ends");
            if first {
                bench.restart();
            }
            bench.mount.mount_through(proxy.socket());
            bench.wait_for_disk();
            steps.arm(COMMANDS, number, deed, [bench.mount.pid(), 0]);
            let point = bench.point(&format!("k{number}"));
            let made = point.make();
            let (killed, commands) = steps.disarm();
            let at = format!("{deed:?}, command {number} of {commands:?}");
            while_frozen += usize::from(agent.frozen());
            bench.mount.mount_through(&direct);
            wait::until_true(&format!("the disk is back, killed {at}"), || {
                bench.disk().0.join("snapshots").is_dir()
            });
            assert!(!agent.frozen(), "killed {at}");
            assert_no_note(&bench);
            assert!(killed || made.is_ok(), "killed {at}");
            if point.exists() {
                point.delete().expect("rmdir of a settled point");
                bench.disk().wait().expect("the merge");
            }
            bench.verify();
            if !killed {
                break;
            }
        }
    }
    assert!(
        while_frozen > 0,
        "it was never killed while the guest was frozen"
    );
    println!("killed {while_frozen} times while the guest was frozen");
    bench.finish();
}

#[test]
fn killed_at_every_command_of_a_first_snapshot() {
    killed_at_every_command("quiesce-points-first", true);
}

#[test]
fn killed_at_every_command_of_a_later_snapshot() {
    killed_at_every_command("quiesce-points", false);
}

#[test]
fn unmounted_while_the_guest_is_frozen_it_thaws_first() {
    for when in [When::Before, When::After] {
        let agent = FakeAgent::new("quiesce-term", Manner::Good);
        let mut bench = bench("quiesce-term", Attachment::Blockdev, &agent, "try");
        bench.seal("a");
        agent.strike_at_thaw(bench.mount.pid(), SIGTERM, when);
        // its caller may be told that the mount is gone
        let _ = bench.point("b").make();
        bench.mount.unmount();
        assert!(!agent.frozen());
        assert_no_note(&bench);
        bench.mount.mount_again();
        wait::until_true("the disk is back", || bench.point("a").exists());
        if bench.point("b").exists() {
            bench.point("b").delete().expect("rmdir");
            bench.disk().wait().expect("the merge");
        }
        bench.finish();
    }
}

/// Two disks of one guest, each told to make its own point at the same moment: one freeze after the other.
#[test]
fn two_points_at_once_take_turns() {
    let agent = FakeAgent::new("quiesce-turns", Manner::Good);
    let option = format!("{},quiesce=require", agent.option());
    let several = Several::with_options("quiesce-turns", Attachment::Blockdev, &["-o", &option]);
    for round in 0..5 {
        let points =
            SEALED.map(|(disk, _)| several.mount.disk(disk).snapshot(&format!("r{round}")));
        let makers = points
            .clone()
            .map(|point| std::thread::spawn(move || point.make()));
        for maker in makers {
            maker.join().expect("the caller").expect("both are made");
        }
        for point in &points {
            assert_frozen(point, &several.mount.text("log"));
        }
    }
    assert_eq!((agent.freezes().len(), agent.thaws().len()), (10, 10));
    for (freeze, thaw) in agent.freezes().iter().skip(1).zip(agent.thaws()) {
        assert!(*freeze >= thaw, "frozen again before it was thawed");
    }
}

#[test]
fn killed_and_mounted_without_the_agent_it_says_so() {
    let agent = FakeAgent::new("quiesce-forgotten", Manner::Good);
    let bench = bench("quiesce-forgotten", Attachment::Blockdev, &agent, "try");
    agent.strike_at_thaw(bench.mount.pid(), SIGKILL, When::Before);
    assert!(bench.point("a").make().is_err());
    let mut bench = bench;
    bench.mount.kill9();
    let elsewhere = Scratch::new("quiesce-forgotten-2");
    let again = Mounted::new(&elsewhere, &[bench.machine.qmpfs_socket()], &[]);
    wait::until_true("the disk is back", || {
        again.disk("vda").snapshot("a").exists()
    });
    let log = again.text("log");
    assert!(
        log.contains("may have left the guest frozen") && log.contains("guest_agent="),
        "{log}"
    );
    assert!(agent.frozen());
    drop(again);
    bench.mount.mount_again();
    wait_thawed(&agent);
    assert_no_note(&bench);
}
