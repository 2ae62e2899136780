//! Random numbers that can be had again: a seed from the environment, or a new one, printed.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// A small generator.
pub(crate) struct Numbers(u64);

impl Numbers {
    /// The numbers of this run for one purpose.
    pub(crate) fn new(purpose: &str) -> Numbers {
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        Numbers(purpose.bytes().fold(seed(), hash))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 where `n` is 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next().checked_rem(n).unwrap_or(0)
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let given = std::env::var("QMPFS_CORPUS_SEED").ok();
        let seed = given.map(|text| text.parse().expect("QMPFS_CORPUS_SEED is a number"));
        let seed = seed.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.map_or(1, |now| now.as_micros() as u64)
        });
        // To standard error, past the test harness: it must be there when a run is killed.
        eprintln!("QMPFS_CORPUS_SEED={seed}");
        seed
    })
}
