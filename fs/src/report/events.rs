//! `events`: what QEMU says and what we do, one JSON object a line, for programs.
//! It knows the lines' fields (docs/SEMANTICS.md, "events"); not who sends what nor why.

use super::ring::{Limits, Ring};
use crate::render::rfc3339;
use serde::Serialize;
use serde_json::Value;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Some days of a quiet VM, some minutes of one whose disk fails hundreds of times a second.
const LIMITS: Limits = Limits {
    lines: 10_000,
    bytes: 4 << 20,
};
/// QEMU's own events have some hundred bytes; what is far longer is named, not kept.
const DATA_MAX: usize = 16 << 10;

/// Something that we did or saw.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Own<'a> {
    VerbBegun {
        verb: &'a str,
        path: &'a str,
        pid: u32,
    },
    VerbEnded {
        verb: &'a str,
        path: &'a str,
        pid: u32,
        /// None when it was done.
        errno: Option<String>,
        message: Option<&'a str>,
        seconds: f64,
    },
    DiskAppeared {
        disk: &'a str,
    },
    DiskGone {
        disk: &'a str,
    },
    PointMade {
        path: String,
    },
    PointGone {
        path: String,
    },
    JobState {
        disk: &'a str,
        job: &'a str,
        verb: &'a str,
        state: &'a str,
        error: Option<&'a str>,
    },
    JobGone {
        disk: &'a str,
        job: &'a str,
    },
    RunState {
        state: Option<&'a str>,
    },
    ConnectionUp,
    ConnectionDown {
        reason: &'a str,
    },
    /// QEMU sent more than could be taken.
    EventsLost {
        count: u64,
    },
}

#[derive(Serialize)]
struct Line<T> {
    time: String,
    from: &'static str,
    #[serde(flatten)]
    what: T,
}

#[derive(Serialize)]
struct Qemu<'a> {
    event: &'a str,
    data: &'a Value,
}

/// The events of a mount.
pub struct Events {
    ring: Ring,
    seen: AtomicU64,
    lost: AtomicU64,
}

impl Default for Events {
    fn default() -> Self {
        Events {
            ring: Ring::new(LIMITS, |gone| {
                format!(r#"{{"from":"qmpfs","event":"lines_gone","count":{gone}}}"#)
            }),
            seen: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }
}

impl Events {
    /// The lines.
    pub fn lines(&self) -> &Ring {
        &self.ring
    }

    /// What QEMU has sent and we have taken.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// What QEMU has sent faster than we could take it.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// An event of QEMU, with its own clock.
    pub fn qemu(&self, event: &str, data: &Value, seconds: i64, microseconds: i64) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now();
        let clock = u64::try_from(seconds).ok();
        let micros = u64::try_from(microseconds).unwrap_or(0);
        let at = clock.and_then(|seconds| {
            UNIX_EPOCH.checked_add(Duration::from_secs(seconds) + Duration::from_micros(micros))
        });
        self.push(at.unwrap_or(now), now, "qemu", Qemu { event, data });
    }

    /// Events that were lost on the way.
    pub fn missed(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
        self.own(Own::EventsLost { count });
    }

    /// One of our own.
    pub fn own(&self, own: Own<'_>) {
        let now = SystemTime::now();
        self.push(now, now, "qmpfs", own);
    }

    fn push(&self, at: SystemTime, now: SystemTime, from: &'static str, what: impl Serialize) {
        let line = Line {
            time: rfc3339(at),
            from,
            what,
        };
        // Fails for keys that are no strings, which none of these has.
        let text = serde_json::to_string(&line).unwrap_or_default();
        let text = if text.len() > DATA_MAX {
            format!(
                r#"{{"time":"{}","from":"{from}","event":"too_long","bytes":{}}}"#,
                line.time,
                text.len()
            )
        } else {
            text
        };
        self.ring.push(text, now);
    }
}

#[cfg(test)]
mod tests {
    use super::{DATA_MAX, Events, LIMITS, Own};
    use serde_json::{Value, json};

    fn lines(events: &Events) -> Vec<Value> {
        let text = events.lines().text();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("each line is an object"))
            .collect()
    }

    #[test]
    fn a_line_is_an_object_with_time_source_and_name() {
        let events = Events::default();
        let data = json!({"id": "j\n1", "status": "running"});
        events.qemu("JOB_STATUS_CHANGE", &data, 1_700_000_000, 250_000);
        events.qemu("STOP", &Value::Null, -1, -1);
        events.own(Own::VerbEnded {
            verb: "mkdir",
            path: "/disks/vda/snapshots/\"x\"",
            pid: 7,
            errno: Some("EBUSY".into()),
            message: Some("a job\nis at work"),
            seconds: 0.5,
        });
        events.missed(12);
        let lines = lines(&events);
        assert_eq!(
            lines[0],
            json!({"time": "2023-11-14T22:13:20.250Z", "from": "qemu", "event": "JOB_STATUS_CHANGE", "data": data})
        );
        assert_eq!(lines[1]["event"], "STOP");
        assert!(
            lines[1]["time"]
                .as_str()
                .is_some_and(|time| time.ends_with('Z') && time.starts_with("20"))
        );
        assert_eq!(lines[2]["event"], "verb_ended");
        assert_eq!(lines[2]["errno"], "EBUSY");
        assert_eq!(lines[3]["count"], 12);
        assert_eq!((events.seen(), events.lost()), (2, 12));
    }

    #[test]
    fn a_flood_is_bounded_and_says_what_is_gone() {
        let events = Events::default();
        for number in 0..LIMITS.lines + 10 {
            events.qemu("BLOCK_IO_ERROR", &json!({"n": number}), 0, 0);
        }
        events.qemu("HUGE", &json!("x".repeat(DATA_MAX)), 0, 0);
        let lines = lines(&events);
        assert_eq!(lines.len(), LIMITS.lines + 1);
        assert_eq!(
            lines[0],
            json!({"from": "qmpfs", "event": "lines_gone", "count": 11})
        );
        assert_eq!(lines[LIMITS.lines]["event"], "too_long");
        assert!(events.lines().text().len() as u64 <= LIMITS.bytes + 100);
    }
}
