//! Guests' files where there is too much of them: more filesystems than may be read at once, readers without memory,
//! and very many who ask at the same time. Whatever it is, there is an answer.

use crate::files::mounted;
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{sh, wait};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Readers that may run at the same time, as SEMANTICS.md says.
const READERS: usize = 8;
/// Filesystems on one disk: as many as a table of partitions commonly has room for.
const FILESYSTEMS: usize = 128;
/// What the mount itself may take while all of them are looked into, in KiB.
const MEMORY_MAX: u64 = 256 << 10;

/// The processes that read for a mount.
fn readers(mount: &Mounted) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", mount.pid())).expect("it runs");
    let children = |task: fs::DirEntry| fs::read_to_string(task.path().join("children"));
    let lists = tasks.filter_map(|task| children(task.ok()?).ok());
    let pids = |list: String| {
        let pids = list.split_whitespace().map(str::parse);
        pids.collect::<Result<Vec<u32>, _>>().expect("numbers")
    };
    lists.flat_map(pids).collect()
}

/// KiB of memory that a process has.
fn resident(pid: u32) -> u64 {
    let said = sh!("awk '/^VmRSS:/ {{ print $2 }}' /proc/{pid}/status");
    said.parse().expect("a number")
}

/// A disk of many small filesystems, each with the number that it has in `number`.
fn many(scratch: &Scratch) -> PathBuf {
    let (disk, one) = (
        scratch.dir("images").join("disk.raw"),
        scratch.file("one.raw"),
    );
    let tree = scratch.dir("tree");
    sh!(
        "cd {0}; mkdir -p a/b; for i in $(seq 20); do echo $i >a/b/$i; done; echo 'number 00000' >number; \
         truncate -s 1M {1}; mke2fs -q -F -b 1024 -N 64 -d {0} {1} >&2",
        tree.display(),
        one.display()
    );
    let table: String = (0..FILESYSTEMS)
        .map(|i| format!("start={}MiB,size=1MiB\\n", 1 + i))
        .collect();
    sh!(
        "truncate -s {1}M {0}; printf 'label: gpt\\n{table}' | sfdisk -q {0}",
        disk.display(),
        FILESYSTEMS + 2
    );
    let bytes = fs::read(&one).expect("made");
    let mark = b"number 00000";
    let at = bytes.windows(mark.len()).position(|it| it == mark);
    let at = at.expect("the file's bytes are on the disk");
    let file = File::options().write(true).open(&disk).expect("ours");
    for number in 1..=FILESYSTEMS {
        let mut bytes = bytes.clone();
        bytes[at..at + mark.len()].copy_from_slice(format!("number {number:05}").as_bytes());
        file.write_all_at(&bytes, (number as u64) << 20)
            .expect("room");
    }
    disk
}

/// More filesystems than readers, all walked at the same time, and a file of each open all the while: each has its turn,
/// and nobody is told anything wrong.
#[test]
fn a_hundred_filesystems_are_read_at_once() {
    let scratch = Scratch::new("files-many");
    let disk = many(&scratch);
    let (mount, point) = mounted(&scratch, &disk, "ro");
    let tree = |number: usize| point.join(format!("files/{number}"));
    let files: Vec<File> = (1..=FILESYSTEMS)
        .map(|number| File::open(tree(number).join("number")).expect("it opens"))
        .collect();
    assert!(readers(&mount).len() <= READERS);
    let (walked, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                // Who is there before and after was there all the time.
                let (before, after) = (readers(&mount), readers(&mount));
                most = most.max(after.iter().filter(|pid| before.contains(pid)).count());
                std::thread::yield_now();
            }
            most
        });
        let walks: Vec<_> = (1..=FILESYSTEMS)
            .map(|number| {
                let (tree, walked) = (tree(number), &walked);
                scope.spawn(move || {
                    let found = sh!("find {} -type f -exec cat {{}} + | wc -l", tree.display());
                    assert_eq!(found, "21", "{number}");
                    walked.fetch_add(1, Ordering::Relaxed);
                })
            })
            .collect();
        for walk in walks {
            walk.join().expect("a walk ends, and finds all");
        }
        over.store(true, Ordering::Relaxed);
        let most = watch.join().expect("it looks");
        assert!(most <= READERS, "{most} readers");
    });
    assert_eq!(walked.into_inner(), FILESYSTEMS);
    // A file that is open needs no reader: its bytes are read by the mount itself.
    wait::until_true("readers end when nobody asks", || {
        readers(&mount).is_empty()
    });
    for (number, file) in (1..).zip(&files) {
        let mut bytes = [0; 12];
        file.read_exact_at(&mut bytes, 0).expect("it can be read");
        assert_eq!(bytes, *format!("number {number:05}").as_bytes());
    }
    assert_eq!(readers(&mount), Vec::<u32>::new());
    let memory = resident(mount.pid());
    assert!(memory < MEMORY_MAX, "{memory} KiB");
    let log = mount.text("log");
    assert!(!log.contains("read /"), "{log}");
}

