//! A guest's own files in every point: the same as the kernel shows of the same bytes, whoever asks, and
//! nothing that a guest wrote harms anybody else.

use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::model::Model;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::writer::Writer;
use qmpfs_tests::{oracle, sh, wait};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes in which data and holes are told.
const UNIT: i64 = 4096;
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/it/files");

/// Whether the filesystem was unmounted before it was copied.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Copied {
    Unmounted,
    /// While it was mounted, with changes that are in its journal alone.
    InUse,
}

/// How much is put into a filesystem that is compared.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    /// Of the filesystem.
    pub(crate) megabytes: u32,
    /// Names in one directory.
    pub(crate) names: u32,
    /// Of its largest file; 0 for none but the usual ones.
    pub(crate) large: u32,
}

impl Share {
    /// A share every day, `whole` with QMPFS_CORPUS=full.
    pub(crate) fn of(every_day: Share, whole: Share) -> Share {
        match std::env::var_os("QMPFS_CORPUS") {
            Some(_) => whole,
            None => every_day,
        }
    }

    /// So many names in so many megabytes; all that there is to try with QMPFS_CORPUS=full.
    pub(crate) fn or_whole(megabytes: u32, names: u32) -> Share {
        let every_day = Share {
            megabytes,
            names,
            large: 0,
        };
        // Inodes for half as many names again, that come while it is in use; nearly all of it stays a hole.
        let whole = Share {
            megabytes: 4096,
            names: 100_000,
            large: 1024,
        };
        Self::of(every_day, whole)
    }
}

/// Makes a filesystem, fills it as the kernel does it, and copies it.
pub(crate) fn filled(
    scratch: &Scratch,
    mkfs: &str,
    megabytes: u32,
    names: u32,
    copied: Copied,
) -> PathBuf {
    let share = Share {
        megabytes,
        names,
        large: 0,
    };
    filled_with(scratch, mkfs, share, copied)
}

fn filled_with(scratch: &Scratch, mkfs: &str, share: Share, copied: Copied) -> PathBuf {
    let Share {
        megabytes,
        names: count,
        large,
    } = share;
    let (made, copy) = (
        scratch.file("made.raw"),
        scratch.dir("images").join("fs.raw"),
    );
    let mount = scratch.dir("kernel");
    sh!(
        "truncate -s {megabytes}M {0}; {mkfs} {0} >&2; mount -o loop {0} {1}; trap 'umount {1}' EXIT; \
         {SCRIPTS}/populate {1} {count} {large}; sync -f {1}; \
         if {2} && [ $(stat -fc %T {1}) = xfs ]; then umount {1}; mount -o loop {0} {1}; fi; \
         if {2}; then {SCRIPTS}/change {1} {count}; sync -f {1}; cp --sparse=always {0} {3}; fi",
        made.display(),
        mount.display(),
        copied == Copied::InUse,
        copy.display()
    );
    if copied == Copied::Unmounted {
        sh!("cp --sparse=always {} {}", made.display(), copy.display());
    }
    fs::remove_file(made).expect("our own");
    copy
}

/// An empty overlay on a raw image makes it a point of a VM that is off.
pub(crate) fn mounted(scratch: &Scratch, image: &Path, options: &str) -> (Mounted, PathBuf) {
    let overlay = scratch.dir("images").join("top.qcow2");
    sh!(
        "qemu-img create -q -f qcow2 -b {} -F raw {}",
        image.display(),
        overlay.display()
    );
    let mount = Mounted::new(scratch, &[&overlay], &["-o", options]);
    let stem = image.file_stem().expect("a name").to_string_lossy();
    let point = mount
        .path()
        .join("disks/top/layers")
        .join(format!("0-{stem}"));
    (mount, point)
}

