//! Blocks of 4 KiB at random places, past the page cache of the view.

use super::Run;
use crate::goals;
use crate::images::Image;
use crate::reader;
use crate::results::{Row, Unit};
use crate::servers::{Server, Who};

/// Read past the page cache the raw file is no limit, but a disk.
const WHOS: &[Who] = &[Who::Ours, Who::Qsd, Who::Nbd];

/// How many readers at once make a queue.
const QUEUE: u64 = 32;
/// Enough blocks that one wrong way through the tables is met.
const CHECKED: u64 = 2000;

pub(super) fn one(run: &mut Run) -> Vec<Row> {
    let image = run.images.contiguous();
    let [median, slow] = latency(run, "random", &image, WHOS);
    vec![
        Row {
            goals: goals::RANDOM,
            ..row(
                "4 KiB random, O_DIRECT, queue 1, median",
                Unit::Micros,
                median,
            )
        },
        row(
            "4 KiB random, O_DIRECT, queue 1, 99th percentile",
            Unit::Micros,
            slow,
        ),
    ]
}

pub(super) fn many(run: &mut Run) -> Vec<Row> {
    let image = run.images.contiguous();
    let servers = everybody(run, &image, WHOS);
    let mut seed = 0;
    let [series] = run.measure("queue", WHOS, |who| {
        seed += 1;
        let view = &of(&servers, who).view;
        let per_second = reader::iops(view, image.size(), QUEUE, run.random_for, seed);
        [per_second.expect("the view can be read") / 1e3]
    });
    vec![Row {
        goals: goals::QUEUE,
        ..row(
            "4 KiB random, O_DIRECT, queue 32",
            Unit::ThousandPerSecond,
            series,
        )
    }]
}

/// The median and the 99th percentile in microseconds.
pub(super) fn latency(
    run: &Run,
    name: &str,
    image: &Image,
    whos: &[Who],
) -> [Vec<crate::results::Series>; 2] {
    let servers = everybody(run, image, whos);
    let mut seed = 0;
    run.measure(name, whos, |who| {
        seed += 1;
        let took = reader::latencies(&of(&servers, who).view, image.size(), run.random_for, seed)
            .expect("the view can be read");
        [took.len() / 2, took.len() * 99 / 100].map(|at| took[at].as_secs_f64() * 1e6)
    })
}

fn everybody(run: &Run, image: &Image, whos: &[Who]) -> Vec<(Who, Server)> {
    image.warm();
    let started = whos.iter().map(|&who| (who, run.start(who, image)));
    let servers: Vec<_> = started.collect();
    for (_, server) in &servers {
        reader::check_random(&server.view, &image.expected, CHECKED).expect("every byte is right");
    }
    servers
}

fn of(servers: &[(Who, Server)], who: Who) -> &Server {
    let found = servers.iter().find(|(name, _)| *name == who);
    &found.expect("everybody was started").1
}

fn row(label: &str, unit: Unit, series: Vec<crate::results::Series>) -> Row {
    Row {
        label: label.to_owned(),
        unit,
        series,
        goals: goals::NONE,
    }
}
