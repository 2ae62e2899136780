//! The workloads by name. Each builds what it reads, checks every byte of every participant once, and measures in rounds:
//! everybody once, then everybody again, so that whatever disturbs the machine disturbs all alike.

mod again;
mod chain;
mod copy;
pub(crate) mod files;
mod flat;
mod guest;
mod lookup;
mod random;
mod sequential;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use qmpfs_tests::oracle;

use crate::images::{Image, Images};
use crate::results::{Row, Series};
use crate::servers::{Server, Who};

/// What the participants share.
pub(crate) struct Run {
    pub(crate) dir: PathBuf,
    /// Where copies go: a filesystem in memory, if there is one.
    pub(crate) copies: PathBuf,
    pub(crate) images: Images,
    pub(crate) rounds: usize,
    /// How long one participant reads at random in one round.
    pub(crate) random_for: Duration,
}

/// A workload: its name on the command line, and what measures it.
pub(crate) type Workload = (&'static str, fn(&mut Run) -> Vec<Row>);

/// Workloads that share a table of the page. The page keeps it until all of them are measured anew.
pub(crate) struct Section {
    /// On the command line, and in the page's marks.
    pub(crate) name: &'static str,
    pub(crate) heading: &'static str,
    /// Who has a column; the rest are limits.
    pub(crate) columns: &'static [Who],
    pub(crate) limits: &'static [Who],
    /// In the order of the table.
    pub(crate) workloads: &'static [Workload],
}

/// All of them, in the order of the page.
pub(crate) const SECTIONS: &[Section] = &[
    Section {
        name: "disks",
        heading: "Disks",
        columns: &[Who::Ours, Who::Qsd, Who::Uring, Who::Nbd],
        limits: &[
            Who::RawFile,
            Who::Convert,
            Who::OursFlat,
            Who::OursCached,
            Who::OursPassthrough,
        ],
        workloads: &[
            ("sequential", sequential::contiguous),
            ("fragmented", sequential::fragmented),
            ("random", random::one),
            ("queue", random::many),
            ("again", again::again),
            ("copy", copy::copy),
            ("chain", chain::chain),
            ("compressed", sequential::compressed),
            ("raw", sequential::raw),
            ("ready", flat::ready),
            ("memory", flat::memory),
            ("lookup", lookup::lookup),
        ],
    },
    Section {
        name: "files",
        heading: "Guests' files",
        columns: &[Who::Ours, Who::Kernel, Who::FuseDriver, Who::Guestmount],
        limits: &[Who::OursDisk],
        workloads: &[
            ("ext4", files::ext4),
            ("xfs", files::xfs),
            ("btrfs", files::btrfs),
            ("ntfs", files::ntfs),
            ("exfat", files::exfat),
        ],
    },
    Section {
        name: "guest",
        heading: "What backups cost the guest",
        columns: &[Who::Ours, Who::ByHand, Who::Alone],
        limits: &[],
        workloads: &[
            ("full", guest::full),
            ("incremental", guest::incremental),
            ("live", guest::live),
        ],
    },
];

impl Run {
    /// A participant with a view that nobody has read yet.
    fn start(&self, who: Who, image: &Image) -> Server {
        Server::start(who, image, &self.dir)
    }

    /// Compares all bytes that the participants give with those that are right. A fast wrong answer wins nothing.
    fn check(&self, image: &Image, whos: &[Who]) {
        image.warm();
        for &who in whos.iter().filter(|&&who| who != Who::RawFile) {
            let server = self.start(who, image);
            oracle::assert_same(&server.view, &image.expected);
        }
    }

    /// Measures `N` numbers of everybody in each round.
    fn measure<const N: usize>(
        &self,
        name: &str,
        whos: &[Who],
        mut once: impl FnMut(Who) -> [f64; N],
    ) -> [Vec<Series>; N] {
        let empty = || {
            whos.iter()
                .map(|&who| Series {
                    who,
                    values: Vec::new(),
                })
                .collect::<Vec<_>>()
        };
        let mut numbers: [Vec<Series>; N] = std::array::from_fn(|_| empty());
        for round in 1..=self.rounds {
            progress(&format!("{name}: round {round} of {}", self.rounds));
            for (index, &who) in whos.iter().enumerate() {
                for (number, value) in once(who).into_iter().enumerate() {
                    numbers[number][index].values.push(value);
                }
            }
        }
        numbers
    }
}

/// Without those who have no such number.
fn without(series: Vec<Series>, who: Who) -> Vec<Series> {
    series
        .into_iter()
        .filter(|series| series.who != who)
        .collect()
}

/// Says what is going on, on one line, to somebody who looks.
fn progress(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\rbench: {what}\x1b[K\r");
    }
}
