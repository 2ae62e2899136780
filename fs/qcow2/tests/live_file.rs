//! What keeps reading right beside a running QEMU, shown with files that change on purpose.

mod common;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Lab, assert_reads, at_snapshot, peek64, read_all, top};
use qmpfs_qcow2::{Caches, Chain, Error, GuestOffset, Image, Layer, OpenOptions, ReadAt};

/// A file that notes each read.
struct Noting {
    file: File,
    reads: Mutex<Vec<(u64, usize)>>,
}

impl ReadAt for Noting {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads
            .lock()
            .expect("no panic")
            .push((offset, buf.len()));
        ReadAt::read_at(&self.file, buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}

/// A file that becomes another one when a certain place has been read so many times.
struct Changing {
    before: Vec<u8>,
    after: Vec<u8>,
    place: u64,
    reads_left: AtomicU32,
}

impl ReadAt for Changing {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.reads_left.load(Ordering::SeqCst);
        if left > 0 && offset == self.place {
            self.reads_left.store(left - 1, Ordering::SeqCst);
        }
        if left > 0 {
            self.before.read_at(buf, offset)
        } else {
            self.after.read_at(buf, offset)
        }
    }

    fn size(&self) -> io::Result<u64> {
        self.after.size()
    }
}

#[test]
fn the_header_is_read_once_and_the_l1_table_once() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1G");
    lab.io("a.qcow2", "write -P 1 0 4M");
    let l1 = peek64(&lab.path("a.qcow2"), 40);
    let file = File::open(lab.path("a.qcow2")).expect("open");
    let file = Arc::new(Noting {
        file,
        reads: Mutex::default(),
    });
    let image = Image::open(Arc::clone(&file) as Arc<_>).expect("open");
    assert_eq!(*file.reads.lock().expect("reads"), [(0, 65536), (l1, 16)]);
    let mut buf = vec![0; 1 << 20];
    let chain = Chain::new(vec![Arc::new(Layer::Qcow2(image))]);
    for i in 0..4 {
        chain.read_at(&mut buf, i << 20).expect("read");
    }
    let reads = file.reads.lock().expect("reads");
    assert_eq!(
        reads.len(),
        2 + 1 + 4,
        "one L2 table, then one read a run: {reads:?}"
    );
}

#[test]
fn an_old_l2_table_means_look_one_layer_down() {
    let lab = Lab::new();
    lab.img("create -f qcow2 base.qcow2 4M");
    lab.io("base.qcow2", "write -P 1 0 4M");
    lab.img("create -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
    lab.io("a.qcow2", "write -P 2 0 64k");
    let chain = lab.chain("a.qcow2");
    let before = read_all(&chain).expect("read");
    // A stream copies clusters up: the same bytes, now in the top layer.
    lab.io("a.qcow2", "write -P 1 1M 2M");
    assert!(read_all(&chain).expect("read") == before);
    assert!(read_all(&lab.chain("a.qcow2")).expect("read") == before);
}

#[test]
fn a_snapshot_table_that_changes_while_it_is_read_is_read_again() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1M");
    lab.img("snapshot -c s1 a.qcow2");
    let before = std::fs::read(lab.path("a.qcow2")).expect("read");
    let place = peek64(&lab.path("a.qcow2"), 64);
    lab.img("snapshot -c s2 a.qcow2");
    let after = std::fs::read(lab.path("a.qcow2")).expect("read");
    let file = Changing {
        before,
        after,
        place,
        reads_left: AtomicU32::new(1),
    };
    let image = Image::open(Arc::new(file)).expect("open");
    let names: Vec<_> = image
        .snapshots()
        .expect("table")
        .into_iter()
        .map(|s| s.name)
        .collect();
    assert_eq!(names, [b"s1", b"s2"]);
}

#[test]
fn a_snapshot_deleted_before_it_is_opened_is_gone() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1M");
    lab.io("a.qcow2", "write -P 1 0 1M");
    lab.img("snapshot -c s1 a.qcow2");
    let image = lab.image("a.qcow2");
    let snapshot = image.snapshots().expect("table").remove(0);
    lab.img("snapshot -d s1 a.qcow2");
    let error = image.at_snapshot(&snapshot).expect_err("gone");
    assert!(error.is_snapshot_gone() && matches!(error, Error::Corrupt(_)));
    // Another one of the same name, in the same place, is not it.
    std::thread::sleep(std::time::Duration::from_millis(5));
    lab.img("snapshot -c s1 a.qcow2");
    assert!(
        image
            .at_snapshot(&snapshot)
            .expect_err("another")
            .is_snapshot_gone()
    );
}

