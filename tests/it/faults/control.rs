//! `echo WORD > jobs/ID/ctl` of a merge at work, and its cancel.

use std::fs;
use std::io;
use std::path::PathBuf;

use qmpfs_tests::bench::Bench;
use qmpfs_tests::tree::write_line;
use qmpfs_tests::wait;

use super::drive::{Round, Verb};
use super::verbs::{Place, Remove};

/// Every word that a stream takes, one after the other; the last one gives the point back.
const WORDS: [&str; 4] = ["pause", "speed 1M", "resume", "cancel"];

/// A removal that is held, slowed down, let go and taken back.
pub(super) struct Control {
    removal: Remove,
    /// The removal has begun: what is refused after that are words.
    begun: bool,
}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            removal: Remove::of_bulk(Place::Middle),
            begun: false,
        }
    }

    /// The job of the removal, unless it was faster.
    fn job(bench: &Bench) -> Option<PathBuf> {
        let jobs = fs::read_dir(bench.disk().0.join("jobs")).ok()?;
        Some(jobs.flatten().next()?.path())
    }
}

impl Verb<Bench> for Control {
    fn prepare(&mut self, bench: &mut Bench) {
        self.removal.prepare(bench);
    }

    fn act(&mut self, bench: &mut Bench) -> io::Result<()> {
        self.begun = false;
        bench.point(&self.removal.victim()).delete()?;
        self.begun = true;
        let mut answer = Ok(());
        if let Some(job) = Self::job(bench) {
            for word in WORDS {
                let told = write_line(&job.join("ctl"), format!("{word}\n").as_bytes());
                // a merge may have ended before the word
                let ended = told
                    .as_ref()
                    .is_err_and(|e| matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EBUSY)));
                if !ended {
                    answer = answer.and(told);
                }
            }
        }
        // a word that was not heard leaves the job held: a person would see that, and let it go
        let held = || {
            Self::job(bench).is_some_and(|job| {
                let state = fs::read_to_string(job.join("state")).unwrap_or_default();
                state.trim() == "paused"
            })
        };
        if answer.is_err() && held() {
            let letting_go = || {
                Self::job(bench).is_none_or(|job| {
                    write_line(&job.join("ctl"), b"resume\n").is_ok() || !job.exists()
                })
            };
            wait::poll(wait::PATIENCE, || letting_go().then_some(()));
        }
        let _ = bench.disk().wait();
        answer
    }

    fn judge(&mut self, bench: &mut Bench, round: &Round) {
        let answer = match &round.answer {
            Err(error) if !self.begun => Err(error.kind().into()),
            Ok(()) | Err(_) => Ok(()),
        };
        let of_the_removal = Round {
            before: round.before.clone(),
            answer,
            at: round.at.clone(),
            ..*round
        };
        self.removal.judge(bench, &of_the_removal);
    }
}
