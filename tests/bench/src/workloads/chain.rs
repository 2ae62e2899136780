//! The same clusters in 256 layers: what depth costs.

use super::{Run, random, sequential};
use crate::goals;
use crate::results::{Row, Unit};
use crate::servers::Who;

const WHOS: &[Who] = &[Who::Ours, Who::Qsd, Who::Uring, Who::Nbd, Who::OursFlat];
pub(super) const DEPTH: usize = 256;

pub(super) fn chain(run: &mut Run) -> Vec<Row> {
    let (deep, flat) = (run.images.chain(DEPTH), run.images.chain(1));
    let image = |who| if who == Who::OursFlat { &flat } else { &deep };
    run.check(&deep, &[Who::Ours, Who::Qsd, Who::Uring, Who::Nbd]);
    run.check(&flat, &[Who::OursFlat]);
    let [series] = run.measure("chain, sequential", WHOS, |who| {
        [sequential::read(run, who, image(who), sequential::LARGE).0]
    });
    let servers = random::everybody(run, WHOS, image);
    let [median, _] = random::latency(run, "chain, random", &servers, deep.size());
    vec![
        Row {
            label: format!("chain of {DEPTH}, sequential"),
            unit: Unit::GigabytesPerSecond,
            series,
            goals: goals::CHAIN,
        },
        Row {
            label: format!("chain of {DEPTH}, 4 KiB random, O_DIRECT, queue 1, median"),
            unit: Unit::Micros,
            series: median,
            goals: goals::NONE,
        },
    ]
}
