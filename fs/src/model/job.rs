//! Work that is under way on a disk, as jobs/ID shows it.

use qmpbridge::JobId;

/// A job as jobs/ID shows it.
#[derive(Debug, Clone)]
pub struct Job {
    /// QEMU's job id, the directory's name.
    pub id: String,
    /// "stream", "commit", "backup" or "mirror"; of others' jobs whatever QEMU calls it.
    pub verb: String,
    /// The point it makes or removes; empty for others' jobs.
    pub point: String,
    /// QEMU's words: created, running, ready, concluded...; or queued, before QEMU knows of it.
    pub state: String,
    /// Bytes done and to do.
    pub progress: (u64, u64),
    /// Bytes a second, over the last seconds.
    pub rate: Option<u64>,
    /// Bytes a second that a person allows.
    pub limit: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Job {
    /// One of ours that has not done anything yet.
    pub fn new(id: &JobId, verb: &str, point: &str, state: &str) -> Self {
        Self {
            id: id.to_string(),
            verb: verb.to_owned(),
            point: point.to_owned(),
            state: state.to_owned(),
            progress: (0, 0),
            rate: None,
            limit: None,
            error: None,
        }
    }

    /// Whether another monitor began it: it is shown, and never touched.
    pub fn by_others(&self) -> bool {
        !JobId::new(self.id.as_str()).is_ok_and(|id| id.is_ours())
    }

    /// Whether its end leaves everything as it was. A commit has changed what it writes to.
    pub fn can_be_cancelled(&self) -> bool {
        matches!(self.verb.as_str(), "stream" | "backup" | "mirror")
    }

    /// Whether it is one of ours that ends when it is told to.
    pub fn is_mirror(&self) -> bool {
        self.verb == "mirror" && !self.by_others()
    }

    /// Whether work is still to come.
    pub fn ended(&self) -> bool {
        self.state == "concluded" || self.state == "failed"
    }
}
