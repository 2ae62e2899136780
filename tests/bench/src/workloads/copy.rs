//! `cp` of a disk with holes to a filesystem in memory, beside `qemu-img convert`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use qmpfs_tests::process::Process;

use super::Run;
use crate::compare;
use crate::goals;
use crate::images::Image;
use crate::results::{Row, Unit};
use crate::servers::Who;

const WHOS: &[Who] = &[
    Who::Ours,
    Who::Qsd,
    Who::Uring,
    Who::Nbd,
    Who::RawFile,
    Who::Convert,
];

pub(super) fn copy(run: &mut Run) -> Vec<Row> {
    let image = run.images.sparse();
    image.warm();
    for &who in WHOS {
        let (copy, _) = copied(run, who, &image);
        if let Err(difference) = compare::same(&copy, &image.expected) {
            panic!("the copy by {}: {difference}", who.name());
        }
    }
    let [series] = run.measure("copy", WHOS, |who| [copied(run, who, &image).1]);
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let data = compare::data_bytes(&image.expected);
    vec![Row {
        label: format!(
            "`cp` of a sparse view ({:.1} of {:.0} GiB)",
            gib(data),
            gib(image.size())
        ),
        unit: Unit::Seconds,
        series,
        goals: goals::COPY,
    }]
}

/// Copies once; gives the copy, which the next one replaces, and the seconds it took.
fn copied(run: &Run, who: Who, image: &Image) -> (PathBuf, f64) {
    let copy = run.copies.join("copy.raw");
    if copy.exists() {
        std::fs::remove_file(&copy).expect("a copy of ours");
    }
    let server = (who != Who::Convert).then(|| run.start(who, image));
    let mut command;
    if let Some(server) = &server {
        command = Command::new("cp");
        command.arg(&server.view);
    } else {
        command = Command::new("qemu-img");
        command
            .args(["convert", "-f", image.format, "-O", "raw"])
            .arg(&image.file);
    }
    command.arg(&copy);
    let took = timed(command, &run.dir.join("copy.log"));
    (copy, took)
}

fn timed(command: Command, log: &Path) -> f64 {
    let began = Instant::now();
    let mut process = Process::spawn(command, log, libc::SIGTERM);
    let status = process.finish();
    let took = began.elapsed().as_secs_f64();
    assert!(status.success(), "{status}\n{}", process.log());
    took
}
