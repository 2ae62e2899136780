//! The guest: random writes with a queue, each with the time it took.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use qmpfs_tests::model::Dice;
use qmpfs_tests::nbd::{Endpoint, Nbd};

/// Writes under way at any moment.
const QUEUE: u64 = 8;
const BLOCK: usize = 4 << 10;
/// What the disk is filled with at once.
const STRIDE: usize = 1 << 20;

/// Running writers.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Write>>>,
}

/// One write.
struct Write {
    began: Instant,
    ended: Instant,
}

/// How the guest fared for a while.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fared {
    /// Writes a second.
    pub(super) rate: f64,
    /// Seconds, of 99 in a hundred.
    pub(super) p99: f64,
    /// Seconds, of the slowest.
    pub(super) longest: f64,
}

/// All that were made.
pub(super) struct Writes(Vec<Write>);

/// Every cluster of the disk holds data.
pub(super) fn fill_disk(disk: &mut Nbd) {
    let mut bytes = vec![0; STRIDE];
    for offset in (0..disk.size()).step_by(STRIDE) {
        noise(&mut bytes, offset);
        disk.write(offset, &bytes).expect("QEMU takes the bytes");
    }
    disk.flush().expect("QEMU flushes");
}

/// Bytes that are all others at each place.
fn noise(bytes: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

impl Load {
    /// Begins to write into the first `bytes` of a disk.
    pub(super) fn start(endpoint: &Endpoint, bytes: u64) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let threads = (0..QUEUE).map(|seed| {
            let (stop, mut disk) = (Arc::clone(&stop), Nbd::connect(endpoint));
            std::thread::spawn(move || {
                let mut dice = Dice::new(seed + 1);
                let mut block = vec![0; BLOCK];
                let mut writes = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let offset = dice.below(bytes / BLOCK as u64) * BLOCK as u64;
                    noise(&mut block, offset ^ writes.len() as u64);
                    let began = Instant::now();
                    disk.write(offset, &block).expect("the guest can write");
                    writes.push(Write {
                        began,
                        ended: Instant::now(),
                    });
                }
                writes
            })
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    /// Ends it.
    pub(super) fn stop(self) -> Writes {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.threads.into_iter();
        Writes(all.flat_map(|it| it.join().expect("no panic")).collect())
    }
}

impl Writes {
    /// How the guest fared in that time.
    pub(super) fn between(&self, began: Instant, ended: Instant) -> Fared {
        let inside = |write: &&Write| write.ended >= began && write.began <= ended;
        let mut took: Vec<f64> = self
            .0
            .iter()
            .filter(inside)
            .map(|write| (write.ended - write.began).as_secs_f64())
            .collect();
        took.sort_by(f64::total_cmp);
        let lasted = (ended - began).as_secs_f64();
        let at = |part: usize| took.get(took.len() * part / 100).copied();
        Fared {
            rate: took.len() as f64 / lasted,
            p99: at(99).unwrap_or(f64::NAN),
            longest: took.last().copied().unwrap_or(f64::NAN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Write, Writes};
    use std::time::{Duration, Instant};

    #[test]
    fn writes_of_a_window() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let write = |began, ended| Write {
            began: at(began),
            ended: at(ended),
        };
        let writes = Writes(vec![
            write(0, 1),
            write(5, 15),
            write(12, 13),
            write(30, 31),
        ]);
        let fared = writes.between(at(10), at(20));
        assert!((fared.rate - 200.0).abs() < 1e-6, "{fared:?}");
        assert!((fared.longest - 0.010).abs() < 1e-6, "{fared:?}");
    }
}
