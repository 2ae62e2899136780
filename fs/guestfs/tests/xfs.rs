//! XFS that was copied while it was in use, as the kernel shows it once it has replayed the log. Mounting wants root; who is
//! another user is told so, and nothing is compared.

use qmpfs_guestfs::{Error, FileKind, Filesystem, Journal, Kind, open};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// The basic blocks of a log.
const BLOCK: usize = 512;
/// What a record of it begins with.
const MAGIC: [u8; 4] = [0xfe, 0xed, 0xba, 0xbe];

/// What each file has, by its path.
type Files = BTreeMap<String, Vec<u8>>;

/// A directory with a place to mount at.
struct Scratch(TempDir);

impl Scratch {
    /// None for who may not mount.
    fn new() -> Option<Scratch> {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let owner = std::os::unix::fs::MetadataExt::uid;
        if owner(&directory.path().metadata().expect("made")) != 0 {
            println!("mounting wants root: nothing is compared");
            return None;
        }
        fs::create_dir(directory.path().join("kernel")).expect("room");
        Some(Scratch(directory))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Whether a script went well that runs in the directory.
    fn runs(&self, script: &str) -> bool {
        let shell = Command::new("sh")
            .args(["-euc", script])
            .current_dir(self.0.path())
            .status();
        shell.expect("a shell").success()
    }

    #[track_caller]
    fn run(&self, script: &str) {
        assert!(self.runs(script), "{script}");
    }

    /// The files of an image as the kernel shows them, in a copy; None where it refuses to mount it.
    fn kernel_shows(&self, image: &[u8]) -> Option<Files> {
        fs::write(self.path("copy.raw"), image).expect("room");
        let mounted = self.runs("mount -o loop,nouuid copy.raw kernel 2>/dev/null");
        mounted.then(|| {
            let mut files = Files::new();
            collect(&self.path("kernel"), "", &mut files);
            self.run("umount kernel");
            files
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.runs("! mountpoint -q kernel || umount kernel");
    }
}

fn collect(directory: &Path, prefix: &str, files: &mut Files) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        match path.is_dir() {
            true => collect(&path, &format!("{prefix}{name}/"), files),
            false => drop(files.insert(format!("{prefix}{name}"), fs::read(&path).expect("bytes"))),
        }
    }
}

/// An image as our reader opens it.
fn opened(image: &[u8]) -> Result<Box<dyn Filesystem>, Error> {
    open(Kind::Xfs, Arc::new(image.to_vec()))
}

/// The files of a directory, by their paths.
fn nodes(filesystem: &dyn Filesystem, directory: u64, prefix: &str, all: &mut Vec<(String, u64)>) {
    let mut cookie = Some(0);
    while let Some(at) = cookie {
        let listing = filesystem.list(directory, at).expect("it is whole");
        for entry in listing.entries {
            let path = format!("{prefix}{}", String::from_utf8_lossy(&entry.name));
            let attributes = filesystem.attributes(entry.node).expect("it is whole");
            match attributes.kind {
                FileKind::Directory => {
                    nodes(filesystem, entry.node, &format!("{path}/"), all);
                }
                _ => all.push((path, entry.node)),
            }
        }
        cookie = listing.next;
    }
}

/// All bytes of a file: those that are in no extent are zeros.
fn content(filesystem: &dyn Filesystem, node: u64) -> Result<Vec<u8>, Error> {
    let size = filesystem.attributes(node)?.size as usize;
    let mut bytes = Vec::new();
    while bytes.len() < size {
        bytes.extend(filesystem.read(node, bytes.len() as u64, 1 << 20)?);
    }
    Ok(bytes)
}

fn we_show(filesystem: &dyn Filesystem) -> Files {
    let mut found = Vec::new();
    nodes(filesystem, filesystem.root(), "", &mut found);
    let files = found.into_iter().map(|(path, node)| {
        let bytes = content(filesystem, node);
        (path, bytes.expect("it can be read"))
    });
    files.collect()
}

/// Where the records of the log begin, the newest first.
fn records(image: &[u8]) -> Vec<usize> {
    let number = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().expect("eight bytes"));
    let uuid = &image[32..48];
    let headers = (0..image.len())
        .step_by(BLOCK)
        .filter(|at| image[*at..].starts_with(&MAGIC) && &image[at + 304..at + 320] == uuid);
    let mut found: Vec<usize> = headers.collect();
    found.sort_by_key(|at| std::cmp::Reverse(number(at + 16)));
    found
}

