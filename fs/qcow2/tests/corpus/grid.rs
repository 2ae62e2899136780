//! The cross product: version, cluster size, content, entries, refcounts, preallocation, data file.
//!
//! Knows: which combinations the format and the tools allow. Does not know: what is special about any.

use crate::builder::{Builder, Disk, Kinds};
use crate::common::Lab;
use crate::numbers::Numbers;
use crate::verify::Tally;

/// How many choices each axis has, in the order of `Point`'s fields.
const AXES: [usize; 10] = [2, 13, 3, 2, 2, 3, 4, 3, 4, 3];
/// Candidates looked at for each new combination of the smaller corpus.
const CANDIDATES: usize = 200;

/// One combination.
#[derive(Clone, Copy, Debug)]
struct Point {
    v3: bool,
    cluster_bits: u32,
    content: Content,
    extended: bool,
    lazy: bool,
    refcount_bits: u32,
    preallocation: &'static str,
    data_file: DataFile,
    backing: Backing,
    tail: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Content {
    Plain,
    Zlib,
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum DataFile {
    None,
    Raw,
    NotRaw,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Backing {
    None,
    Qcow2,
    OddRaw,
    EmptyRaw,
}

impl Point {
    fn of(choice: [usize; 10]) -> Point {
        let [
            v3,
            cluster,
            content,
            extended,
            lazy,
            refcounts,
            preallocation,
            data,
            backing,
            tail,
        ] = choice;
        Point {
            v3: v3 == 1,
            cluster_bits: 9 + cluster as u32,
            content: [Content::Plain, Content::Zlib, Content::Zstd][content],
            extended: extended == 1,
            lazy: lazy == 1,
            refcount_bits: [16, 1, 64][refcounts],
            preallocation: ["off", "metadata", "falloc", "full"][preallocation],
            data_file: [DataFile::None, DataFile::Raw, DataFile::NotRaw][data],
            backing: [
                Backing::None,
                Backing::Qcow2,
                Backing::OddRaw,
                Backing::EmptyRaw,
            ][backing],
            tail: [0, 512, 1536][tail],
        }
    }

    /// What the tools would refuse to create, and why.
    fn valid(&self) -> bool {
        let only_in_v3 = self.extended
            || self.lazy
            || self.refcount_bits != 16
            || self.data_file != DataFile::None
            || self.content == Content::Zstd;
        let subclusters_too_small = self.extended && self.cluster_bits < 14;
        let compressed_elsewhere =
            self.data_file != DataFile::None && self.content != Content::Plain;
        let raw_over_backing = self.data_file == DataFile::Raw && self.backing != Backing::None;
        let preallocated_over_backing =
            self.preallocation != "off" && self.backing != Backing::None && !self.extended;
        (self.v3 || !only_in_v3)
            && !subclusters_too_small
            && !compressed_elsewhere
            && !raw_over_backing
            && !preallocated_over_backing
    }

    fn options(&self) -> String {
        let mut options = format!(",preallocation={}", self.preallocation);
        options += if self.v3 {
            ",compat=1.1"
        } else {
            ",compat=0.10"
        };
        if self.v3 {
            options += &format!(",refcount_bits={}", self.refcount_bits);
        }
        for (is, option) in [
            (self.extended, ",extended_l2=on"),
            (self.lazy, ",lazy_refcounts=on"),
            (self.content == Content::Zstd, ",compression_type=zstd"),
            (self.data_file != DataFile::None, ",data_file=d.raw"),
            (self.data_file == DataFile::Raw, ",data_file_raw=on"),
        ] {
            options += if is { option } else { "" };
        }
        options
    }

    /// Makes the image, and compares it three times: with what is created, written, and kept.
    fn check(&self, numbers: &mut Numbers, tally: &mut Tally) {
        let lab = Lab::new();
        let cluster = 1u64 << self.cluster_bits;
        let size = cluster * 3 + (300 << 10) / cluster * cluster + self.tail;
        let mut image = self.create(&lab, cluster, size, numbers);
        let kinds = Kinds {
            compressed: self.content != Content::Plain && self.preallocation == "off",
            discard: true,
        };
        image.scribble(numbers, kinds);
        // Refcounts of one bit leave no room for a second owner, a data file none for a snapshot.
        let snapshots = self.refcount_bits > 1 && self.data_file == DataFile::None;
        if snapshots {
            image.snapshot("s1");
            image.scribble(numbers, kinds_of_second(kinds));
            image.snapshot("s2");
        }
        image.scribble(numbers, kinds_of_second(kinds));
        if snapshots && numbers.below(2) == 0 {
            image.delete_snapshot(0);
            image.scribble(numbers, kinds_of_second(kinds));
        }
        tally.built(&lab, &mut image);
    }

    fn create<'a>(
        &self,
        lab: &'a Lab,
        cluster: u64,
        size: u64,
        numbers: &mut Numbers,
    ) -> Builder<'a> {
        let options = self.options();
        let raw = |bytes: Vec<u8>| {
            std::fs::write(lab.path("base.raw"), &bytes).expect("write");
            ("base.raw", "raw", Disk::of(bytes))
        };
        let (file, format, below) = match self.backing {
            Backing::None => return Builder::create(lab, "a.qcow2", &options, cluster, size),
            Backing::EmptyRaw => raw(Vec::new()),
            Backing::OddRaw => raw((0..size / 2 + 77).map(|i| (i % 251) as u8 | 1).collect()),
            Backing::Qcow2 => {
                let other = *numbers.pick(&[512, 4096, 65536, 1 << 20]);
                let mut base =
                    Builder::create(lab, "base.qcow2", "", other, size * 3 / 4 / 512 * 512);
                base.write(9, 0, base.size() / 2 / 512 * 512);
                base.scribble(
                    numbers,
                    Kinds {
                        compressed: false,
                        discard: false,
                    },
                );
                ("base.qcow2", "qcow2", base.disk.clone())
            }
        };
        let backing = (file, format, &below);
        Builder::over(lab, "a.qcow2", &options, cluster, backing, Some(size))
    }
}

/// A compressed write into a cluster that is there already is refused by some versions of the tools.
fn kinds_of_second(kinds: Kinds) -> Kinds {
    Kinds {
        compressed: false,
        ..kinds
    }
}

/// The valid combinations to make: all of the format's own axes in a full run (what lies below and
/// behind at random), else enough that every valid pair of choices occurs.
fn points(numbers: &mut Numbers) -> Vec<Point> {
    if crate::full() {
        let mut points = Vec::new();
        for index in 0..AXES[..8].iter().product() {
            let mut choice = [0; 10];
            let mut rest: usize = index;
            for (axis, count) in AXES[..8].iter().enumerate() {
                choice[axis] = rest % count;
                rest /= count;
            }
            choice[8] = numbers.below(4) as usize;
            choice[9] = numbers.below(3) as usize;
            if !Point::of(choice).valid() {
                choice[8] = 0;
            }
            points.extend(Some(Point::of(choice)).filter(Point::valid));
        }
        return points;
    }
    let mut random = || {
        loop {
            let choice = AXES.map(|count| numbers.below(count as u64) as usize);
            if Point::of(choice).valid() {
                return choice;
            }
        }
    };
    let mut covered = std::collections::HashSet::new();
    let mut points = Vec::new();
    loop {
        let candidates = (0..CANDIDATES).map(|_| random());
        let gain = |choice: &[usize; 10]| pairs(choice).filter(|p| !covered.contains(p)).count();
        let best = candidates.max_by_key(gain).expect("there are candidates");
        if gain(&best) == 0 {
            return points;
        }
        covered.extend(pairs(&best));
        points.push(Point::of(best));
    }
}

/// Every pair of choices in a combination: two axes, and what was chosen on each.
fn pairs(choice: &[usize; 10]) -> impl Iterator<Item = [usize; 4]> + '_ {
    (0..10).flat_map(move |a| (0..a).map(move |b| [a, choice[a], b, choice[b]]))
}

#[test]
fn every_pair_of_features() {
    let points = points(&mut Numbers::new("grid"));
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // Two, beside the other tests: half of the time is spent waiting for the tools.
        for _ in 0..2 {
            scope.spawn(|| {
                let mut tally = Tally::default();
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(point) = points.get(index) else {
                        break;
                    };
                    let made = std::panic::AssertUnwindSafe(|| {
                        let mut numbers = Numbers::new(&format!("{point:?}"));
                        point.check(&mut numbers, &mut tally);
                    });
                    if let Err(panic) = std::panic::catch_unwind(made) {
                        eprintln!("the image was {point:?}");
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
    assert!(points.len() > 40, "{} points", points.len());
}