/// A thousand who read at the same time.
#[test]
fn a_thousand_readers_are_all_answered() {
    let scratch = Scratch::new("files-thousand");
    let disk = many(&scratch);
    let (mount, point) = mounted(&scratch, &disk, "ro");
    let one = |number: usize| {
        let tree = point.join(format!("files/{}", number % 4 + 1));
        let name = number % 20 + 1;
        let text = fs::read_to_string(tree.join(format!("a/b/{name}"))).expect("it can be read");
        assert_eq!(text, format!("{name}\n"));
        fs::read_dir(tree.join("a/b")).expect("a directory").count()
    };
    let counts: HashSet<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..1000)
            .map(|number| scope.spawn(move || one(number)))
            .collect();
        let counts = threads
            .into_iter()
            .map(|it| it.join().expect("all are answered"));
        counts.collect()
    });
    assert_eq!(counts, HashSet::from([20]));
    assert!(resident(mount.pid()) < MEMORY_MAX);
}

/// The processes that read a tree, once somebody asks.
fn asked(mount: &Mounted, tree: &Path) -> u32 {
    fs::metadata(tree).expect("it is there");
    let [reader] = readers(mount)[..] else {
        panic!("one reader");
    };
    reader
}

/// A reader that gets no more memory dies, and takes nothing along: that question is EIO, another filesystem of the same
/// disk goes on, and the next question has another reader.
#[test]
fn a_reader_without_memory_is_replaced() {
    let scratch = Scratch::new("files-memory");
    let disk = scratch.dir("images").join("disk.raw");
    let tree = scratch.dir("tree");
    sh!(
        "cd {0}; for i in $(seq 300); do mkdir $i; head -c 70000 /dev/zero | tr '\\0' x >$i/file; ln -s $(printf 'y%.0s' $(seq 100)) $i/link; done; \
         truncate -s 64M {1}; printf 'label: gpt\\nstart=1MiB,size=48MiB\\nstart=50MiB\\n' | sfdisk -q {1}; \
         truncate -s 48M {1}.one; mke2fs -q -F -b 1024 -d {0} {1}.one >&2; truncate -s 12M {1}.two; mke2fs -q -F {1}.two >&2; \
         dd if={1}.one of={1} bs=1M seek=1 conv=notrunc,sparse status=none; \
         dd if={1}.two of={1} bs=1M seek=50 conv=notrunc,sparse status=none; rm {1}.one {1}.two",
        tree.display(),
        disk.display()
    );
    let (mount, point) = mounted(&scratch, &disk, "ro");
    let tree = point.join("files/1");
    let reader = asked(&mount, &tree);
    let own = resident(mount.pid());
    // All that it has is all that it gets. Only its own user may say so, where root is confined, too.
    let as_its_user = match sh::is_root() {
        true => "setpriv --reuid 65534 --regid 65534 --clear-groups",
        false => "",
    };
    sh!(
        "has=$(awk '/^VmSize:/ {{ print $2 }}' /proc/{reader}/status); {as_its_user} prlimit --pid {reader} --as=$((has * 1024))"
    );
    let walk = sh::attempt(&format!("find {} -printf '%p %s %l\\n'", tree.display()));
    let said = String::from_utf8_lossy(&walk.stderr).into_owned();
    assert!(
        !walk.status.success() && said.contains("Input/output error"),
        "{said}"
    );
    assert!(!readers(&mount).contains(&reader), "it is gone");
    let log = mount.text("log");
    assert!(log.contains("the reader is gone"), "{log}");
    sh!("ls {}", point.join("files/2").display());
    let found = sh!("find {} -name file -size 69k | wc -l", tree.display());
    assert_eq!(found, "300", "another one reads it all");
    assert!(
        resident(mount.pid()) < own + MEMORY_MAX / 4,
        "the mount has none of it"
    );
}
