//! A real guest's files: what a point taken while it works shows below `files/` is what the guest itself reports, and
//! what the kernel shows of the same bytes once their journal is replayed.

use std::fs;
use std::path::{Path, PathBuf};

use qmpfs_tests::agent::run_in_guest;
use qmpfs_tests::guest::Guest;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{sh, wait};

/// Every file at rest, with all that the guest knows of it: `data` is where it works, the others are mounts.
const LISTED: &str = "find . \\( -path ./data -o -path ./proc -o -path ./sys -o -path ./dev -o -path ./run \\) -prune \
     -o -printf '%P|%y|%m|%U|%G|%n|%s|%T@|%l\\n' | LC_ALL=C sort";
/// The content of some.
const SUMMED: &str = "find etc usr/bin var/lib -type f -exec sha256sum {} + | LC_ALL=C sort -k2";

/// The first lines in which two texts differ.
#[track_caller]
fn assert_same_lines(shown: &str, expected: &str) {
    for (shown, expected) in shown.lines().zip(expected.lines()) {
        assert_eq!(shown, expected);
    }
    assert_eq!(shown.lines().count(), expected.lines().count());
}

/// Detaches when dropped.
struct Kernel(PathBuf);

impl Kernel {
    /// Mounts a copy of the bytes; the kernel replays the journal in that.
    fn new(scratch: &Scratch, raw: &Path) -> Self {
        let (copy, at) = (scratch.file("oracle.raw"), scratch.dir("kernel"));
        sh!(
            "cp --sparse=always {0} {1}; chmod u+w {1}; mount -o loop {1} {2}; mount -o remount,ro {2}",
            raw.display(),
            copy.display(),
            at.display()
        );
        Self(at)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        sh!("umount {}", self.0.display());
    }
}

/// All of it, what the guest was writing as well.
#[track_caller]
fn same_as_kernel(scratch: &Scratch, raw: &Path, files: &Path) {
    let kernel = Kernel::new(scratch, raw);
    let differences = sh!(
        "rsync -aHAX --checksum -n -i --delete {}/ {}/",
        kernel.0.display(),
        files.display()
    );
    assert_eq!(differences, "");
}

#[test]
fn files_of_a_working_guest_are_what_it_reports_itself() {
    let scratch = Scratch::new("guest-files");
    let dir = scratch.dir("images");
    let mut guest = Guest::boot(&scratch, &dir, Attachment::Blockdev);
    guest.rounds(2);
    let listed = run_in_guest(guest.agent(), &format!("cd /; {LISTED}"));
    let summed = run_in_guest(guest.agent(), &format!("cd /; {SUMMED}"));
    assert!(listed.lines().count() > 3000, "{listed}");
    assert!(summed.lines().count() > 300, "{summed}");

    let with_agent = format!(
        "guest_agent={},quiesce=require,symlinks=guest",
        guest.agent().display()
    );
    for (name, options, consistency, log) in [
        ("plain", "symlinks=guest", "crash", "replayed"),
        ("frozen", with_agent.as_str(), "filesystem", "clean"),
    ] {
        let mut mount = Mounted::new(&scratch, &[guest.machine.qmpfs_socket()], &["-o", options]);
        wait::until_true("the disk is in the mount", || mount.disk("vda").0.is_dir());
        guest.rounds(2);
        fs::create_dir(mount.snapshots(name))
            .unwrap_or_else(|e| panic!("mkdir: {e}\n{}", mount.text("log")));
        guest.rounds(1);
        let point = mount.disk("vda").snapshot(name);
        let files = mount
            .disk("vda")
            .0
            .join("snapshots")
            .join(name)
            .join("files/0");
        assert_same_lines(&sh!("cd {}; {LISTED}", files.display()), &listed);
        assert_same_lines(&sh!("cd {}; {SUMMED}", files.display()), &summed);
        let said = point.json();
        assert_eq!(said["consistency"], consistency);
        assert_eq!(said["filesystems"][0]["log"], log, "{said}");
        assert_eq!(said["filesystems"][0]["label"], "qmpfs-guest");
        if consistency == "crash" {
            same_as_kernel(&scratch, &point.disk_raw(), &files);
        }
        assert!(files.join("data/sums").is_file(), "the guest had worked");
        assert!(
            !mount.text("log").contains("read /"),
            "{}",
            mount.text("log")
        );
        mount.unmount();
    }
    guest.shut_down();
}
