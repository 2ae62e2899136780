//! `mkdir backups/KIND/NAME` at the top of the mount: backups of all disks at one instant, all or none, beside a writer that
//! would tell two instants apart.

use std::fs;
use std::path::PathBuf;

use libc::{EBUSY, EEXIST};
use qmpfs_tests::faults::names;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::proxy::Proxy;
use qmpfs_tests::sample::Share;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::several::{RAW, SEALED, Several, reached};
use qmpfs_tests::steps::{COMMANDS, Deed, FILES, Steps};
use qmpfs_tests::tree::{Point, assert_errno};
use qmpfs_tests::{oracle, sample, wait};
use serde_json::json;

mod mirrors;

const DISKS: [&str; 3] = [SEALED[0].0, SEALED[1].0, RAW];

/// Several disks with a backup directory.
struct Rig {
    several: Several,
    dir: PathBuf,
}

impl Rig {
    fn new(name: &str, attachment: Attachment, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let dirs = ["one", "two", "three"].map(|dir| scratch.dir(dir));
        let dir = scratch.dir("backups");
        let path = dir.display().to_string();
        let all = [&["--backup-dir", &path, "-o", "name=web1"], options].concat();
        Rig {
            several: Several::on(scratch, dirs, attachment, &all),
            dir: dir.join("web1"),
        }
    }

    /// The backup directory.
    fn root(&self) -> PathBuf {
        self.dir.parent().expect("it is in there").to_owned()
    }

    fn of_all(&self, kind: &str, name: &str) -> Point {
        Point(
            self.several
                .mount
                .path()
                .join("backups")
                .join(kind)
                .join(name),
        )
    }

    /// The names in the directories of the disks' backups.
    fn files(&self) -> Vec<String> {
        let all = DISKS
            .iter()
            .flat_map(|disk| match self.dir.join(disk).is_dir() {
                true => names(&self.dir.join(disk)),
                false => Vec::new(),
            });
        all.collect()
    }

    /// Makes one, and everything that must be true of it.
    #[track_caller]
    fn keep(&self, kind: &str, name: &str) {
        self.several.writer().progress(3);
        let before = self.several.writer().done();
        let made = self.of_all(kind, name).make();
        made.unwrap_or_else(|e| panic!("{e}\n{}", self.several.mount.text("log")));
        let after = self.several.writer().done() + 1;
        let end = self.several.mount.wait_idle();
        assert_eq!(end, "done\n", "{}", self.several.mount.text("log"));
        self.several.writer().progress(3);
        let found = self.verify(kind, name);
        assert!(
            found[1] >= before && found[0] <= after,
            "{found:?}, made between {before} and {after}"
        );
    }

    /// All of it is of one instant, by qemu-img as in the mount.
    #[track_caller]
    fn verify(&self, kind: &str, name: &str) -> [u64; 2] {
        let found = [0, 1].map(|disk| {
            let disk = DISKS[disk];
            let raw = self.several.scratch().file("expected.raw");
            let file = self.dir.join(disk).join(format!("{name}.qcow2"));
            oracle::check(&file);
            oracle::convert(&file, &raw);
            let link = self.of_all(kind, name).0.join(disk);
            oracle::assert_same(&link.join("disk.raw"), &raw);
            reached(&raw)
        });
        assert!(
            found[0] == found[1] || found[0] == found[1] + 1,
            "two instants: {found:?}"
        );
        let json = self.of_all(kind, name).json();
        assert_eq!(json["disks"], json!(DISKS));
        assert_eq!(json["complete"], true);
        found
    }

    /// Whether all have their files; panics where some have.
    #[track_caller]
    fn all_or_none_files(&self, name: &str) -> bool {
        let there = DISKS.map(|disk| self.dir.join(disk).join(format!("{name}.qcow2")).exists());
        assert!(there == [true; 3] || there == [false; 3], "{there:?}");
        there[0]
    }

    /// Jobs that have failed are shown no more.
    fn dismiss_failed(&self) {
        for disk in DISKS {
            let jobs = self.several.mount.disk(disk).0.join("jobs");
            for job in names(&jobs) {
                let error = fs::read_to_string(jobs.join(&job).join("error")).unwrap_or_default();
                if !error.trim().is_empty() {
                    let _ = fs::remove_dir(jobs.join(&job));
                }
            }
        }
    }

