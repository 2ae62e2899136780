//! Every error that leaves a room becomes one [`Failure`]: an errno for the caller, and for the
//! log a sentence that says what happened and one that says what to do next.
//! It knows the errno table of docs/SEMANTICS.md; it knows neither FUSE nor who reports.

use std::fmt;

/// The errnos a user of the mount can meet. The table in docs/SEMANTICS.md gives their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Errno {
    ENOENT,
    EEXIST,
    EINVAL,
    EPERM,
    EROFS,
    EBUSY,
    ENOSPC,
    EOPNOTSUPP,
    ENOTCONN,
    ETIMEDOUT,
    ESTALE,
    EUCLEAN,
    EIO,
    EACCES,
    ENOTEMPTY,
    ENOTDIR,
    EISDIR,
    ENAMETOOLONG,
    /// Never an outcome: a blocking read answers it from time to time, so that a signal is seen.
    EINTR,
}

impl Errno {
    /// The number of libc.
    pub fn code(self) -> i32 {
        match self {
            Errno::ENOENT => libc::ENOENT,
            Errno::EEXIST => libc::EEXIST,
            Errno::EINVAL => libc::EINVAL,
            Errno::EPERM => libc::EPERM,
            Errno::EROFS => libc::EROFS,
            Errno::EBUSY => libc::EBUSY,
            Errno::ENOSPC => libc::ENOSPC,
            Errno::EOPNOTSUPP => libc::EOPNOTSUPP,
            Errno::ENOTCONN => libc::ENOTCONN,
            Errno::ETIMEDOUT => libc::ETIMEDOUT,
            Errno::ESTALE => libc::ESTALE,
            Errno::EUCLEAN => libc::EUCLEAN,
            Errno::EIO => libc::EIO,
            Errno::EACCES => libc::EACCES,
            Errno::ENOTEMPTY => libc::ENOTEMPTY,
            Errno::ENOTDIR => libc::ENOTDIR,
            Errno::EISDIR => libc::EISDIR,
            Errno::ENAMETOOLONG => libc::ENAMETOOLONG,
            Errno::EINTR => libc::EINTR,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why something a user asked for was not done.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What the system call answers.
    pub errno: Errno,
    /// What happened, QEMU's own words included.
    pub message: String,
    /// The safe next step, as a command or a sentence; empty when the message says it.
    pub next: String,
    /// It is sure that nothing was changed, whatever the errno.
    pub nothing_done: bool,
}

impl Failure {
    /// A failure without a next step.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Failure {
            errno,
            message: message.into(),
            next: String::new(),
            nothing_done: false,
        }
    }

    /// The same failure with what to do about it.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }

    /// The same failure, where a verb has more than one disk.
    pub fn of_disk(mut self, disk: &str) -> Self {
        self.message = format!("disk '{disk}': {}", self.message);
        self
    }

    /// The same failure of something that QEMU was not asked for, or was not to decide: what was
    /// begun can be taken back.
    pub fn nothing_done(mut self) -> Self {
        self.nothing_done = true;
        self
    }

    /// Whether QEMU told what became of it.
    pub fn outcome_known(&self) -> bool {
        self.nothing_done || !matches!(self.errno, Errno::ENOTCONN | Errno::ETIMEDOUT)
    }