/// The tree must be what the kernel shows of a copy of the same bytes.
#[track_caller]
pub(crate) fn same_as_kernel(scratch: &Scratch, image: &Path, options: &str, tree: &Path) {
    let (copy, kernel) = (scratch.file("oracle.raw"), scratch.dir("kernel"));
    sh!(
        "cp --sparse=always {0} {1}; mount -o loop{options} {1} {2}; mount -o remount,ro {2}",
        image.display(),
        copy.display(),
        kernel.display()
    );
    let _unmounted = Unmount(kernel.clone());
    let (ours, theirs) = (tree.display(), kernel.display());
    let listing = |of: &str| {
        sh!(
            "cd {of}; find . -printf '%P|%y|%m|%U|%G|%n|%s|%b|%A@|%T@|%C@|%l\\n' | sort; \
             find . \\( -type b -o -type c \\) -exec stat -c '%n %t %T' {{}} + | sort; \
             getfattr -h -d -m '^[^s]|^se' -R . 2>/dev/null | sort"
        )
    };
    let (shown, expected) = (listing(&ours.to_string()), listing(&theirs.to_string()));
    assert!(expected.contains("user.one=") && expected.contains("security.other="));
    for (shown, expected) in shown.lines().zip(expected.lines()) {
        assert_eq!(shown, expected);
    }
    assert_eq!(shown.len(), expected.len());
    for file in ["pieces", "fragments", "hole"].map(|name| format!("odd/{name}")) {
        let maps = [tree, &kernel].map(|it| pieces(&it.join(&file)));
        // squashfs has no holes for its own kernel.
        assert!(maps[0] == maps[1] || maps[1].len() <= 1, "{file}");
    }
    let differences = sh!("rsync -aHAX --checksum -n -i --delete {theirs}/ {ours}/");
    assert_eq!(differences, "");
}

/// Where a file has data, as lseek(2) tells, in the units that a mount of ours has it in.
fn pieces(path: &Path) -> Vec<(i64, i64)> {
    let Ok(file) = fs::File::open(path) else {
        return Vec::new();
    };
    let seek = |at, whence| {
        // SAFETY: the descriptor is open, and lseek takes no memory.
        unsafe { libc::lseek(file.as_raw_fd(), at, whence) }
    };
    let size = file.metadata().expect("it is open").len().cast_signed();
    let mut found: Vec<(i64, i64)> = Vec::new();
    let mut at = 0;
    loop {
        let data = seek(at, libc::SEEK_DATA);
        if data < 0 {
            return found;
        }
        at = seek(data, libc::SEEK_HOLE);
        let (start, end) = (data - data % UNIT, (at + UNIT - 1) / UNIT * UNIT);
        match found.last_mut() {
            Some((_, last)) if *last >= start => *last = end.min(size),
            _ => found.push((start, end.min(size))),
        }
    }
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        qmpfs_tests::sh::attempt(&format!("umount {}", self.0.display()));
    }
}

/// What point.json says of a filesystem that was looked into.
#[track_caller]
fn named_in_point_json(point: &Path, copied: Copied) {
    let said = qmpfs_tests::tree::json(&point.join("point.json"));
    let expected = match copied {
        Copied::Unmounted => "clean",
        Copied::InUse => "replayed",
    };
    assert_eq!(said["filesystems"][0]["log"], expected, "{said}");
}

/// Through a mount, against the kernel.
fn compared(name: &str, mkfs: &str, megabytes: u32, count: u32, copied: Copied) {
    let scratch = Scratch::new(name);
    let share = Share::or_whole(megabytes, count);
    let image = filled_with(&scratch, mkfs, share, copied);
    // the kernel wants to know that an XFS is a copy
    let options = match mkfs == MKFS_XFS {
        true => ",nouuid",
        false => "",
    };
    let (mount, point) = mounted(&scratch, &image, "ro,symlinks=guest");
    // By name, before anything was listed.
    let many = point.join("files/0/many");
    let number = share.names / 2 + 2;
    let found = fs::read_to_string(many.join(format!("file-number-{number}")));
    assert_eq!(found.expect("it is there"), format!("{number}\n"));
    let missed = fs::metadata(many.join("file-number-0")).expect_err("it never was");
    assert_eq!(missed.kind(), ErrorKind::NotFound);
    same_as_kernel(&scratch, &image, options, &point.join("files/0"));
    named_in_point_json(&point, copied);
    assert!(
        !mount.text("log").contains("read /"),
        "{}",
        mount.text("log")
    );
}

#[test]
fn ext4_is_what_the_kernel_shows() {
    compared(
        "files-ext4",
        "mkfs.ext4 -q -F",
        128,
        1500,
        Copied::Unmounted,
    );
}