    /// All of it is there, or nothing is.
    #[track_caller]
    fn all_or_none(&self, kind: &str, name: &str) -> bool {
        let there = self.all_or_none_files(name);
        assert_eq!(self.of_all(kind, name).exists(), there);
        assert_eq!(self.unfinished(), Vec::<String>::new());
        there
    }

    /// What is there of backups that are neither complete nor taken back.
    fn unfinished(&self) -> Vec<String> {
        // a digest comes later, in its own time
        let hidden = self.files().into_iter().filter(|name| {
            name.starts_with('.') && !name.contains(".blake3") && !name.ends_with(".json.new")
        });
        hidden.collect()
    }

    /// Nothing is left to be done about it. A connection that has just ended may be believed to be up, and the jobs that
    /// were lost with it be dismissed, before qmpfs has begun to settle it.
    fn wait_until_settled(&self, kind: &str, name: &str) {
        wait::until_true("it is settled on all disks", || {
            let there = self.dir.join(DISKS[0]).join(format!("{name}.qcow2"));
            self.unfinished().is_empty() && self.of_all(kind, name).exists() == there.exists()
        });
    }

    /// Those that backups of the top layer stood on: they are full backups of a point, and stay.
    #[track_caller]
    fn remove_copies_of(&self, point: &str) {
        for (number, (disk, _)) in SEALED.iter().enumerate() {
            let copy = self.several.mount.disk(disk).backup("full", point);
            if copy.exists() {
                let raw = self.several.scratch().file("expected.raw");
                oracle::convert(&self.several.sealed(number, point), &raw);
                oracle::assert_same(&copy.disk_raw(), &raw);
                copy.delete_when_closed();
            }
        }
    }

    fn is_idle(&self) -> bool {
        DISKS.iter().all(|disk| {
            let jobs = self
                .several
                .mount
                .path()
                .join("disks")
                .join(disk)
                .join("jobs");
            fs::read_dir(jobs).is_ok_and(|mut jobs| jobs.next().is_none())
        })
    }

    #[track_caller]
    fn assert_no_scratch_file(&self) {
        let files = self.several.files().concat();
        let mut left = files.iter().filter(|name| name.starts_with(".qmpfs-"));
        assert_eq!(left.next(), None);
    }

    fn bitmaps(&self) -> usize {
        let count = |disk: &&str| self.several.mount.disk(disk).list("bitmaps").len();
        DISKS.iter().map(count).sum()
    }
}

fn one_instant(name: &str, attachment: Attachment, options: &[&str]) {
    let mut rig = Rig::new(name, attachment, options);
    rig.keep("full", "a");
    rig.keep("incremental", "b");
    for disk in &DISKS {
        let point = rig
            .several
            .mount
            .disk(disk)
            .backup("incremental", "b")
            .json();
        assert_eq!(point["previous"], "a", "{point}");
        assert_eq!(point["same_instant"], json!(DISKS));
    }
    assert_eq!(rig.bitmaps(), DISKS.len(), "older ones go");
    assert_errno(rig.of_all("full", "b").make(), &[EEXIST]);
    rig.several.restart();
    rig.keep("incremental", "c");
    // nothing of it goes while one is read
    let reader = fs::File::open(rig.of_all("incremental", "c").0.join("vdb/disk.raw"));
    assert_errno(rig.of_all("incremental", "c").delete(), &[EBUSY]);
    assert_eq!(rig.of_all("incremental", "c").json()["complete"], true);
    drop(reader);
    // first the one that others stand on
    for (kind, name) in [("incremental", "b"), ("incremental", "c"), ("full", "a")] {
        rig.of_all(kind, name).delete_when_closed();
        assert_eq!(rig.several.mount.wait_idle(), "done\n");
        assert!(!rig.all_or_none(kind, name));
    }
    assert_eq!(rig.files(), Vec::<String>::new());
    assert_eq!(rig.bitmaps(), 0);
    // what stands on no other layer is copied whole
    rig.several.seal("below");
    rig.keep("top", "d");
    for (disk, previous) in [
        (DISKS[0], json!("below")),
        (DISKS[1], json!("below")),
        (RAW, json!(null)),
    ] {
        let point = rig.several.mount.disk(disk).backup("top", "d").json();
        assert_eq!(point["previous"], previous, "{point}");
    }
    rig.of_all("top", "d").delete_when_closed();
    rig.remove_copies_of("below");
    assert_eq!(rig.files(), Vec::<String>::new());
    rig.several.finish();
}

