//! Random sequences of verbs, guest's writes and faults, on a real storage daemon and on a model in plain memory. After
//! every step the two are compared: names, bytes, chain, files. A sequence that fails is shrunk, within bounds.
//! `QMPFS_MODEL_SEED=n` makes the same sequences again; `QMPFS_MODEL_MINUTES=n` goes on for so long.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

mod reference;
mod step;
mod world;

use step::{Setting, Step};
use world::World;

/// Sequences of an everyday run: two or three seconds each.
const EVERYDAY: u32 = 8;
const EVERYDAY_SEED: u64 = 1;
/// Longer ones would only be shrunk for longer.
const LENGTH: std::ops::RangeInclusive<usize> = 4..=24;
/// Each attempt to shrink is a run of its own.
const SHRINK_ATTEMPTS: u32 = 60;
const SHRINK_MILLIS: u32 = 240_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn run(setting: Setting, steps: &[Step], taken: &Cell<usize>) -> Result<(), String> {
    let mut world = World::new(setting);
    for (number, step) in steps.iter().enumerate() {
        world
            .take(step)
            .map_err(|what| format!("at step {number}, {step:?}: {what}"))?;
        taken.set(taken.get() + 1);
    }
    world.end()
}

#[test]
fn a_random_sequence_is_as_in_the_model() {
    let minutes = number("QMPFS_MODEL_MINUTES");
    // Everyday runs are alike, so that a change is what makes one fail; long ones are new each time.
    let fresh = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        u64::try_from(now.expect("after 1970").as_micros()).expect("fits")
    };
    let usual = minutes.map_or(EVERYDAY_SEED, |_| fresh());
    let seed = number("QMPFS_MODEL_SEED").unwrap_or(usual);
    let end = minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let (mut sequences, taken) = (0, Cell::new(0));
    for round in 0.. {
        let seed = seed + round;
        println!("QMPFS_MODEL_SEED={seed}");
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config {
            cases: EVERYDAY,
            max_shrink_iters: SHRINK_ATTEMPTS,
            max_shrink_time: SHRINK_MILLIS,
            failure_persistence: None,
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let outcome = runner.run(
            &(step::setting(), step::steps(LENGTH)),
            |(setting, steps)| {
                // a panic of the harness is a failure like any other, so that it is shrunk, too
                let run = AssertUnwindSafe(|| run(setting, &steps, &taken));
                match catch_unwind(run) {
                    Ok(outcome) => outcome.map_err(TestCaseError::fail),
                    Err(_) => Err(TestCaseError::fail("a panic, see above")),
                }
            },
        );
        if let Err(failure) = outcome {
            panic!("{failure}\nQMPFS_MODEL_SEED={seed}");
        }
        sequences += EVERYDAY;
        println!("{sequences} sequences, {} steps", taken.get());
        if end.is_none_or(|end| Instant::now() >= end) {
            break;
        }
    }
}