#[test]
fn ext4_in_use_is_what_the_kernel_recovers() {
    compared(
        "files-ext4-live",
        "mkfs.ext4 -q -F -b 4096",
        128,
        1500,
        Copied::InUse,
    );
}

#[test]
fn ext4_with_small_files_in_inodes() {
    let mkfs = "mkfs.ext4 -q -F -I 512 -O inline_data,^64bit";
    compared("files-ext4-inline", mkfs, 96, 300, Copied::InUse);
}

#[test]
fn ext3_in_use_is_what_the_kernel_recovers() {
    compared("files-ext3-live", "mkfs.ext3 -q -F", 96, 300, Copied::InUse);
}

#[test]
fn ext2_is_what_the_kernel_shows() {
    compared(
        "files-ext2",
        "mkfs.ext2 -q -F -I 256",
        96,
        300,
        Copied::Unmounted,
    );
}

/// The kernel lists the ACLs of an XFS only under the names that the disk has for them. The numbers of devices
/// that are in the log alone are not known: so what is made before is on the disk.
const MKFS_XFS: &str = "mkfs.xfs -q -f";

#[test]
fn xfs_is_what_the_kernel_shows() {
    compared("files-xfs", MKFS_XFS, 320, 1000, Copied::Unmounted);
}

#[test]
fn xfs_in_use_is_what_the_kernel_recovers() {
    compared("files-xfs-live", MKFS_XFS, 320, 1000, Copied::InUse);
}

/// A disk with a filesystem in its first partition, under a writer that never stops, in its second.
struct Bench {
    mount: Mounted,
    writer: Writer,
    machine: Machine,
    scratch: Scratch,
}

const PARTITION: &str = "1MiB";

impl Bench {
    fn new(name: &str, attachment: Attachment, options: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let part = filled(&scratch, "mkfs.ext4 -q -F", 32, 100, Copied::Unmounted);
        let (raw, image) = (
            scratch.file("disk.raw"),
            scratch.dir("images").join("web1.qcow2"),
        );
        sh!(
            "truncate -s 48M {0}; printf 'label: dos\\nstart={PARTITION},size=32MiB\\nstart=40MiB\\n' | sfdisk -q {0}; \
             dd if={1} of={0} bs=1M seek=1 conv=notrunc,sparse status=none; \
             qemu-img convert -f raw -O qcow2 {0} {2}; rm {0}",
            raw.display(),
            part.display(),
            image.display()
        );
        let machine = Machine::start(&scratch, "vm", attachment, &[Disk::qcow2("vda", &image)]);
        let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], options);
        wait::until_true("the disk is in the mount", || mount.disk("vda").0.is_dir());
        let writer = Writer::start(
            &machine.endpoint("vda"),
            40 << 20..48 << 20,
            Model::default(),
            7,
        );
        Self {
            mount,
            writer,
            machine,
            scratch,
        }
    }

    fn point(&self, name: &str) -> PathBuf {
        self.mount.disk("vda").0.join("snapshots").join(name)
    }
}

fn in_a_snapshot(name: &str, attachment: Attachment) {
    let bench = Bench::new(name, attachment, &["-o", "symlinks=guest"]);
    bench
        .mount
        .disk("vda")
        .snapshot("before")
        .make()
        .expect("mkdir");
    let point = bench.point("before");
    let tree = point.join("files/1");
    let part = bench.scratch.dir("images").join("fs.raw");
    same_as_kernel(&bench.scratch, &part, "", &tree);
    assert!(point.join("files/2.txt").is_file());
    // An open file keeps the point, a walk does not.
    let file = fs::File::open(tree.join("odd/big")).expect("it opens");
    let busy = fs::remove_dir(&point).expect_err("a file in it is open");
    assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
    drop(file);
    wait::until_true("the file is closed", || fs::remove_dir(&point).is_ok());
    assert_eq!(bench.mount.wait_idle(), "done\n");
    drop((bench.writer, bench.machine));
}

over_attachments!(a_snapshot_beside_a_writer => in_a_snapshot);