over_attachments!(one_instant_of_all_disks => |name, attachment| one_instant(name, attachment, &[]));
over_attachments!(one_instant_by_way_of_scratch_files => |name, attachment| one_instant(name, attachment, FLEECING));

/// What is changed is taken over at the instant itself, on each disk, however many write meanwhile.
#[test]
fn many_in_a_row_by_way_of_scratch_files() {
    let rig = Rig::new("backup-all-fleecing-row", Attachment::Blockdev, FLEECING);
    for number in 0..15 {
        rig.keep("incremental", &format!("b{number}"));
    }
    for number in 0..15 {
        rig.verify("incremental", &format!("b{number}"));
    }
    rig.several.finish();
}

/// By way of scratch files: then QEMU does not end their jobs together.
const FLEECING: &[&str] = &["-o", "fleecing"];
/// Holds jobs up.
const SLOW: &[&str] = &["-o", "speed=64k"];

/// It ends with any of its jobs, whoever ends that; and with rmdir.
fn nothing_is_left(name: &str, attachment: Attachment, options: &[&str]) {
    let mut rig = Rig::new(name, attachment, &[SLOW, options].concat());
    rig.several.writer().progress(40);
    for how in ["rmdir", "rmdir of one", "another monitor"] {
        rig.of_all("full", "a").make().expect("mkdir");
        assert!(rig.of_all("full", "a").exists());
        assert_errno(rig.of_all("full", "b").make(), &[EBUSY]);
        assert_errno(
            rig.several.mount.disk("vdb").backup("full", "b").make(),
            &[EBUSY],
        );
        let job = rig.several.mount.disk("vdb").only_job();
        match how {
            "rmdir" => {
                rig.of_all("full", "a").delete().expect("rmdir");
                assert!(!rig.of_all("full", "a").exists(), "the name goes at once");
                assert_eq!(rig.several.mount.wait_idle(), "done\n");
            }
            "rmdir of one" => fs::remove_dir(job).expect("rmdir"),
            _ => {
                let id = job
                    .file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned();
                rig.several.machine.qmp.run("job-cancel", json!({"id": id}));
            }
        }
        wait::until_true("nothing is left", || {
            rig.files().is_empty() && rig.bitmaps() == 0
        });
        for disk in &DISKS {
            let jobs = rig.several.mount.disk(disk).0.join("jobs");
            for failed in names(&jobs) {
                wait::until_true("it has ended", || {
                    let _ = fs::remove_dir(jobs.join(&failed));
                    !jobs.join(&failed).exists()
                });
            }
        }
    }
    rig.of_all("full", "a").make().expect("mkdir");
    rig.several.machine.limit_jobs(0);
    assert_eq!(rig.several.mount.wait_idle(), "done\n");
    rig.verify("full", "a");
    rig.assert_no_scratch_file();
    rig.several.finish();
}

over_attachments!(one_that_does_not_become_complete_leaves_nothing => |name, attachment| nothing_is_left(name, attachment, &[]));
over_attachments!(one_that_ends_early_leaves_no_scratch_file => |name, attachment| nothing_is_left(name, attachment, FLEECING));

/// While one disk's waits for what another one's stands on, it goes with all of them or not at all.
#[test]
fn top_layers_are_taken_back_together() {
    let mut rig = Rig::new("backup-all-top-back", Attachment::Blockdev, SLOW);
    rig.several.seal("below");
    rig.several.writer().progress(40);
    for how in ["rmdir", "rmdir of one"] {
        let told = || {
            rig.several
                .mount
                .text("log")
                .matches("as the full backup")
                .count()
        };
        let before = told();
        rig.of_all("top", "a").make().expect("mkdir");
        rig.several.machine.limit_jobs(0);
        wait::until_true("two of them copy what they stand on", || {
            told() == before + 2
        });
        let waits = rig.several.mount.disk(RAW).backup("top", "a");
        assert_errno(waits.delete(), &[EBUSY]);
        match how {
            "rmdir" => rig.of_all("top", "a").delete().expect("rmdir"),
            _ => {
                let one = rig.several.mount.disk("vdb").backup("top", "a");
                one.delete().expect("rmdir");
            }
        }
        wait::until_true("nothing is left", || {
            rig.dismiss_failed();
            rig.files().is_empty() && rig.bitmaps() == 0 && rig.is_idle()
        });
    }
    rig.keep("full", "b");
    rig.several.finish();
}