/// A filesystem with a small log, which is copied while a script has just changed it, in `kernel`.
fn in_use(scratch: &Scratch, script: &str) -> Vec<u8> {
    // mkfs makes none as small as this unless it is told that it is a test.
    scratch.run(
        "rm -f made.raw; truncate -s 64M made.raw; export TEST_DIR=x TEST_DEV=x QA_CHECK_FS=x; \
         mkfs.xfs -q -f -d agcount=1 made.raw; mount -o loop made.raw kernel",
    );
    scratch.run(script);
    scratch.run("cp made.raw used.raw; umount kernel");
    fs::read(scratch.path("used.raw")).expect("made")
}

/// Forty records, of one file each.
const MANY: &str = "for i in $(seq 40); do mkdir kernel/$i; seq $i 2000 >kernel/$i/file; sync kernel/$i/file; done";

/// Several records are written at once, and land in any order: what comes after one that is missing does not count.
#[test]
fn the_log_ends_before_a_record_that_is_missing() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let image = in_use(&scratch, MANY);
    let whole = scratch.kernel_shows(&image).expect("it is whole");
    assert!(whole.len() >= 40, "{} files", whole.len());
    let records = records(&image);
    for missing in [&[1][..], &[0], &[1, 2], &[5], &[3, 7]] {
        let mut image = image.clone();
        for at in missing.iter().map(|index| records[*index]) {
            image[at..at + BLOCK].fill(0);
        }
        let expected = scratch.kernel_shows(&image).expect("it is mounted");
        assert!(expected != whole, "{missing:?}: something is missing");
        let ours = opened(&image).unwrap_or_else(|error| panic!("{missing:?}: {error}"));
        assert_eq!(ours.journal(), Journal::Replayed);
        assert!(we_show(&*ours) == expected, "{missing:?}");
    }
}

/// A record of which only a part was written does not count; one in the midst of the log is damage, to the kernel as well.
#[test]
fn the_log_ends_before_a_record_that_is_torn() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let image = in_use(&scratch, MANY);
    let records = records(&image);
    for torn in [0, 1, 6, 20] {
        let mut image = image.clone();
        image[records[torn] + BLOCK + 100] ^= 0xff;
        match scratch.kernel_shows(&image) {
            Some(expected) => {
                let ours = opened(&image).unwrap_or_else(|error| panic!("{torn}: {error}"));
                assert!(we_show(&*ours) == expected, "{torn}");
            }
            None => assert!(torn == 20 && opened(&image).is_err(), "{torn}"),
        }
    }
}

/// What a record of the ring's round before says of a place is not true any more, wherever it is read.
#[test]
fn records_of_the_round_before_do_not_count() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let script = "perl -MIO::Handle -e 'for $i (1..6000) { unlink(\"kernel/file-\".($i - 60)); \
         open F, q(>), \"kernel/file-$i\" or die $!; print F \"$i\\n\" x 99; F->flush; F->sync if $i % 3 == 0 }'";
    let image = in_use(&scratch, script);
    let records = records(&image);
    let cycle = |at: usize| u32::from_be_bytes(image[at + 4..at + 8].try_into().expect("four"));
    assert!(cycle(records[0]) > 1, "the ring went round");
    for missing in [None, Some(1), Some(3)] {
        let mut image = image.clone();
        if let Some(index) = missing {
            // as a disk has it that did not write this record yet
            let (at, older) = (records[index], cycle(records[0]) - 1);
            let number = (u64::from(older) << 32)
                | (u64::from_be_bytes(image[at + 16..at + 24].try_into().expect("eight"))
                    & 0xffff_ffff);
            image[at + 4..at + 8].copy_from_slice(&older.to_be_bytes());
            image[at + 16..at + 24].copy_from_slice(&number.to_be_bytes());
            image[at + 32..at + 36].fill(0);
        }
        let expected = scratch.kernel_shows(&image).expect("it is mounted");
        let ours = opened(&image).unwrap_or_else(|error| panic!("{missing:?}: {error}"));
        assert!(we_show(&*ours) == expected, "{missing:?}");
    }
}

