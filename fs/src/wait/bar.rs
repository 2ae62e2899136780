//! One line that moves, on a terminal; a line at each step, where it is none. On standard error:
//! standard output belongs to the script around it.

use super::Seen;
use crate::render::human;
use std::io::{IsTerminal, Write};

/// Characters of the bar itself.
const WIDTH: u64 = 20;
/// The narrowest terminal there is; a longer line would break and not be wiped.
const LINE: usize = 79;
/// Without a terminal a line is said at every tenth.
const STEP: u64 = 10;

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    /// A bar, or lines.
    Progress,
    /// Nothing but why it failed.
    Nothing,
}

/// What has been drawn so far.
pub(crate) struct Bar {
    how: How,
    last: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Line,
    Lines,
    Not,
}

impl Bar {
    pub(crate) fn new(say: Say) -> Self {
        let how = match say {
            Say::Nothing => How::Not,
            Say::Progress if std::io::stderr().is_terminal() => How::Line,
            Say::Progress => How::Lines,
        };
        Bar {
            how,
            last: String::new(),
        }
    }

    /// Draws the job that is at work, and how many wait behind it.
    pub(crate) fn show(&mut self, jobs: &[Seen]) {
        let at_work = jobs.iter().filter(|job| !job.ended());
        let waiting = at_work.clone().filter(|job| job.state == "queued").count();
        let Some(job) = at_work
            .clone()
            .find(|job| job.state != "queued")
            .or_else(|| at_work.clone().next())
        else {
            return;
        };
        match self.how {
            How::Not => {}
            How::Line => self.say(&format!("\r\x1b[K{}", cut(&moving(job, waiting)))),
            How::Lines => {
                let step = percent(job) / STEP * STEP;
                let key = format!("{} {} {step}", job.id, job.state);
                if key != self.last {
                    self.last = key;
                    self.say(&format!("{}: {}\n", job.disk, plain(job, waiting)));
                }
            }
        }
    }

    /// Leaves the terminal as it was.
    pub(crate) fn end(&mut self) {
        if self.how == How::Line {
            self.say("\r\x1b[K");
        }
    }

    /// A terminal that is gone is no reason to stop waiting.
    fn say(&self, text: &str) {
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes());
        let _ = stderr.flush();
    }
}

fn percent(job: &Seen) -> u64 {
    let hundredth = job.current.saturating_mul(100);
    hundredth.checked_div(job.total).unwrap_or(0).min(100)
}

fn moving(job: &Seen, waiting: usize) -> String {
    let full = percent(job) * WIDTH / 100;
    let bar: String = (0..WIDTH)
        .map(|at| if at < full { '#' } else { '.' })
        .collect();
    format!("[{bar}] {}", plain(job, waiting))
}

fn plain(job: &Seen, waiting: usize) -> String {
    let mut line = format!("{:3}%  {} of '{}'", percent(job), job.verb, job.point);
    if job.state != "running" {
        line.push_str(&format!(", {}", job.state));
    }
    if let Some(rate) = job.rate {
        line.push_str(&format!("  {}/s", human(rate)));
    }
    if let Some(left) = job.left {
        line.push_str(&format!("  {} left", clock(left)));
    }
    if waiting > 0 {
        line.push_str(&format!("  ({waiting} queued)"));
    }
    line
}

/// "0:07", "12:34", "3:00:00"
fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

fn cut(line: &str) -> String {
    line.chars().take(LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::{clock, cut, moving, percent};
    use crate::wait::Seen;

    fn job(current: u64, total: u64) -> Seen {
        Seen {
            disk: "vda".into(),
            id: "qmpfs-stream-1".into(),
            verb: "stream".into(),
            point: "before".into(),
            state: "running".into(),
            current,
            total,
            rate: Some(12 << 20),
            left: Some(75),
            error: String::new(),
        }
    }

    #[test]
    fn a_line() {
        assert_eq!(
            moving(&job(1 << 30, 4 << 30), 2),
            "[#####...............]  25%  stream of 'before'  12.0 MiB/s  1:15 left  (2 queued)"
        );
        let mut held = job(0, 0);
        held.state = "paused".into();
        (held.rate, held.left) = (None, None);
        assert_eq!(
            moving(&held, 0),
            "[....................]   0%  stream of 'before', paused"
        );
        assert_eq!(cut(&"é".repeat(100)).chars().count(), 79);
    }

    #[test]
    fn shares_and_clocks() {
        assert_eq!(percent(&job(u64::MAX, 1)), 100);
        assert_eq!(percent(&job(199, 200)), 99);
        assert_eq!(
            (clock(7), clock(3599), clock(10800)),
            ("0:07".to_owned(), "59:59".to_owned(), "3:00:00".to_owned())
        );
    }
}