/// What most people want from a snapshot, as somebody who is not root.
#[test]
fn a_user_copies_a_file_out_of_a_point() {
    let options = ["-o", "allow_other,umask=022,uid=65534,gid=65534"];
    let bench = Bench::new("files-user", Attachment::Blockdev, &options);
    bench
        .mount
        .disk("vda")
        .snapshot("before")
        .make()
        .expect("mkdir");
    let tree = bench.point("before").join("files/1");
    let copy = bench.scratch.dir("copies");
    let above = bench.scratch.file("x");
    let above = above.parent().expect("a directory");
    sh!(
        "chmod 755 {}; chown 65534:65534 {}",
        above.display(),
        copy.display()
    );
    sh!(
        "setpriv --reuid 65534 --regid 65534 --clear-groups cp -a {0}/many/file-number-3 {0}/deep {1}/",
        tree.display(),
        copy.display()
    );
    assert_eq!(
        fs::read_to_string(copy.join("file-number-3")).expect("copied"),
        "3\n"
    );
    assert_eq!(
        fs::metadata(copy.join("file-number-3"))
            .expect("copied")
            .uid(),
        65534
    );
    // Nobody may write, root neither.
    for line in [
        "rm {}/odd/tiny",
        "touch {}/x",
        "mkdir {}/x",
        "chmod 777 {}/odd",
        "mv {}/odd {}/x",
    ] {
        let line = line.replace("{}", &tree.display().to_string());
        assert!(!qmpfs_tests::sh::attempt(&line).status.success(), "{line}");
    }
    sh!("test -e {}/odd/tiny", tree.display());
}

/// Links lead where they lead in the guest, and never out of it.
#[test]
fn links_stay_inside() {
    let scratch = Scratch::new("files-links");
    let image = filled(&scratch, "mkfs.ext4 -q -F", 64, 20, Copied::Unmounted);
    let (mount, point) = mounted(&scratch, &image, "ro");
    let odd = point.join("files/0/odd");
    for (link, content) in [("absolute", "4\n"), ("up", "5\n")] {
        assert_eq!(
            fs::read_to_string(odd.join(link)).expect("it leads somewhere"),
            content
        );
        let target = fs::read_link(odd.join(link)).expect("a link");
        let size = fs::symlink_metadata(odd.join(link)).expect("a link").len();
        assert_eq!(target.as_os_str().len() as u64, size);
        assert!(target.is_relative());
    }
    drop(mount);
    fs::remove_file(scratch.dir("images").join("top.qcow2")).expect("our own");
    let (_mount, point) = mounted(&scratch, &image, "ro,symlinks=hide");
    assert_eq!(sh!("find {}/files/0 -type l", point.display()), "");
}

/// The processes that read for a mount.
fn readers(mount: &Mounted) -> Vec<u32> {
    let pid = mount.pid();
    let children = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let lists =
        children.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[test]
fn a_reader_has_nothing_but_its_socket() {
    let scratch = Scratch::new("files-confined");
    let image = filled(&scratch, "mkfs.ext4 -q -F", 64, 20, Copied::Unmounted);
    let (mount, point) = mounted(&scratch, &image, "ro");
    assert_eq!(
        readers(&mount),
        Vec::<u32>::new(),
        "nobody has looked inside"
    );
    fs::read_dir(point.join("files")).expect("it can be listed");
    assert_eq!(
        readers(&mount),
        Vec::<u32>::new(),
        "only what is in it was asked"
    );
    fs::metadata(point.join("files/0")).expect("it is there");
    let [reader] = readers(&mount)[..] else {
        panic!("one reader");
    };
    let status = fs::read_to_string(format!("/proc/{reader}/status")).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a field").trim().to_owned()
    };
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert!(field("Uid:").starts_with("65534"), "{status}");
    let limits = fs::read_to_string(format!("/proc/{reader}/limits")).expect("it runs");
    let space = limits
        .lines()
        .find(|line| line.starts_with("Max address space"));
    assert!(space.expect("a line").contains("536870912"), "{limits}");
    let open = sh!("ls -l /proc/{reader}/fd | grep -v '/dev/null\\|socket:\\|^total' || true");
    assert_eq!(open, "");
    assert_eq!(
        fs::read(format!("/proc/{reader}/environ")).unwrap_or_default(),
        b""
    );
    wait::until_true("it ends when nobody asks", || readers(&mount).is_empty());
    fs::read(point.join("files/0/odd/tiny")).expect("another one is started");
}

