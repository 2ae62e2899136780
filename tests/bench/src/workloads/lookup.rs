//! Where a byte of the disk is: the reader's own answer, without a mount around it.

use std::fs::File;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use qmpfs_qcow2::{Chain, Image, Layer};

use super::{Run, chain};
use crate::content::Dice;
use crate::goals;
use crate::images;
use crate::results::{Row, Series, Unit};
use crate::servers::Who;

/// Places asked for: more than a branch predictor learns by heart.
const PLACES: usize = 1 << 16;
const TIMES: usize = 32;

pub(super) fn lookup(run: &mut Run) -> Vec<Row> {
    let depths = [1, chain::DEPTH];
    let chains = depths.map(|depth| open(&run.images.chain(depth)));
    let mut values = depths.map(|_| Vec::new());
    for _ in 0..run.rounds {
        for (chain, values) in chains.iter().zip(&mut values) {
            values.push(nanos(chain));
        }
    }
    let row = |depth: usize, values: Vec<f64>| Row {
        label: format!("map lookup at depth {depth}"),
        unit: Unit::Nanos,
        series: vec![Series {
            who: Who::Ours,
            values,
        }],
        goals: goals::LOOKUP,
    };
    depths
        .into_iter()
        .zip(values)
        .map(|(depth, values)| row(depth, values))
        .collect()
}

fn open(image: &images::Image) -> Chain {
    let layer = |file| {
        let file = File::open(file).expect("an image of ours");
        Arc::new(Layer::Qcow2(
            Image::open(Arc::new(file)).expect("an image of ours"),
        ))
    };
    Chain::new(image.base_first().map(layer).collect())
}

/// Nanoseconds for one of many random lookups.
fn nanos(chain: &Chain) -> f64 {
    let mut dice = Dice::new(5);
    let blocks = chain.virtual_size() / 4096;
    let places: Vec<u64> = (0..PLACES).map(|_| dice.below(blocks) * 4096).collect();
    let ask = |at: u64| {
        chain
            .resolve(black_box(at), 4096)
            .expect("an image of ours")
    };
    for &at in &places {
        black_box(ask(at));
    }
    let began = Instant::now();
    for _ in 0..TIMES {
        for &at in &places {
            black_box(ask(at));
        }
    }
    began.elapsed().as_secs_f64() * 1e9 / (PLACES * TIMES) as f64
}
