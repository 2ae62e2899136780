//! Blocks of 4 KiB at random places, past the page cache of the view.

use std::path::Path;

use super::Run;
use crate::goals;
use crate::images::Image;
use crate::reader;
use crate::results::{Row, Series, Unit};
use crate::servers::{Server, Who};

/// Read past the page cache the raw file is no limit, but a disk.
const WHOS: &[Who] = &[Who::Ours, Who::Qsd, Who::Uring, Who::Nbd];

/// How many readers at once make a queue.
const QUEUE: u64 = 32;
/// Enough blocks that one wrong way through the tables is met.
const CHECKED: u64 = 2000;

pub(super) fn one(run: &mut Run) -> Vec<Row> {
    let image = run.images.contiguous();
    let servers = everybody(run, WHOS, |_| &image);
    let [median, slow] = latency(run, "random", &servers, image.size());
    vec![
        Row {
            goals: goals::RANDOM,
            ..row("median", Unit::Micros, median)
        },
        row("99th percentile", Unit::Micros, slow),
    ]
}

pub(super) fn many(run: &mut Run) -> Vec<Row> {
    let image = run.images.contiguous();
    let servers = everybody(run, WHOS, |_| &image);
    let mut seed = 0;
    let [series] = run.measure("queue", WHOS, |who| {
        seed += 1;
        let per_second = reader::iops(servers.view(who), image.size(), QUEUE, run.random_for, seed);
        [per_second.expect("the view can be read") / 1e3]
    });
    vec![Row {
        label: format!("4 KiB random, O_DIRECT, queue {QUEUE}"),
        goals: goals::QUEUE,
        ..row("", Unit::ThousandPerSecond, series)
    }]
}

/// The median and the 99th percentile in microseconds.
pub(super) fn latency(run: &Run, name: &str, servers: &Servers, size: u64) -> [Vec<Series>; 2] {
    let whos: Vec<Who> = servers.0.iter().map(|(who, _)| *who).collect();
    let mut seed = 0;
    run.measure(name, &whos, |who| {
        seed += 1;
        let took = reader::latencies(servers.view(who), size, run.random_for, seed)
            .expect("the view can be read");
        [took.len() / 2, took.len() * 99 / 100].map(|at| took[at].as_secs_f64() * 1e6)
    })
}

/// Participants that are all up.
pub(super) struct Servers(Vec<(Who, Server)>);

impl Servers {
    fn view(&self, who: Who) -> &Path {
        let found = self.0.iter().find(|(name, _)| *name == who);
        &found.expect("everybody was started").1.view
    }
}

/// Starts everybody, and checks what they give past the page cache.
pub(super) fn everybody<'a>(run: &Run, whos: &[Who], image: impl Fn(Who) -> &'a Image) -> Servers {
    let start = |&who: &Who| {
        let image = image(who);
        image.warm();
        let server = run.start(who, image);
        reader::check_random(&server.view, &image.expected, CHECKED).expect("every byte is right");
        (who, server)
    };
    Servers(whos.iter().map(start).collect())
}

fn row(what: &str, unit: Unit, series: Vec<Series>) -> Row {
    Row {
        label: format!("4 KiB random, O_DIRECT, queue 1, {what}"),
        unit,
        series,
        goals: goals::NONE,
    }
}
