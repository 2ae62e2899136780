//! The goals, as the design of the reader sets them: ratios within one run, so that they hold on any machine.

use crate::results::Bound::{AtLeast, AtMost};
use crate::results::Held::{Ours, Ratio};
use crate::results::{Bound, Goal, Held};
use crate::servers::Who;

const fn goal(words: &'static str, held: Held, bound: Bound) -> Goal {
    Goal { words, held, bound }
}

const OVER_QSD: Held = Ratio(Who::Ours, Who::Qsd);
const QSD_OVER_OURS: Held = Ratio(Who::Qsd, Who::Ours);
const OVER_RAW: Held = Ratio(Who::Ours, Who::RawFile);

pub(crate) const NONE: &[Goal] = &[];
pub(crate) const SEQUENTIAL: &[Goal] = &[
    goal("≥ 11× QSD", OVER_QSD, AtLeast(11.0)),
    goal("≥ 0.5× raw file", OVER_RAW, AtLeast(0.5)),
];
pub(crate) const FRAGMENTED: &[Goal] = &[goal("≥ 8× QSD", OVER_QSD, AtLeast(8.0))];
pub(crate) const RANDOM: &[Goal] = &[goal("QSD takes ≥ 3× as long", QSD_OVER_OURS, AtLeast(3.0))];
pub(crate) const QUEUE: &[Goal] = &[goal("≥ 2.2× QSD", OVER_QSD, AtLeast(2.2))];
pub(crate) const AGAIN: &[Goal] = &[goal("≥ 0.5× raw file", OVER_RAW, AtLeast(0.5))];
pub(crate) const COPY: &[Goal] = &[goal("≤ 0.35× QSD", OVER_QSD, AtMost(0.35))];
pub(crate) const CHAIN: &[Goal] = &[
    goal("≥ 25× QSD", OVER_QSD, AtLeast(25.0)),
    goal(
        "≥ 0.85× depth 1",
        Ratio(Who::Ours, Who::OursFlat),
        AtLeast(0.85),
    ),
];
pub(crate) const ZLIB: &[Goal] = &[goal("≥ 2× QSD", OVER_QSD, AtLeast(2.0))];
pub(crate) const ZSTD: &[Goal] = &[goal("≥ 1.8× QSD", OVER_QSD, AtLeast(1.8))];
pub(crate) const CPU: &[Goal] = &[goal("≤ 1/12 of QSD", OVER_QSD, AtMost(1.0 / 12.0))];
/// Two runs of one program differ by some percent.
pub(crate) const RAW: &[Goal] = &[goal("1.0× raw file (0.95 counts)", OVER_RAW, AtLeast(0.95))];
pub(crate) const FIRST_LOOK: &[Goal] = &[goal("≤ 50 ms", Ours, AtMost(0.05))];
pub(crate) const WALK: &[Goal] = &[goal("≤ 0.2 s", Ours, AtMost(0.2))];
pub(crate) const FILE: &[Goal] = &[goal(
    "≥ 0.5× disk.raw",
    Ratio(Who::Ours, Who::OursDisk),
    AtLeast(0.5),
)];
pub(crate) const READY: &[Goal] = &[goal("≤ 1 s", Ours, AtMost(1.0))];
pub(crate) const MEMORY: &[Goal] = &[goal("≤ 256 MiB", Ours, AtMost(256.0))];
pub(crate) const LOOKUP: &[Goal] = &[goal("≤ 10 ns", Ours, AtMost(10.0))];
/// Two runs of one job differ by some percent.
pub(crate) const GUEST: &[Goal] = &[goal(
    "≥ 0.9× by hand",
    Ratio(Who::Ours, Who::ByHand),
    AtLeast(0.9),
)];
