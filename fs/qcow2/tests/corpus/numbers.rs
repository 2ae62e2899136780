//! Random numbers that can be had again: a seed from the environment, or a new one, printed.

pub(crate) use crate::common::numbers::Numbers;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

impl Numbers {
    /// The numbers of this run for one purpose.
    pub(crate) fn new(purpose: &str) -> Numbers {
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        Numbers(purpose.bytes().fold(seed(), hash))
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