#[test]
fn refused_for_one_disk_it_is_begun_on_none() {
    let rig = Rig::new("backup-all-refused", Attachment::StorageDaemon, &[]);
    let nodes = |rig: &mut Rig| rig.several.nodes();
    let mut rig = rig;
    let before = nodes(&mut rig);
    // a file that somebody put in its way
    fs::create_dir_all(rig.dir.join(RAW)).expect("a directory");
    fs::write(rig.dir.join(RAW).join("a.qcow2"), b"mine").expect("a file");
    assert_errno(rig.of_all("full", "a").make(), &[EEXIST]);
    assert_eq!(rig.files(), ["a.qcow2"]);
    assert_eq!((nodes(&mut rig), rig.bitmaps()), (before, 0));
    fs::remove_file(rig.dir.join(RAW).join("a.qcow2")).expect("it goes");
    rig.keep("full", "a");
    rig.several.finish();
}

/// qmpfs dies before or after steps of it: it is on all disks, or on none. Every day the commands are the steps; a larger
/// run takes the operations on files as well.
#[test]
fn qmpfs_killed_at_steps() {
    killed_at_steps_of("full", &[]);
}

/// The same by way of scratch files.
#[test]
fn qmpfs_killed_at_steps_of_fleecing() {
    killed_at_steps_of("full", FLEECING);
}

/// The same where what two of them stand on is copied as well.
#[test]
fn qmpfs_killed_at_steps_of_the_top_layers() {
    killed_at_steps_of("top", &[]);
}

fn killed_at_steps_of(kind: &str, options: &[&str]) {
    let attachments = [
        (Attachment::StorageDaemon, "qsd"),
        (Attachment::Blockdev, "blockdev"),
    ];
    // every day one will do
    let (count, kinds) = match Share::asked_for() {
        Share::Everyday => (1, COMMANDS),
        Share::Rounds(_) | Share::Kills | Share::Full => (attachments.len(), COMMANDS | FILES),
    };
    for (attachment, name) in attachments.into_iter().take(count) {
        let name = format!("backup-all-killed-{kind}{}-{name}", options.concat());
        let mut rig = Rig::new(&name, attachment, options);
        let steps = Steps::new(rig.several.scratch());
        let environment = steps.environment(&rig.root());
        rig.several.mount.set_environment(environment);
        let monitor = rig.several.machine.qmpfs_socket();
        let proxy = Proxy::new(rig.several.scratch(), monitor, &steps);
        rig.several.mount.mount_through(proxy.socket());
        rig.several.wait_for_disks();
        if kind == "top" {
            rig.several.seal("below");
        }
        for (nth, deed) in [Deed::KillBefore, Deed::KillAfter].into_iter().enumerate() {
            for number in sample::steps(nth) {
                steps.arm(kinds, number, deed, [rig.several.mount.pid(), 0]);
                let outcome = rig.of_all(kind, "a").make();
                wait::until_true("it is over, or killed", || steps.fired() || rig.is_idle());
                let (fired, seen) = steps.disarm();
                if fired {
                    rig.several.mount.mount_again();
                    rig.several.wait_for_disks();
                } else {
                    outcome.unwrap_or_else(|e| panic!("{e}: {seen:?}"));
                }
                wait::until_true("all is settled", || {
                    // one disk's may fail as another one's was taken back
                    rig.dismiss_failed();
                    rig.is_idle()
                });
                println!("{deed:?} {number}: {:?}", rig.files());
                rig.wait_until_settled(kind, "a");
                if rig.all_or_none(kind, "a") {
                    rig.verify(kind, "a");
                    rig.of_all(kind, "a").delete_when_closed();
                }
                rig.remove_copies_of("below");
                wait::until_true("no bitmap is left", || rig.bitmaps() == 0);
                wait::until_true("no file is left", || rig.files().is_empty());
                if !fired {
                    assert!(number > 12, "it has more commands than {seen:?}");
                    break;
                }
            }
        }
        rig.assert_no_scratch_file();
        rig.several.finish();
    }
}

/// The host dies while it is made: nothing is left of it.
#[test]
fn the_host_dies_while_it_is_made() {
    let mut rig = Rig::new("backup-all-fall", Attachment::StorageDaemon, SLOW);
    rig.several.writer().progress(40);
    rig.of_all("full", "a").make().expect("mkdir");
    rig.several.power_cut();
    wait::until_true("nothing is left", || rig.files().is_empty());
    assert!(!rig.of_all("full", "a").exists());
    rig.several.finish();
}
