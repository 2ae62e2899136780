//! The readers: the same for every participant. They know files and clocks, and not what serves them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::content::Dice;

/// What a random read reads.
pub(crate) const BLOCK: usize = 4096;

/// Random reads before the clock starts: tables are loaded then, and threads are there.
const WARM_UP: Duration = Duration::from_millis(200);

/// Memory as O_DIRECT wants it.
#[repr(align(4096))]
#[derive(Clone)]
struct Aligned([u8; BLOCK]);

/// Memory for large reads; aligned, so that no participant has to copy twice.
pub(crate) struct Buffer {
    blocks: Vec<Aligned>,
}

impl Buffer {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            blocks: vec![Aligned([0; BLOCK]); bytes / BLOCK],
        }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let bytes = self.blocks.len() * BLOCK;
        // SAFETY: the blocks lie one after another without padding, and any byte is valid.
        unsafe { std::slice::from_raw_parts_mut(self.blocks.as_mut_ptr().cast(), bytes) }
    }
}

/// Opens `path`, reads it from end to end and closes it; gives the bytes and the time of all that.
pub(crate) fn sequential(path: &Path, request: usize) -> io::Result<(u64, Duration)> {
    let mut buffer = Buffer::new(request);
    let buffer = buffer.bytes();
    buffer.fill(1); // no page fault of ours is on anybody's clock
    let began = Instant::now();
    let file = File::open(path)?;
    let mut at = 0;
    loop {
        match file.read_at(buffer, at)? {
            0 => break,
            read => at += read as u64,
        }
    }
    drop(file);
    Ok((at, began.elapsed()))
}

fn open_direct(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
}

/// Random blocks, one at a time: how long each took, sorted.
pub(crate) fn latencies(
    path: &Path,
    size: u64,
    for_: Duration,
    seed: u64,
) -> io::Result<Vec<Duration>> {
    let file = open_direct(path)?;
    let mut block = Aligned([0; BLOCK]);
    let mut dice = Dice::new(seed);
    let blocks = size / BLOCK as u64;
    let mut took = Vec::with_capacity(1 << 18);
    let began = Instant::now();
    let mut now = began;
    while now - began < WARM_UP + for_ {
        let at = dice.below(blocks) * BLOCK as u64;
        let before = Instant::now();
        file.read_exact_at(&mut block.0, at)?;
        now = Instant::now();
        if now - began >= WARM_UP {
            took.push(now - before);
        }
    }
    took.sort_unstable();
    Ok(took)
}

/// Random blocks from `threads` at once: blocks per second.
pub(crate) fn iops(
    path: &Path,
    size: u64,
    threads: u64,
    for_: Duration,
    seed: u64,
) -> io::Result<f64> {
    let (counting, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let count = AtomicU64::new(0);
    let blocks = size / BLOCK as u64;
    let files = (0..threads)
        .map(|_| open_direct(path))
        .collect::<io::Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0u64..)
            .zip(&files)
            .map(|(thread, file)| {
                let (counting, done, count) = (&counting, &done, &count);
                scope.spawn(move || -> io::Result<()> {
                    let mut block = Aligned([0; BLOCK]);
                    let mut dice = Dice::new(seed ^ (thread << 32));
                    while !done.load(Ordering::Relaxed) {
                        file.read_exact_at(&mut block.0, dice.below(blocks) * BLOCK as u64)?;
                        if counting.load(Ordering::Relaxed) {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        std::thread::sleep(WARM_UP);
        let began = Instant::now();
        counting.store(true, Ordering::Relaxed);
        std::thread::sleep(for_);
        let (counted, took) = (count.load(Ordering::Relaxed), began.elapsed());
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().expect("a reader does not panic")?;
        }
        Ok(counted as f64 / took.as_secs_f64())
    })
}

/// Reads random blocks past the page cache and compares them with `expected`.
pub(crate) fn check_random(path: &Path, expected: &Path, count: u64) -> Result<(), String> {
    let said = |error: io::Error| format!("{}: {error}", path.display());
    let file = open_direct(path).map_err(said)?;
    let expected = File::open(expected).map_err(said)?;
    let blocks = expected.metadata().map_err(said)?.len() / BLOCK as u64;
    let (mut a, mut b) = (Aligned([0; BLOCK]), Aligned([0; BLOCK]));
    let mut dice = Dice::new(99);
    for _ in 0..count {
        let at = dice.below(blocks) * BLOCK as u64;
        file.read_exact_at(&mut a.0, at).map_err(said)?;
        expected.read_exact_at(&mut b.0, at).map_err(said)?;
        if a.0 != b.0 {
            return Err(format!("{}: the block at {at} is wrong", path.display()));
        }
    }
    Ok(())
}

/// Reads what a file holds, so that the page cache has it.
pub(crate) fn warm(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    for extent in extents(&file)? {
        for at in extent.clone().step_by(buffer.len()) {
            let length = buffer.len().min((extent.end - at) as usize);
            file.read_exact_at(&mut buffer[..length], at)?;
        }
    }
    Ok(())
}

/// The extents of a file, as SEEK_DATA and SEEK_HOLE tell them.
pub(crate) fn extents(file: &File) -> io::Result<Vec<std::ops::Range<u64>>> {
    let seek = |at: u64, whence| {
        // SAFETY: a plain lseek on a descriptor that `file` keeps open.
        let found = unsafe { libc::lseek(file.as_raw_fd(), at.cast_signed(), whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        match seek(at, libc::SEEK_DATA) {
            Ok(data) => {
                at = seek(data, libc::SEEK_HOLE)?;
                ranges.push(data..at);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(ranges),
            Err(error) => return Err(error),
        }
    }
}