    /// What went wrong with a file of ours, `doing` being a short clause ("create /x/y").
    pub fn io(doing: impl fmt::Display, error: &std::io::Error) -> Self {
        Failure::new(io_errno(error), format!("cannot {doing}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.next.is_empty() {
            write!(f, " (next: {})", self.next)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// The errno of the contract for an error of the operating system.
pub fn io_errno(error: &std::io::Error) -> Errno {
    match error.raw_os_error() {
        Some(libc::ENOENT) => Errno::ENOENT,
        Some(libc::EEXIST) => Errno::EEXIST,
        Some(libc::EACCES) => Errno::EACCES,
        Some(libc::EPERM) => Errno::EPERM,
        Some(libc::EROFS) => Errno::EROFS,
        Some(libc::ENOSPC | libc::EDQUOT) => Errno::ENOSPC,
        Some(libc::EOPNOTSUPP) => Errno::EOPNOTSUPP,
        Some(libc::EBUSY) => Errno::EBUSY,
        Some(libc::ENAMETOOLONG) => Errno::ENAMETOOLONG,
        Some(libc::ESTALE) => Errno::ESTALE,
        _ => Errno::EIO,
    }
}

impl From<qmpbridge::AgentError> for Failure {
    fn from(error: qmpbridge::AgentError) -> Self {
        use qmpbridge::AgentError;
        let (errno, next) = match &error {
            AgentError::NobodyThere { .. } => (
                Errno::ENOTCONN,
                "name the socket of the VM's org.qemu.guest_agent.0 port",
            ),
            AgentError::Closed => (
                Errno::ENOTCONN,
                "look whether the VM and its agent run, then do it again",
            ),
            AgentError::Taken => (
                Errno::EBUSY,
                "the agent serves one client: close the others (ss -xp shows them)",
            ),
            AgentError::TimedOut { .. } => (
                Errno::ETIMEDOUT,
                "look in the guest whether qemu-guest-agent runs, and here whether another client has its socket",
            ),
            AgentError::SwitchedOff { .. } => (
                Errno::EIO,
                "allow it in the agent's configuration in the guest (/etc/qemu/qemu-ga.conf, /etc/sysconfig/qemu-ga)",
            ),
            AgentError::Refused { .. } => (
                Errno::EIO,
                "the guest's own log says more (journalctl -u qemu-guest-agent)",
            ),
            AgentError::Garbage { .. } | AgentError::TooLong { .. } => (
                Errno::EIO,
                "name the socket of the guest agent, not of a monitor or a console",
            ),
            AgentError::Io(source) => (io_errno(source), ""),
        };
        let message = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Failure::new(errno, message).next(next)
    }
}

/// A name that we chose, or wrote down, is none: our own bug, or a damaged note.
impl From<qmpbridge::InvalidName> for Failure {
    fn from(error: qmpbridge::InvalidName) -> Self {
        Failure::new(Errno::EIO, error.to_string())
    }
}

impl From<qmpbridge::Error> for Failure {
    fn from(error: qmpbridge::Error) -> Self {
        use qmpbridge::Error;
        let errno = match &error {
            Error::Disconnected | Error::NobodyListens { .. } => Errno::ENOTCONN,
            Error::MonitorTaken => Errno::EBUSY,
            Error::NoSocket { .. } => Errno::ENOENT,
            Error::NotASocket { .. } | Error::NotQmp { .. } => Errno::EINVAL,
            Error::TimedOut { .. } | Error::JobAtWork { .. } => Errno::ETIMEDOUT,
            Error::TooOld { .. } => Errno::EOPNOTSUPP,
            Error::Io(source) => io_errno(source),
            // QEMU's words are for people; what can be told beforehand, our own checks have told
            Error::Refused { .. }
            | Error::JobFailed { .. }
            | Error::JobVanished { .. }
            | Error::Protocol(_) => Errno::EIO,
        };
        let next = match &error {
            Error::MonitorTaken => {
                "while a checkpoint is saved or loaded, wait and mount again; else give QEMU one more monitor for qmpfs: -qmp unix:PATH,server=on,wait=off"
            }
            Error::NobodyListens { .. } => {
                "start the VM; if it is switched off, mount its image files instead of its socket"
            }
            Error::NoSocket { .. } => {
                "start QEMU with -qmp unix:PATH,server=on,wait=off and mount that PATH"
            }
            Error::NotASocket { .. } | Error::NotQmp { .. } => {
                "name the socket of -qmp or --monitor"
            }
            Error::Disconnected => {
                "sealed points stay readable; verbs work again when the VM is back on the same socket"
            }
            Error::TimedOut { .. } | Error::JobAtWork { .. } => {
                "look whether QEMU hangs; the outcome is settled as soon as it answers"
            }
            Error::TooOld { .. } => "use QEMU 7.2 or newer, built with that command",
            Error::Io(_) => "see that the socket may be used by you: ls -l",
            Error::Refused { .. } => {
                "QEMU's words say why; what was begun is taken back: cat disks/*/chain.txt shows what is there"
            }
            Error::JobFailed { .. } => {
                "mend what its words name (mostly room or the host's disk), then do it again"
            }
            Error::JobVanished { .. } => {
                "another monitor ended it, or QEMU was started again: cat disks/*/chain.txt shows what is there"
            }
            Error::Protocol(_) => "keep this log and report it",
        };
        let message = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Failure::new(errno, message).next(next)
    }
}

#[cfg(test)]
mod tests;
