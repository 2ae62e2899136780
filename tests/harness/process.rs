//! A child process that cannot be left behind: its output goes to a log file, it dies with its value and with the test.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::wait;

/// A running (or ended) child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `log`. Should the test itself be killed, the kernel sends `on_orphaned`.
    pub fn spawn(mut command: Command, log: &Path, on_orphaned: i32) -> Self {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log file");
        let err = out.try_clone().expect("a second handle of the log file");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, on_orphaned);
                Ok(())
            });
        }
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Self {
            child,
            log: log.to_path_buf(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child
            .try_wait()
            .expect("our own child can be waited for")
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, what: &str) -> ExitStatus {
        wait::until(what, || self.ended())
    }

    /// Waits for its end without polling and without a deadline: for what is timed.
    pub fn finish(&mut self) -> ExitStatus {
        self.child.wait().expect("our own child can be waited for")
    }

    /// Sends a signal to it, and only to it.
    pub fn signal(&mut self, signal: i32) {
        if self.ended().is_none() {
            // SAFETY: our own child, not yet waited for, so the pid is still its own.
            unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.signal(libc::SIGKILL);
        let status = self.child.wait().expect("our own child can be waited for");
        assert!(status.signal() == Some(libc::SIGKILL) || status.code().is_some());
    }

    /// SIGTERM; true if it ended by itself within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> bool {
        self.signal(libc::SIGTERM);
        wait::poll(limit, || self.ended()).is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill9();
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), tail(&self.log(), 40));
        }
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
