//! What can go wrong between us and QEMU.
//!
//! Knows the families; each variant carries what is needed to act. QEMU's words are kept verbatim.
//! Does not know errno: the text of a refusal is for people and is never parsed.

use std::fmt;
use std::path::PathBuf;

use crate::names::JobId;

/// Why a command, a job or a connection failed.
#[derive(Debug)]
pub enum Error {
    /// There is no connection now, or it broke before the answer came. The command may have been carried out.
    Disconnected,
    /// The monitor accepts the connection but does not greet: it serves one client at a time and has one, or QEMU answers
    /// nobody for now, as while it saves a checkpoint. That cannot be told apart.
    MonitorTaken,
    /// There is no file at the address.
    NoSocket {
        /// The address's path.
        path: PathBuf,
    },
    /// There is a file at the address, and it is not a socket.
    NotASocket {
        /// The address's path.
        path: PathBuf,
    },
    /// The connection was refused: a socket file left by a dead QEMU, or a closed port.
    NobodyListens {
        /// The address.
        address: String,
    },
    /// Somebody answered, and it is not a QMP monitor.
    NotQmp {
        /// The start of what was received.
        got: String,
    },
    /// No answer within the command's deadline. The command may still be carried out.
    TimedOut {
        /// QMP name.
        command: &'static str,
    },
    /// A job has not ended by its deadline. It may still do so.
    JobAtWork {
        /// The job.
        job: JobId,
    },
    /// QEMU said no.
    Refused {
        /// QMP name.
        command: &'static str,
        /// QEMU's error class, nearly always `GenericError`.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// The job concluded with an error (`Operation canceled` when it was cancelled).
    JobFailed {
        /// The job.
        job: JobId,
        /// QEMU's words.
        error: String,
    },
    /// QEMU does not know the job: dismissed by somebody else, or QEMU was restarted.
    JobVanished {
        /// The job.
        job: JobId,
    },
    /// The peer speaks QMP, but not as documented.
    Protocol(String),
    /// This QEMU lacks something we cannot do without.
    TooOld {
        /// The command that is missing.
        needs: &'static str,
    },
    /// The operating system refused the connection for another reason.
    Io(std::io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Disconnected => f.write_str("QEMU is disconnected"),
            Error::MonitorTaken => {
                f.write_str("the monitor does not greet: another client holds it, or QEMU is busy and answers nobody")
            }
            Error::NoSocket { path } => write!(f, "no such socket: {}", path.display()),
            Error::NotASocket { path } => write!(f, "not a socket: {}", path.display()),
            Error::NobodyListens { address } => write!(f, "nobody listens at {address}"),
            Error::NotQmp { got } => write!(f, "not a QMP monitor: it said {got:?}"),
            Error::TimedOut { command } => write!(f, "{command} was not answered in time"),
            Error::JobAtWork { job } => write!(f, "the job {job} has not ended in time"),
            Error::Refused {
                command,
                class,
                desc,
            } if class == "GenericError" => {
                write!(f, "{command}: {desc}")
            }
            Error::Refused {
                command,
                class,
                desc,
            } => write!(f, "{command}: {desc} ({class})"),
            Error::JobFailed { job, error } => write!(f, "job {job}: {error}"),
            Error::JobVanished { job } => write!(f, "job {job} is gone"),
            Error::Protocol(what) => write!(f, "QMP: {what}"),
            Error::TooOld { needs } => write!(f, "this QEMU has no {needs}"),
            Error::Io(_) => f.write_str("cannot reach the monitor"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(source) => Some(source),
            _ => None,
        }
    }
}