/// A reader that is killed or hangs costs what it was asked, and is replaced.
#[test]
fn a_reader_that_dies_or_hangs_is_replaced() {
    let scratch = Scratch::new("files-lost");
    let image = filled(&scratch, "mkfs.ext4 -q -F", 64, 20, Copied::Unmounted);
    let (mount, point) = mounted(&scratch, &image, "ro");
    let tree = point.join("files/0");
    let mut names = fs::read_dir(tree.join("many")).expect("a directory");
    names.next().expect("a name").expect("a name");
    for (signal, patience) in [("KILL", 5), ("STOP", 30)] {
        let [reader] = readers(&mount)[..] else {
            panic!("one reader");
        };
        sh!("kill -{signal} {reader}");
        let asked = Instant::now();
        let lost = fs::read_dir(tree.join("deep/a")).and_then(|mut names| names.next().transpose());
        let error = lost.expect_err("nobody answers");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        assert!(
            asked.elapsed() < Duration::from_secs(patience),
            "{:?}",
            asked.elapsed()
        );
        assert_eq!(
            fs::read_to_string(tree.join("odd/tiny")).expect("it is replaced"),
            "tiny"
        );
        assert!(!readers(&mount).contains(&reader), "the lost one is gone");
    }
    let log = mount.text("log");
    assert!(
        log.contains("did not answer in time") && log.contains("reader is gone"),
        "{log}"
    );
    fs::read(point.join("disk.raw")).expect("the mount goes on");
}

/// Filesystems that lie, one beside the other: each answers or gives an error, and the mount goes on.
#[test]
fn damaged_filesystems_harm_nobody() {
    let scratch = Scratch::new("files-damaged");
    let image = filled(&scratch, "mkfs.ext4 -q -F", 24, 50, Copied::Unmounted);
    let clean = fs::read(&image).expect("the image");
    let used: Vec<usize> = (0..4 << 20).filter(|at| clean[*at] != 0).collect();
    let disk = scratch.dir("images").join("disk.raw");
    let script: String = (0..6)
        .map(|i| format!("start={}MiB,size=24MiB\\n", 1 + i * 25))
        .collect();
    sh!(
        "truncate -s 160M {0}; printf 'label: gpt\\n{script}' | sfdisk -q {0}",
        disk.display()
    );
    let file = fs::File::options()
        .write(true)
        .open(&disk)
        .expect("the disk");
    let mut dice = qmpfs_tests::model::Dice::new(11);
    for number in 0..6u64 {
        let mut bytes = clean.clone();
        // The first stays as it is.
        for _ in 0..number * 300 {
            let at = used[dice.below(used.len() as u64) as usize];
            bytes[at] = [0, 0xff, 0x7f][dice.below(3) as usize];
        }
        file.write_all_at(&bytes, (1 + number * 25) << 20)
            .expect("room");
    }
    let (mount, point) = mounted(&scratch, &disk, "ro");
    for number in 1..=6 {
        let tree = point.join(format!("files/{number}"));
        let walk = format!(
            "timeout 60 find {0} -printf '%p %s\\n'; [ $? = 124 ] && exit 124; timeout 60 grep -rc . {0}",
            tree.display()
        );
        let walked = qmpfs_tests::sh::attempt(&walk);
        assert_ne!(walked.status.code(), Some(124), "it ends");
    }
    assert_eq!(
        sh!("find {}/files/1/many -type f | wc -l", point.display()),
        "50"
    );
    fs::read(point.join("files/1/odd/big")).expect("the first is whole");
    oracle::assert_same(&point.join("disk.raw"), &disk);
    assert_eq!(mount.json("vm.json")["connection"], "offline");
}

