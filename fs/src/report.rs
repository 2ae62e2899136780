//! What happened: the lines of `log` for people, those of `events` for programs, and the counters
//! of `metrics`. All of it is kept in memory, bounded; the log is also given to `tracing`.
//! It knows verbs, paths, failures and models; not who did what nor why.

mod changes;
mod counters;
mod events;
mod ring;

pub use counters::{BUCKETS, Counters, Histogram, VerbKind};
pub use events::{Events, Own};
pub use ring::{Reader, Ring};

use crate::errno::Failure;
use crate::model::Model;
use crate::render::rfc3339;
use ring::Limits;
use std::time::{Duration, SystemTime};

/// Some weeks of an hourly snapshot.
const LIMITS: Limits = Limits {
    lines: 1000,
    bytes: 1 << 20,
};
/// Longest line: QEMU's words are kept whole, a runaway text is not.
const LINE_MAX: usize = 4096;

/// A file whose lines can be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// `log`
    Log,
    /// `events`
    Events,
}

/// The report of a mount: its log, its events and its counters.
pub struct Log {
    lines: Ring,
    events: Events,
    counters: Counters,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            lines: Ring::new(LIMITS, |gone| format!("({gone} older lines are gone)")),
            events: Events::default(),
            counters: Counters::default(),
        }
    }
}

impl Log {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// A verb was accepted and goes to work.
    pub fn begun(&self, verb: &str, path: &str, pid: u32) {
        self.events.own(Own::VerbBegun { verb, path, pid });
    }

    /// One verb and its outcome: time, verb, path, errno name, QEMU's own words, the next step.
    pub fn record(
        &self,
        verb: &str,
        path: &str,
        pid: u32,
        outcome: &Result<(), Failure>,
        elapsed: Duration,
    ) {
        let millis = elapsed.as_millis();
        let failure = outcome.as_ref().err();
        self.counters.verb(verb, path, outcome, elapsed);
        self.events.own(Own::VerbEnded {
            verb,
            path,
            pid,
            errno: failure.map(|failure| failure.errno.to_string()),
            message: failure.map(|failure| failure.message.as_str()),
            seconds: elapsed.as_secs_f64(),
        });
        match outcome {
            Ok(()) => {
                tracing::info!(verb, path, pid, millis, "done");
                self.push(&format!("{verb} {path} ok ({millis} ms, pid {pid})"));
            }
            Err(failure) => {
                tracing::warn!(verb, path, pid, millis, errno = %failure.errno, "{failure}");
                let mut line = format!(
                    "{verb} {path} {} ({millis} ms, pid {pid}): {}",
                    failure.errno, failure.message
                );
                if !failure.next.is_empty() {
                    line.push_str("; next: ");
                    line.push_str(&failure.next);
                }
                self.push(&line);
            }
        }
    }

    /// Anything else a person should know.
    pub fn note(&self, text: &str) {
        tracing::info!("{text}");
        self.push(text);
    }

    /// A new model is about to be published: what is new in it is told.
    pub fn published(&self, old: &Model, new: &Model) {
        for own in changes::changes(old, new) {
            self.events.own(own);
        }
        let now = SystemTime::now();
        let mut since = counters::lock(&self.counters.jobs);
        let known = std::mem::take(&mut *since);
        for (disk, job) in new
            .disks
            .iter()
            .flat_map(|disk| disk.jobs.iter().map(move |job| (disk, job)))
        {
            let key = (disk.name.clone(), job.id.clone());
            let at = known.get(&key).copied().unwrap_or(now);
            since.insert(key, at);
        }
    }

    /// The lines of the log.
    pub fn lines(&self) -> &Ring {
        &self.lines
    }

    /// The lines of one of the two files.
    pub fn stream(&self, stream: Stream) -> &Ring {
        match stream {
            Stream::Log => &self.lines,
            Stream::Events => self.events.lines(),
        }
    }

    /// The events.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn push(&self, text: &str) {
        let now = SystemTime::now();
        let line = one_line(&format!("{} {text}", rfc3339(now)));
        self.lines.push(line, now);
    }
}

/// Text from QEMU and from guests cannot start a line of its own, nor send escapes to a terminal.
fn one_line(text: &str) -> String {
    let mut line: String = text
        .trim_end()
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    if line.len() > LINE_MAX {
        let end = (0..=LINE_MAX)
            .rev()
            .find(|end| line.is_char_boundary(*end))
            .unwrap_or(0);
        line.truncate(end);
        line.push_str(" ...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::{LIMITS, LINE_MAX, Log};
    use crate::errno::{Errno, Failure};
    use std::time::Duration;

    #[test]
    fn a_line_says_all_the_contract_asks_for() {
        let log = Log::new();
        let failure = Failure::new(Errno::EBUSY, "Node 'x' is busy:\n\x1b[31mstream")
            .next("wait for the job");
        log.record(
            "rmdir",
            "disks/vda/snapshots/a",
            7,
            &Err(failure),
            Duration::from_millis(12),
        );
        log.record(
            "mkdir",
            "disks/vda/snapshots/b",
            8,
            &Ok(()),
            Duration::from_millis(3),
        );
        let text = log.lines().text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].ends_with(
                " rmdir disks/vda/snapshots/a EBUSY (12 ms, pid 7): Node 'x' is busy:  [31mstream; next: wait for the job"
            ),
            "{text}"
        );
        assert!(
            lines[0].as_bytes()[4] == b'-' && lines[0].contains("Z rmdir"),
            "{text}"
        );
        assert!(
            lines[1].ends_with(" mkdir disks/vda/snapshots/b ok (3 ms, pid 8)"),
            "{text}"
        );
    }

    #[test]
    fn it_is_bounded() {
        let log = Log::new();
        for index in 0..LIMITS.lines + 5 {
            log.note(&format!("line {index}"));
        }
        log.note(&"ä".repeat(LINE_MAX));
        let text = log.lines().text();
        assert!(
            text.starts_with("(6 older lines are gone)\n"),
            "{}",
            &text[..40]
        );
        assert_eq!(text.lines().count(), LIMITS.lines + 1);
        assert!(text.ends_with(" ...\n"));
    }
}