#[test]
fn a_table_cached_for_an_old_snapshot_is_not_used_for_a_new_one() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1M");
    let image = lab.image("a.qcow2");
    for i in 1..6 {
        lab.io("a.qcow2", &format!("write -P {i} 0 {i}00k"));
        lab.img("snapshot -c s a.qcow2");
        lab.io("a.qcow2", "write -P 99 0 1M");
        let snapshot = image.snapshots().expect("table").remove(0);
        let view = image.at_snapshot(&snapshot).expect("open");
        let expected = lab
            .try_convert("a.qcow2", "-l snapshot.name=s")
            .expect("convert");
        // Freed tables and clusters are used again by the next round.
        assert_reads(&Chain::new(vec![Arc::new(Layer::Qcow2(view))]), &expected);
        lab.img("snapshot -d s a.qcow2");
    }
}

#[test]
fn shared_caches_stay_within_their_bytes() {
    let lab = Lab::new();
    let caches = Arc::new(Caches::new(64 << 10, 16 << 10));
    lab.img("create -f qcow2 -o cluster_size=4k base.qcow2 8M");
    lab.io("base.qcow2", "write -c -P 1 0 8M");
    lab.img("create -f qcow2 -o cluster_size=4k -b base.qcow2 -F qcow2 a.qcow2");
    lab.io("a.qcow2", "write -P 2 1M 4M");
    let open = |name| {
        let options = OpenOptions {
            data_file: None,
            caches: Some(Arc::clone(&caches)),
        };
        Arc::new(Layer::Qcow2(
            Image::open_with(lab.file(name), options).expect("open"),
        ))
    };
    let chain = Chain::new(vec![open("base.qcow2"), open("a.qcow2")]);
    assert_reads(&chain, &lab.convert("a.qcow2"));
    let mut buf = [0; 100];
    for at in (0..8 << 20).step_by(5000) {
        chain.read_at(&mut buf, at).expect("read");
    }
    assert!(
        caches.bytes() > 32 << 10 && caches.bytes() <= 80 << 10,
        "{}",
        caches.bytes()
    );
}

#[test]
fn parallel_readers_see_the_same_bytes() {
    let lab = Lab::new();
    lab.img("create -f qcow2 base.qcow2 8M");
    lab.io("base.qcow2", "write -c -P 1 0 4M; write -P 2 4M 4M");
    lab.img("create -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
    lab.io("a.qcow2", "write -P 3 1M 1M; write -z 5M 1M");
    let (chain, expected) = (lab.chain("a.qcow2"), lab.convert("a.qcow2"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_reads(&chain, &expected));
        }
    });
}

#[test]
fn runs_join_across_l2_tables_and_gaps_are_skipped() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1T");
    lab.img("create -f qcow2 -o preallocation=metadata,cluster_size=4k b.qcow2 16M");
    let run = lab
        .image("a.qcow2")
        .map(GuestOffset(4096), u64::MAX)
        .expect("map");
    assert_eq!(run.len, (1 << 40) - 4096);
    let chain = lab.chain("b.qcow2");
    assert_eq!(chain.extent_at(0, u64::MAX).expect("extent").len, 16 << 20);
    assert_eq!(top(&chain).allocated_bytes().expect("allocated"), 16 << 20);
    lab.img("snapshot -c s b.qcow2");
    assert_eq!(
        at_snapshot(&chain, "s")
            .allocated_bytes()
            .expect("allocated"),
        16 << 20
    );
}

#[test]
fn a_file_cut_after_it_was_opened_gives_errors_and_never_zeros() {
    let lab = Lab::new();
    std::fs::write(lab.path("base.raw"), vec![1; 1 << 20]).expect("write");
    lab.img("create -f qcow2 -b base.raw -F raw a.qcow2 2M");
    lab.io("a.qcow2", "write -P 2 1M 1M");
    let chain = lab.chain("a.qcow2");
    let whole = read_all(&chain).expect("read");
    for name in ["base.raw", "a.qcow2"] {
        let file = File::options()
            .write(true)
            .open(lab.path(name))
            .expect("open");
        file.set_len(file.metadata().expect("size").len() - 4096)
            .expect("cut");
    }
    let mut buf = vec![0; 1 << 20];
    for at in [0, 1 << 20] {
        assert!(
            matches!(chain.read_at(&mut buf, at), Err(Error::Io { .. })),
            "cut at {at:#x}"
        );
        let n = chain
            .read_at(&mut buf[..65536], at)
            .expect("what is still there");
        assert!(n == 65536 && buf[..n] == whole[at as usize..at as usize + n]);
    }
}

#[test]
fn counting_what_is_allocated_ends_at_its_deadline() {
    let lab = Lab::new();
    lab.img("create -f qcow2 a.qcow2 1M");
    lab.io("a.qcow2", "write -P 1 0 64k");
    let chain = lab.chain("a.qcow2");
    let now = Instant::now();
    assert_eq!(chain.allocated_bytes_until(now).expect("count"), None);
    let later = now + Duration::from_secs(60);
    assert_eq!(
        chain.allocated_bytes_until(later).expect("count"),
        Some(65536)
    );
}