/// A clone of a file goes on in several transactions, each of which says what the next one will do. Where the log ends between
/// two of them the kernel does what was said; here those files are refused, and all others are as the kernel shows them.
#[test]
fn what_the_log_has_only_begun_is_refused() {
    /// Copies that are looked at; in one of some a clone is under way.
    const TRIES: usize = 60;
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let clones = "perl -e 'open F, q(>), q(kernel/source) or die $!; for (1..400) { sysseek F, $_ * 8192, 0; syswrite F, qq($_) x 4096 }'; \
         sync -f kernel; \
         (while cp --reflink=always kernel/source kernel/clone-1; do :; done) 2>/dev/null & \
         (while cp --reflink=always kernel/source kernel/clone-2; do :; done) 2>/dev/null & \
         perl -MIO::Handle -e 'open F, q(>), q(kernel/beside) or die $!; F->autoflush; \
         for (1..1000000) { print F qq($_\\n) or exit; F->sync or exit }' & \
         sleep 0.5; xfs_io -x -c shutdown kernel; wait";
    let mut refused = 0;
    for _ in 0..TRIES {
        let image = in_use(&scratch, clones);
        let expected = scratch.kernel_shows(&image).expect("it is mounted");
        let ours = opened(&image).expect("it is whole");
        let mut found = Vec::new();
        nodes(&*ours, ours.root(), "", &mut found);
        assert_eq!(found.len(), expected.len());
        let mut of_this = 0;
        for (path, node) in found {
            match content(&*ours, node) {
                Ok(bytes) => assert!(bytes == expected[&path], "{path}"),
                Err(error) => {
                    assert!(matches!(error, Error::Unsupported(_)), "{path}: {error}");
                    assert!(ours.extents(node, 0, 9).is_err(), "{path}");
                    of_this += 1;
                }
            }
        }
        let journal = match of_this {
            0 => Journal::Replayed,
            _ => Journal::Partly,
        };
        assert_eq!(ours.journal(), journal, "{of_this} files");
        refused += of_this;
        if refused > 0 {
            return;
        }
    }
    assert!(refused > 0, "in no copy a clone was under way");
}

/// What a log changes is in memory all at once: of one that would need more of it than a reader has that is said.
#[test]
fn a_log_that_is_too_large_for_the_memory_is_refused() {
    /// Where the newest record is, whose tail is the first.
    const NEWEST: usize = 160 << 20;
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("large.raw");
    fs::File::create(&path)
        .and_then(|file| file.set_len(2 << 30))
        .expect("a sparse file");
    let made = Command::new("mkfs.xfs")
        .args(["-q", "-f", "-l", "size=256m"])
        .arg(&path)
        .status();
    assert!(made.expect("mkfs.xfs: mountscripts/setup").success());
    let disk = fs::File::options().read(true).write(true).open(&path);
    let disk = disk.expect("made");
    let mut superblock = vec![0; BLOCK];
    disk.read_exact_at(&mut superblock, 0).expect("made");
    let number = |at: usize, length: usize| {
        let bytes = superblock[at..at + length].iter();
        bytes.fold(0u64, |all, byte| all << 8 | u64::from(*byte))
    };
    let (start, group_bits) = (number(48, 8), superblock[124]);
    let block = (start >> group_bits) * number(84, 4) + (start & ((1 << group_bits) - 1));
    // Each block of a log begins with its cycle.
    let mut log = vec![0; NEWEST + 2 * BLOCK];
    for block in log.chunks_mut(BLOCK) {
        block[..4].copy_from_slice(&1u32.to_be_bytes());
    }
    let header = &mut log[NEWEST..][..BLOCK];
    header[..4].copy_from_slice(&MAGIC);
    for (at, value) in [
        (4, 1u32),
        (8, 2),
        (12, 512),
        (16, 1),
        (20, (NEWEST / BLOCK) as u32),
        (24, 1),
        (40, 2),
        (300, 1),
        (320, 32768),
    ] {
        header[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    header[304..320].copy_from_slice(&superblock[32..48]);
    disk.write_all_at(&log, block * number(4, 4)).expect("room");
    let refused = open(Kind::Xfs, Arc::new(disk))
        .err()
        .expect("it is too large");
    let said = "not supported: its log is too large to be replayed in memory";
    assert_eq!(refused.to_string(), said);
}
