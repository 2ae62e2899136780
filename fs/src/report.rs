//! What happened, for people: the lines of the `log` file, kept in memory and also given to
//! `tracing`. It knows verbs, paths and failures; not who did them nor why.

use crate::errno::Failure;
use crate::render::rfc3339;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Lines kept: some weeks of an hourly snapshot, and under a megabyte.
const LOG_LINES: usize = 1000;
/// Longest line: QEMU's words are kept whole, a runaway text is not.
const LINE_MAX: usize = 4096;

/// The bounded log of a mount.
#[derive(Default)]
pub struct Log {
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    lines: VecDeque<String>,
    dropped: u64,
    last: Option<SystemTime>,
}

impl Log {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
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

    /// The whole log, oldest line first.
    pub fn text(&self) -> String {
        self.text_since(0).0
    }

    /// The lines from number `first` on, which is counted from the first there ever was, and the
    /// number that comes next.
    pub fn text_since(&self, first: u64) -> (String, u64) {
        let lines = self.lock();
        let mut text = String::new();
        let gone = lines.dropped.saturating_sub(first);
        if gone > 0 {
            text.push_str(&format!("({gone} older lines are gone)\n"));
        }
        let known = usize::try_from(first.saturating_sub(lines.dropped)).unwrap_or(usize::MAX);
        for line in lines.lines.iter().skip(known) {
            text.push_str(line);
            text.push('\n');
        }
        (text, lines.dropped + lines.lines.len() as u64)
    }

    /// When the last line was written.
    pub fn modified(&self) -> Option<SystemTime> {
        self.lock().last
    }

    fn push(&self, text: &str) {
        let now = SystemTime::now();
        let line = one_line(&format!("{} {text}", rfc3339(now)));
        let mut lines = self.lock();
        if lines.lines.len() == LOG_LINES {
            lines.lines.pop_front();
            lines.dropped += 1;
        }
        lines.lines.push_back(line);
        lines.last = Some(now);
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
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
    use super::{LINE_MAX, LOG_LINES, Log};
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
        let text = log.text();
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
        for index in 0..LOG_LINES + 5 {
            log.note(&format!("line {index}"));
        }
        log.note(&"ä".repeat(LINE_MAX));
        let text = log.text();
        assert!(
            text.starts_with("(6 older lines are gone)\n"),
            "{}",
            &text[..40]
        );
        assert_eq!(text.lines().count(), LOG_LINES + 1);
        assert!(text.ends_with(" ...\n"));

        let (_, next) = log.text_since(0);
        assert_eq!(log.text_since(next), (String::new(), next));
        log.note("one more");
        let (more, after) = log.text_since(next);
        assert!(
            more.ends_with("one more\n") && more.lines().count() == 1,
            "{more}"
        );
        assert_eq!(after, next + 1);
    }
}