/// Directories whose `..` has another name now: a walk would go up and down again by it, for ever.
#[test]
fn a_walk_of_directories_that_lead_up_by_another_name_ends() {
    let scratch = Scratch::new("files-up");
    let image = filled(&scratch, "mkfs.ext4 -q -F", 24, 50, Copied::Unmounted);
    let mut bytes = fs::read(&image).expect("the image");
    // of the entries: length 12, a name of 1, a directory; an inode and a length later, a name of 2, a directory
    let first = [12, 0, 1, 2, b'.', 0, 0, 0];
    let second = [2, 2, b'.', b'.'];
    let (mut renamed, names) = (0, 14..18);
    for at in (0..bytes.len() - 1024).step_by(1024) {
        let entry = &mut bytes[at + 4..at + 32];
        if entry.starts_with(&first) && entry[names.clone()] == second {
            entry[16] = 0x7f;
            renamed += 1;
        }
    }
    assert!(renamed > 5, "{renamed} directories");
    let disk = scratch.dir("images").join("disk.raw");
    fs::write(&disk, bytes).expect("the disk");
    let (_mount, point) = mounted(&scratch, &disk, "ro");
    let tree = point.join("files/0");
    let walk = format!("timeout 60 find {} -printf '%p\\n' | wc -l", tree.display());
    let found: u32 = sh!("{walk}").parse().expect("a number");
    assert!(found > 50 && found < 5000, "{found} names");
    assert_eq!(sh!("find {}/many -type f | wc -l", tree.display()), "50");
}

/// Entries that name a directory a second time, below itself or elsewhere: it has the name by which it was seen first.
#[test]
fn a_walk_of_directories_that_are_named_twice_ends() {
    let scratch = Scratch::new("files-twice");
    let disk = scratch.dir("images").join("disk.raw");
    sh!(
        "mkdir -p {0}/a/b/c {0}/d; echo deep > {0}/a/b/c/deep; truncate -s 16M {1}; \
         mkfs.ext4 -q -F -d {0} {1} >&2; \
         printf 'link a a/b/c/up\nlink a/b a/b/c/middle\nlink . a/b/c/top\nlink a/b/c d/other\nlink d d/again\n' \
         | debugfs -w {1} >&2",
        scratch.dir("content").display(),
        disk.display()
    );
    let (_mount, point) = mounted(&scratch, &disk, "ro");
    let tree = point.join("files/0");
    // Once by names and once with attributes, in the order of the directories and backwards.
    for walk in [
        "find .",
        "ls -fRl .",
        "find d a",
        "rsync -a --list-only ./",
        "du -a .",
    ] {
        let command = format!(
            "cd {}; timeout 20 {walk} 2>&1 || [ $? -ne 124 ]",
            tree.display()
        );
        let told = sh!("{command}");
        assert!(told.contains("deep"), "{walk}: {told}");
        assert!(told.contains("Structure needs cleaning"), "{walk}: {told}");
        assert!(told.lines().count() < 60, "{walk}: {told}");
    }
    let refused = fs::metadata(tree.join("a/b/c/up")).expect_err("it is a circle");
    assert_eq!(refused.raw_os_error(), Some(libc::EUCLEAN));
    // What the kernel has forgotten may be seen by its other name; the circle stays one.
    sh!("echo 2 > /proc/sys/vm/drop_caches");
    let deep = fs::read_to_string(tree.join("d/other/deep"));
    assert_eq!(deep.expect("it can be read"), "deep\n");
    fs::metadata(tree.join("d/other/up/b/c")).expect_err("it is a circle");
}

/// `find -delete`, `rm -rf` and their kin do not get a point by way of its files.
#[test]
fn a_recursive_delete_in_files_does_not_take_the_point() {
    let bench = Bench::new("files-sweep", Attachment::Drive, &[]);
    bench
        .mount
        .disk("vda")
        .snapshot("before")
        .make()
        .expect("mkdir");
    let point = bench.point("before");
    sh!(
        "cd {}; find . -mindepth 1 -delete 2>/dev/null || true",
        point.display()
    );
    let sweep = format!(
        "find {} -delete",
        point.parent().expect("snapshots").display()
    );
    assert!(!qmpfs_tests::sh::attempt(&sweep).status.success());
    assert_eq!(
        fs::read_to_string(point.join("files/1/odd/tiny")).expect("it is there"),
        "tiny"
    );
    let gone = fs::metadata(point.join("files/1/nothing")).expect_err("no such name");
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}
