//! How much of an exhaustive test one run takes: every day a sample, the same one each time, so that a change is what
//! makes it fail; with `QMPFS_FAULTS=n` n rounds where rounds are drawn, by a new seed that is printed; with `full` all
//! there are, with `kills` those of them that kill qmpfs. `QMPFS_FAULTS_SEED` makes the same sample again.

use std::time::{SystemTime, UNIX_EPOCH};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// A sample.
    Everyday,
    /// A larger one, by a seed of its own.
    Rounds(usize),
    /// qmpfs killed before and after every step: the tenth of everything that matters most.
    Kills,
    /// Everything.
    Full,
}

const EVERYDAY_SEED: u64 = 1;

/// A sample of a loop over steps takes every so manieth: kills before and after a step are two loops that begin one
/// apart, so between them they meet two of three gaps between steps.
const STRIDE: usize = 3;

impl Share {
    /// By the environment.
    pub fn asked_for() -> Self {
        match std::env::var("QMPFS_FAULTS") {
            Ok(value) if value == "full" => Self::Full,
            Ok(value) if value == "kills" => Self::Kills,
            Ok(value) => Self::Rounds(
                value
                    .parse()
                    .expect("QMPFS_FAULTS is a number, `kills` or `full`"),
            ),
            Err(_) => Self::Everyday,
        }
    }

    /// The seed of everything that is drawn.
    pub fn seed(self) -> u64 {
        let given = std::env::var("QMPFS_FAULTS_SEED").ok();
        if let Some(seed) = given.and_then(|seed| seed.parse().ok()) {
            return seed;
        }
        match self {
            Self::Everyday => EVERYDAY_SEED,
            Self::Rounds(_) | Self::Kills | Self::Full => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                u64::try_from(now.expect("after 1970").as_micros()).expect("fits")
            }
        }
    }
}

/// The steps that the `nth` of several loops over one verb's steps takes, without end: the verb ends it.
pub fn steps(nth: usize) -> impl Iterator<Item = usize> {
    let share = Share::asked_for();
    let (first, stride) = match share {
        Share::Kills | Share::Full => (0, 1),
        Share::Everyday | Share::Rounds(_) => {
            let seed = share.seed();
            println!("QMPFS_FAULTS_SEED={seed}");
            let stride = u64::try_from(STRIDE).expect("small");
            let offset = usize::try_from(seed % stride).expect("small");
            ((offset + nth) % STRIDE, STRIDE)
        }
    };
    (first..).step_by(stride)
}
