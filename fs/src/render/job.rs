//! The files of a job's directory.

use crate::model::Job;
use serde::Serialize;

/// The object of `progress`.
#[derive(Serialize)]
pub(super) struct Progress<'a> {
    verb: &'a str,
    point: &'a str,
    state: &'a str,
    current: u64,
    total: u64,
    percent: f64,
    bytes_per_second: Option<u64>,
    seconds_left: Option<u64>,
    /// What `speed` allows; null without a limit.
    limit: Option<u64>,
}

pub(super) fn state(job: &Job) -> String {
    format!("{}\n", job.state)
}

/// Empty while nothing went wrong.
pub(super) fn error(job: &Job) -> String {
    job.error
        .as_ref()
        .map(|error| format!("{}\n", error.trim_end()))
        .unwrap_or_default()
}

/// What can be written to `ctl`.
pub(super) fn words(job: &Job) -> String {
    if job.verb.starts_with("snapshot-") {
        return "none: QEMU answers nobody until it is done\n".into();
    }
    let cancel = if job.ended() || !job.can_be_cancelled() {
        ""
    } else {
        " cancel"
    };
    let finish = match job.is_mirror() && !job.ended() {
        true => " finish",
        false => "",
    };
    format!("pause resume speed BYTES[kMGT]{finish}{cancel}\n")
}

pub(super) fn progress(job: &Job) -> Progress<'_> {
    let (current, total) = job.progress;
    let share = if total == 0 {
        0.0
    } else {
        current as f64 / total as f64
    };
    let moves = job.state == "running" || job.state == "ready";
    let rate = job.rate.filter(|_| moves);
    let left = rate.and_then(|rate| total.saturating_sub(current).checked_div(rate));
    // One decimal is what a progress bar can show.
    Progress {
        verb: &job.verb,
        point: &job.point,
        state: &job.state,
        bytes_per_second: rate,
        seconds_left: left,
        limit: job.limit,
        current,
        total,
        percent: (share.min(1.0) * 1000.0).round() / 10.0,
    }
}
