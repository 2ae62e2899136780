//! What is counted for `metrics` and stands in no model: verbs, their durations, reads, stops.
//! Every label has few values: names of points and job ids are never labels.

use crate::errno::Failure;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Upper bounds of the buckets, in seconds: a seal takes tens of milliseconds, a refusal none, and
/// no verb may take much more than ten seconds.
pub const BUCKETS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Where verbs are done: the directories of the contract. Whatever else a path says is "other".
const SECTIONS: [&str; 9] = [
    "snapshots",
    "internal",
    "layers",
    "live",
    "backups",
    "checkpoints",
    "bitmaps",
    "jobs",
    "rollback",
];

/// One kind of verb and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VerbKind {
    /// "mkdir"
    pub verb: String,
    /// "snapshots"
    pub section: &'static str,
    /// "OK", or the errno's name.
    pub errno: String,
}

/// A histogram of durations.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// Per bucket, not added up; the last is beyond all bounds.
    pub counts: [u64; BUCKETS.len() + 1],
    /// Of all.
    pub sum: Duration,
}

impl Histogram {
    fn add(&mut self, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let bucket = BUCKETS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BUCKETS.len());
        self.counts[bucket] += 1;
        self.sum += elapsed;
    }
}

/// How often and how long the guest stood still for us.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stops {
    /// How often.
    pub count: u64,
    /// Together.
    pub sum: Duration,
}

/// A job of a disk: when it was first seen.
pub(super) type JobTimes = HashMap<(String, String), SystemTime>;

/// The counters of a mount.
#[derive(Default)]
pub struct Counters {
    verbs: Mutex<BTreeMap<VerbKind, u64>>,
    durations: Mutex<BTreeMap<String, Histogram>>,
    stops: Mutex<Stops>,
    reads: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    reconnects: AtomicU64,
    pub(super) jobs: Mutex<JobTimes>,
}

impl Counters {
    pub(super) fn verb(
        &self,
        verb: &str,
        path: &str,
        outcome: &Result<(), Failure>,
        elapsed: Duration,
    ) {
        let kind = VerbKind {
            verb: verb.to_owned(),
            section: section(path),
            errno: match outcome {
                Ok(()) => "OK".to_owned(),
                Err(failure) => failure.errno.to_string(),
            },
        };
        *lock(&self.verbs).entry(kind).or_default() += 1;
        lock(&self.durations)
            .entry(verb.to_owned())
            .or_default()
            .add(elapsed);
    }

    /// The guest stood still for so long, for us.
    pub fn stopped(&self, elapsed: Duration) {
        let mut stops = lock(&self.stops);
        stops.count += 1;
        stops.sum += elapsed;
    }

    /// QEMU is connected again.
    pub fn reconnected(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// Where bytes read through views of a disk are added up.
    pub fn reads(&self, disk: &str) -> Arc<AtomicU64> {
        Arc::clone(lock(&self.reads).entry(disk.to_owned()).or_default())
    }

    /// All verbs so far.
    pub fn verbs(&self) -> BTreeMap<VerbKind, u64> {
        lock(&self.verbs).clone()
    }

    /// How long they took, by verb.
    pub fn durations(&self) -> BTreeMap<String, Histogram> {
        lock(&self.durations).clone()
    }

    /// The guest's stops.
    pub fn stops(&self) -> Stops {
        *lock(&self.stops)
    }

    /// Bytes read through views, by disk.
    pub fn bytes_read(&self) -> BTreeMap<String, u64> {
        let reads = lock(&self.reads);
        reads
            .iter()
            .map(|(disk, bytes)| (disk.clone(), bytes.load(Ordering::Relaxed)))
            .collect()
    }

    /// Connections after the first.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Since when a job is known.
    pub fn job_since(&self, disk: &str, job: &str) -> Option<SystemTime> {
        let key = (disk.to_owned(), job.to_owned());
        lock(&self.jobs).get(&key).copied()
    }
}

fn section(path: &str) -> &'static str {
    let mut words = path.split('/').filter(|word| !word.is_empty());
    let first = match words.next() {
        Some("disks") => words.nth(1),
        first => first,
    };
    SECTIONS
        .into_iter()
        .find(|section| first == Some(*section))
        .unwrap_or("other")
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{Counters, section};
    use crate::errno::{Errno, Failure};
    use std::time::Duration;

    #[test]
    fn a_path_is_counted_by_where_it_is_and_never_by_its_name() {
        assert_eq!(section("/disks/vda/snapshots/before"), "snapshots");
        assert_eq!(section("/disks/vda/jobs/x"), "jobs");
        assert_eq!(section("/snapshots/before"), "snapshots");
        assert_eq!(section("/disks/vda/rollback"), "rollback");
        for other in ["/", "/whatever", "/disks/x", "/disks/vda/whatever/x"] {
            assert_eq!(section(other), "other", "{other}");
        }
    }

    #[test]
    fn verbs_are_added_up_by_kind_and_outcome() {
        let counters = Counters::default();
        let busy = Err(Failure::new(Errno::EBUSY, "x"));
        counters.verb(
            "mkdir",
            "/disks/vda/snapshots/a",
            &Ok(()),
            Duration::from_millis(30),
        );
        counters.verb(
            "mkdir",
            "/disks/vda/snapshots/b",
            &Ok(()),
            Duration::from_millis(60),
        );
        counters.verb(
            "mkdir",
            "/disks/vda/snapshots/c",
            &busy,
            Duration::from_secs(60),
        );
        let verbs: Vec<_> = counters
            .verbs()
            .into_iter()
            .map(|(kind, count)| (kind.section, kind.errno, count))
            .collect();
        assert_eq!(
            verbs,
            [
                ("snapshots", "EBUSY".to_owned(), 1),
                ("snapshots", "OK".to_owned(), 2)
            ]
        );
        let durations = &counters.durations()["mkdir"];
        assert_eq!(durations.counts, [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(durations.sum, Duration::from_millis(60_090));
    }
}
