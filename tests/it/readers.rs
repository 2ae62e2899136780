//! A hundred readers of every other point while one is merged away: at the bottom, in the middle and at the top of
//! the chain, by stream and by commit. Each byte they read is compared with what the oracle read at the point's instant.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use qmpfs_tests::bench::Bench;
use qmpfs_tests::machine::Attachment;
use qmpfs_tests::model::Dice;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{oracle, wait};

/// What "100 readers during a merge" asks for.
const READERS: u64 = 100;
/// A little more than the bench needs: merges take their time.
const BULK: u64 = 24 << 20;
/// At this speed a merge of half the bulk takes seconds.
const SPEED: u64 = 6 << 20;
/// So many reads fall into the part of a merge that is held up; then it goes on at its own speed.
const ENOUGH: u64 = 10 * READERS;
/// One read, at any offset.
const BLOCK: usize = 48 << 10;

struct Kept {
    name: String,
    view: PathBuf,
    expected: File,
}

/// Reads at random until told to stop; gives the number of reads.
fn read(kept: &[Kept], seed: u64, stop: &AtomicBool, reads: &AtomicU64) {
    let mut dice = Dice::new(seed);
    let (mut seen, mut wanted) = (vec![0; BLOCK], vec![0; BLOCK]);
    while !stop.load(Ordering::Relaxed) {
        let point = &kept[usize::try_from(dice.below(kept.len() as u64)).expect("small")];
        let view =
            File::open(&point.view).unwrap_or_else(|error| panic!("open {}: {error}", point.name));
        let size = view.metadata().expect("its size").len();
        for _ in 0..6 {
            let at = dice.below(size - BLOCK as u64);
            view.read_exact_at(&mut seen, at)
                .unwrap_or_else(|error| panic!("read {} at {at}: {error}", point.name));
            point
                .expected
                .read_exact_at(&mut wanted, at)
                .expect("the oracle's bytes");
            assert!(seen == wanted, "{} shows other bytes at {at}", point.name);
            reads.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn hundred_readers(name: &str, attachment: Attachment, merge: &str) {
    let scratch = Scratch::new(&format!("{name}-{merge}"));
    let dir = scratch.dir("images");
    oracle::create(&dir.join("web1.qcow2"), qmpfs_tests::bench::SIZE + BULK);
    let options = ["-o", &format!("merge={merge}")];
    let mut bench = Bench::on(scratch, dir, Vec::new(), attachment, &options);
    for point in ["bottom", "one", "middle", "two", "three", "top"] {
        bench.write_bulk();
        bench.seal(point);
    }
    bench.write_bulk();
    let kept: Vec<Kept> = ["one", "two", "three"]
        .iter()
        .map(|name| Kept {
            name: (*name).to_owned(),
            view: bench.point(name).disk_raw(),
            expected: File::open(bench.bytes_of(name)).expect("the oracle's bytes"),
        })
        .collect();
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|seed| {
                let (kept, stop, reads) = (&kept, &stop, &reads);
                scope.spawn(move || read(kept, seed, stop, reads))
            })
            .collect();
        for victim in ["middle", "bottom", "top"] {
            bench.begin_removal(victim);
            bench.machine.limit_jobs(SPEED);
            let before = reads.load(Ordering::Relaxed);
            wait::until_true("they read while it goes on, or it is over", || {
                reads.load(Ordering::Relaxed) - before > ENOUGH
                    || bench.disk().list("jobs").is_empty()
                    || readers.iter().any(thread::ScopedJoinHandle::is_finished)
            });
            // held up, a commit of the active layer may never keep up with the writer
            bench.machine.limit_jobs(0);
            bench.disk().wait().unwrap_or_else(|error| {
                panic!(
                    "the merge of {victim}: {error}\n{}",
                    bench.mount.text("log")
                )
            });
            let meanwhile = reads.load(Ordering::Relaxed) - before;
            println!("{name}: {meanwhile} reads while {victim} went by {merge}");
            assert!(
                meanwhile > READERS,
                "hardly a read fell into the merge of {victim}"
            );
            if readers.iter().any(thread::ScopedJoinHandle::is_finished) {
                break; // what it found is told below
            }
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().expect("every byte was right");
        }
    });
    bench.verify();
    bench.restart();
    bench.finish();
}

over_attachments!(during_streams => |name, attachment| hundred_readers(name, attachment, "stream"));
over_attachments!(during_commits => |name, attachment| hundred_readers(name, attachment, "commit"));
