//! Storage that hangs, as that of an NFS server which is gone: whoever reads from it waits, and nobody else.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::process::Process;
use qmpfs_tests::scratch::Scratch;
use qmpfs_tests::{oracle, sh, wait};

/// Of the disks.
const SIZE: u64 = 16 << 20;
/// More than there are threads that take requests.
const READERS: u64 = 8;
/// Who waits for nothing has his answer by then, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// A file that a storage daemon shows of another, over FUSE.
struct Served {
    daemon: Process,
    file: PathBuf,
}

impl Served {
    fn new(scratch: &Scratch, of: &Path) -> Served {
        let file = scratch.dir("images").join("served.qcow2");
        File::create_new(&file).expect("a place for it");
        let mut command = Command::new("qemu-storage-daemon");
        let (node, export) = (
            format!(
                "driver=file,node-name=it,read-only=on,filename={}",
                of.display()
            ),
            format!("type=fuse,id=it,node-name=it,mountpoint={}", file.display()),
        );
        command.args(["--blockdev", &node, "--export", &export]);
        let log = scratch.file("served.log");
        let daemon = Process::spawn(command, &log, libc::SIGKILL);
        let length = of.metadata().expect("it is there").len();
        wait::until_true("the file is served", || {
            file.metadata().is_ok_and(|served| served.len() == length)
        });
        Served { daemon, file }
    }

    /// It hangs until what this gives is dropped.
    fn hang(&mut self) -> Hanging<'_> {
        self.daemon.signal(libc::SIGSTOP);
        Hanging(&mut self.daemon)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.daemon.terminate(SOON);
        sh::attempt(&format!(
            "umount -l {0} || fusermount3 -uz {0}",
            self.file.display()
        ));
    }
}

struct Hanging<'a>(&'a mut Process);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.signal(libc::SIGCONT);
    }
}

/// An image with bytes of its own, and an empty one on it.
fn disk(scratch: &Scratch, name: &str, seed: u64) -> (PathBuf, Vec<u8>) {
    let (raw, image) = (
        scratch.file(&format!("{name}.raw")),
        scratch.dir("bases").join(format!("{name}.qcow2")),
    );
    let mut bytes = vec![0; SIZE as usize];
    qmpfs_tests::model::fill(&mut bytes, 0, seed);
    fs::write(&raw, &bytes).expect("room");
    sh!(
        "qemu-img convert -f raw -O qcow2 {} {}",
        raw.display(),
        image.display()
    );
    (image, bytes)
}

/// Does something that must not take long.
#[track_caller]
fn soon<T: Send + 'static>(what: &str, deed: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = channel();
    thread::spawn(move || {
        // who does not wait any more has failed
        let _late = sender.send(deed());
    });
    done.recv_timeout(SOON)
        .unwrap_or_else(|_| panic!("{what} is held up"))
}

#[test]
fn readers_of_a_layer_that_hangs_hold_up_nobody_else() {
    let scratch = Scratch::new("hanging");
    let ((slow, slow_bytes), (healthy, healthy_bytes)) =
        (disk(&scratch, "slow", 3), disk(&scratch, "healthy", 4));
    let mut served = Served::new(&scratch, &slow);
    let (web1, web2) = (
        scratch.dir("images").join("web1.qcow2"),
        scratch.dir("images").join("web2.qcow2"),
    );
    oracle::create_overlay(&web1, &served.file, SIZE);
    oracle::create_overlay(&web2, &healthy, SIZE);
    let mount = Mounted::new(&scratch, &[&web1, &web2], &["-o", "ro"]);
    let open = |disk| File::open(mount.disk(disk).layer(0).disk_raw()).expect("a view");
    let readers: Vec<File> = (0..READERS).map(|_| open("web1")).collect();
    let (seeker, closed, other) = (open("web1"), open("web1"), open("web2"));

    let hanging = served.hang();
    let begun = Arc::new(AtomicUsize::new(0));
    let waiting: Vec<_> = (0..READERS)
        .zip(readers)
        .map(|(number, file)| {
            let begun = Arc::clone(&begun);
            thread::spawn(move || {
                let (at, mut bytes) = (number << 20, vec![0; 1 << 20]);
                begun.fetch_add(1, Ordering::SeqCst);
                file.read_exact_at(&mut bytes, at).map(|()| (at, bytes))
            })
        })
        .collect();
    let sought = thread::spawn(move || {
        // SAFETY: a plain lseek on a descriptor that `seeker` keeps open.
        unsafe { libc::lseek(seeker.as_raw_fd(), 1, libc::SEEK_HOLE) }
    });
    wait::until_true("all have begun", || {
        begun.load(Ordering::SeqCst) == waiting.len()
    });
    for _ in 0..10 {
        let path = mount.path().to_owned();
        soon("the log", move || {
            fs::read(path.join("log")).expect("the log")
        });
        let layers = mount.disk("web2").0.join("layers");
        soon("a listing", move || {
            fs::read_dir(layers).expect("its layers").count()
        });
        let other = other.try_clone().expect("the same view");
        let read = soon("another disk", move || {
            let mut bytes = vec![0; 2 << 20];
            other.read_exact_at(&mut bytes, 1 << 20).map(|()| bytes)
        });
        assert!(read.expect("another disk can be read") == healthy_bytes[1 << 20..3 << 20]);
    }
    soon("a close", move || drop(closed));
    assert!(
        waiting.iter().all(|reader| !reader.is_finished()),
        "what hangs is waited for"
    );

    drop(hanging);
    for reader in waiting {
        let (at, bytes) = reader.join().expect("a reader").expect("it is read");
        let at = at as usize;
        assert!(bytes == slow_bytes[at..at + bytes.len()], "at {at}");
    }
    assert_eq!(sought.join().expect("a reader"), SIZE.cast_signed());
    drop(mount);
}
