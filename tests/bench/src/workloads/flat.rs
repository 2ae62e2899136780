//! What is paid once: the time until a long chain is mounted, and the memory after every view was read.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use super::{Run, chain, progress};
use crate::compare;
use crate::goals;
use crate::images::WIDE_LAYERS;
use crate::reader;
use crate::results::{Row, Series, Unit};
use crate::servers::{self, Who};
use crate::usage;

const WHOS: &[Who] = &[Who::Ours, Who::Qsd, Who::Nbd];

pub(super) fn ready(run: &mut Run) -> Vec<Row> {
    let image = run.images.chain(chain::DEPTH);
    image.warm();
    let [mounted, first] = run.measure("ready", WHOS, |who| {
        let began = Instant::now();
        let server = run.start(who, &image);
        let mounted = began.elapsed();
        let view = File::open(&server.view).expect("the view opens");
        view.read_exact_at(&mut [0; reader::BLOCK], 0)
            .expect("the view can be read");
        [mounted, began.elapsed()].map(|time| time.as_secs_f64())
    });
    let row = |what: &str, series, goals| Row {
        label: format!("chain of {}: from exec to {what}", chain::DEPTH),
        unit: Unit::Seconds,
        series,
        goals,
    };
    vec![
        row("mounted", mounted, goals::READY),
        row("the first block", first, goals::NONE),
    ]
}

pub(super) fn memory(run: &mut Run) -> Vec<Row> {
    let image = run.images.wide();
    image.warm();
    let server = run.start(Who::Ours, &image);
    let views = servers::layers(server.mountpoint());
    assert_eq!(views.len(), WIDE_LAYERS, "a view for each layer");
    let began = Instant::now();
    for (index, view) in views.iter().enumerate() {
        progress(&format!("memory: view {} of {}", index + 1, views.len()));
        walk(view);
    }
    let took = began.elapsed();
    let pid = server.pids().next().expect("qmpfs runs");
    let memory = usage::memory(pid);
    if let Err(difference) = compare::same(&server.view, &image.expected) {
        panic!("{difference}");
    }
    let row = |what: &str, unit, value, goals| Row {
        label: format!("{what} all views, 1 TiB, {WIDE_LAYERS} layers"),
        unit,
        series: vec![Series {
            who: Who::Ours,
            values: vec![value],
        }],
        goals,
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    vec![
        row(
            "RSS after walking",
            Unit::Mib,
            mib(memory.resident),
            goals::MEMORY,
        ),
        row(
            "highest RSS while walking",
            Unit::Mib,
            mib(memory.highest),
            goals::MEMORY,
        ),
        row(
            "RSS of no file after walking",
            Unit::Mib,
            mib(memory.anonymous),
            goals::NONE,
        ),
        row(
            "RSS of files after walking",
            Unit::Mib,
            mib(memory.of_files),
            goals::NONE,
        ),
        row("walking", Unit::Seconds, took.as_secs_f64(), goals::NONE),
    ]
}

/// What `ls -ls`, `tar -S` and a reader do with a disk.
fn walk(view: &Path) {
    let file = File::open(view).expect("the view opens");
    let blocks = file.metadata().expect("the view has a size").blocks();
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    for extent in reader::extents(&file).expect("the view tells its extents") {
        for at in extent.clone().step_by(buffer.len()) {
            let length = buffer.len().min((extent.end - at) as usize);
            file.read_exact_at(&mut buffer[..length], at)
                .expect("the view can be read");
            read += length as u64;
        }
    }
    assert_eq!(
        read,
        blocks * 512,
        "{}: what is allocated can be read",
        view.display()
    );
}
