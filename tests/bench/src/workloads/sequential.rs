//! A view that nobody has read, from end to end, by one reader.

use super::{Run, without};
use crate::goals;
use crate::images::Image;
use crate::reader;
use crate::results::{Goal, Row, Unit};
use crate::servers::Who;

const WHOS: &[Who] = &[Who::Ours, Who::Qsd, Who::Uring, Who::Nbd, Who::RawFile];

pub(super) const LARGE: usize = 1 << 20;
/// What `cat` and `cp` ask for.
const SMALL: usize = 128 << 10;

pub(super) fn contiguous(run: &mut Run) -> Vec<Row> {
    let image = run.images.contiguous();
    run.check(&image, WHOS);
    let [large, small, cpu] = run.measure("sequential", WHOS, |who| {
        let (large, cpu) = read(run, who, &image, LARGE);
        let (small, _) = read(run, who, &image, SMALL);
        [large, small, cpu]
    });
    vec![
        Row {
            label: "sequential, 1 MiB reads".to_owned(),
            unit: Unit::GigabytesPerSecond,
            series: large,
            goals: goals::SEQUENTIAL,
        },
        Row {
            label: "sequential, 128 KiB reads".to_owned(),
            unit: Unit::GigabytesPerSecond,
            series: small,
            goals: goals::NONE,
        },
        Row {
            label: "CPU of the server, 1 MiB reads".to_owned(),
            unit: Unit::SecondsPerGib,
            series: without(cpu, Who::RawFile),
            goals: goals::CPU,
        },
    ]
}

pub(super) fn fragmented(run: &mut Run) -> Vec<Row> {
    let image = run.images.fragmented();
    let label = "fragmented image, sequential".to_owned();
    first_read(run, "fragmented", label, &image, WHOS, goals::FRAGMENTED)
}

pub(super) fn raw(run: &mut Run) -> Vec<Row> {
    let image = run.images.raw();
    let label = "raw layer, sequential".to_owned();
    let whos: Vec<Who> = WHOS.iter().copied().chain([Who::OursPassthrough]).collect();
    first_read(run, "raw", label, &image, &whos, goals::RAW)
}

pub(super) fn compressed(run: &mut Run) -> Vec<Row> {
    let both = [("zlib", goals::ZLIB), ("zstd", goals::ZSTD)];
    let rows = both.map(|(method, goals)| {
        let image = run.images.compressed(method);
        let ratio =
            image.size() as f64 / image.file.metadata().expect("an image of ours").len() as f64;
        let label = format!("{method} compressed ({ratio:.1}:1), sequential");
        // Beside it the raw file says nothing.
        first_read(run, method, label, &image, &WHOS[..4], goals)
    });
    rows.concat()
}

fn first_read(
    run: &Run,
    name: &str,
    label: String,
    image: &Image,
    whos: &[Who],
    goals: &'static [Goal],
) -> Vec<Row> {
    run.check(image, whos);
    let [series] = run.measure(name, whos, |who| [read(run, who, image, LARGE).0]);
    vec![Row {
        label,
        unit: Unit::GigabytesPerSecond,
        series,
        goals,
    }]
}

/// GB/s, and CPU seconds per GiB, of the first read of a fresh view.
pub(super) fn read(run: &Run, who: Who, image: &Image, request: usize) -> (f64, f64) {
    let server = run.start(who, image);
    let before = server.cpu_seconds();
    let (bytes, took) = reader::sequential(&server.view, request).expect("the view can be read");
    let cpu = server.cpu_seconds() - before;
    assert_eq!(bytes, image.size(), "{}: all of the disk", who.name());
    (
        bytes as f64 / took.as_secs_f64() / 1e9,
        cpu / (bytes as f64 / f64::from(1 << 30)),
    )
}
