//! What backups and live instants cost the guest, beside the same jobs begun by hand as virsh begins them, and beside nothing.
//! The guest is a queue of small random writes over NBD to a storage daemon.

mod load;
mod participants;

use std::time::{Duration, Instant};

use qmpfs_tests::machine::{Attachment, Disk, Machine};
use qmpfs_tests::mounted::Mounted;
use qmpfs_tests::oracle;
use qmpfs_tests::scratch::Scratch;

use super::Run;
use crate::goals;
use crate::results::{Goal, Row, Series, Unit};
use crate::servers::Who;
use load::{Fared, Load};
use participants::Bench;

/// The part of the disk that the guest writes: an incremental backup copies no more than that.
const WRITTEN_PART: u64 = 4;
/// How long the guest is watched where nothing else happens.
const ALONE: Duration = Duration::from_secs(2);
/// It has come to its pace, and has written what an incremental backup is to copy.
const BEFORE: Duration = Duration::from_secs(1);

/// What happens beside the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Full,
    Incremental,
    Live,
}

impl What {
    fn words(self) -> &'static str {
        match self {
            What::Full => "a full backup",
            What::Incremental => "an incremental backup",
            What::Live => "a live instant that is read once",
        }
    }
}

pub(crate) fn full(run: &mut Run) -> Vec<Row> {
    measure(run, What::Full)
}

pub(crate) fn incremental(run: &mut Run) -> Vec<Row> {
    measure(run, What::Incremental)
}

pub(crate) fn live(run: &mut Run) -> Vec<Row> {
    measure(run, What::Live)
}

fn measure(run: &mut Run, what: What) -> Vec<Row> {
    let size = run.images.size();
    let mut bench = bench(size);
    let whos = [Who::Ours, Who::ByHand, Who::Alone];
    let once = |who| {
        bench.prepare(what, who);
        let load = Load::start(&bench.endpoint(), size / WRITTEN_PART);
        std::thread::sleep(BEFORE);
        let began = Instant::now();
        bench.go_through(what, who);
        let ended = Instant::now();
        let reads_again = who == Who::Ours && what == What::Full;
        if reads_again {
            bench.read_for_digest();
        }
        let read = Instant::now();
        let writes = load.stop();
        bench.tidy(what, who);
        let Fared { rate, p99, longest } = writes.between(began, ended);
        let digest = writes.between(ended, read).rate;
        let lasted = (ended - began).as_secs_f64();
        [rate / 1e3, p99 * 1e6, longest, lasted, digest / 1e3]
    };
    let [rate, p99, longest, lasted, digest] = run.measure(what.words(), &whos, once);
    let words = what.words();
    let row = |label: String, unit, series: Vec<Series>, goals: &'static [Goal]| Row {
        label,
        unit,
        series,
        goals,
    };
    let mut rows = vec![
        row(
            format!("4 KiB writes beside {words}, queue 8"),
            Unit::ThousandPerSecond,
            rate,
            goals::GUEST,
        ),
        row("99th percentile of them".into(), Unit::Micros, p99, &[]),
        row("the longest of them".into(), Unit::Seconds, longest, &[]),
        row(
            format!("{words} lasts"),
            Unit::Seconds,
            super::without(lasted, Who::Alone),
            &[],
        ),
    ];
    if what == What::Full {
        rows.push(row(
            "4 KiB writes while it is read for its digest, queue 8".into(),
            Unit::ThousandPerSecond,
            digest
                .into_iter()
                .filter(|series| series.who == Who::Ours)
                .collect(),
            &[],
        ));
    }
    rows
}

/// A disk full of data, and the mount.
fn bench(size: u64) -> Bench {
    let scratch = Scratch::new("bench-guest");
    let image = scratch.dir("images").join("web1.qcow2");
    oracle::create(&image, size);
    let disks = [Disk::qcow2("vda", &image)];
    let machine = Machine::start(&scratch, "vm", Attachment::StorageDaemon, &disks);
    load::fill_disk(&mut machine.nbd("vda"));
    let backups = scratch.dir("backups").display().to_string();
    let server = format!("nbd_server={}", machine.endpoint("vda").socket.display());
    let options = ["--backup-dir", &backups, "-o", "name=web1", "-o", &server];
    let mount = Mounted::new(&scratch, &[machine.qmpfs_socket()], &options);
    Bench::new(machine, mount, scratch)
}
