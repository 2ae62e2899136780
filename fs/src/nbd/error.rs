//! Why a server's disk could not be read, and what a person does then.

use crate::errno::{Errno, Failure};
use std::fmt;

/// Why a server's disk could not be read.
#[derive(Debug)]
pub(super) enum Error {
    /// The connection broke.
    Io(std::io::Error),
    /// No answer by the deadline.
    TimedOut,
    /// It says an error number, as Linux has them, to a request.
    Refused(u32),
    /// It has no such export, in its own words.
    NoExport(String),
    /// It does not keep to the protocol.
    Nonsense(&'static str),
    /// Nobody is asked any more, and why.
    Broken(String),
}

impl Error {
    pub(super) fn nonsense(what: &'static str) -> Self {
        Error::Nonsense(what)
    }

    /// Whether the connection is good for more.
    pub(super) fn spares_the_connection(&self) -> bool {
        match self {
            Error::Refused(_) | Error::Broken(_) => true,
            Error::Io(_) | Error::TimedOut | Error::NoExport(_) | Error::Nonsense(_) => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => write!(f, "the NBD server is gone: {error}"),
            Error::TimedOut => f.write_str("the NBD server does not answer"),
            Error::Refused(number) => {
                let error = std::io::Error::from_raw_os_error(*number as i32);
                write!(f, "the NBD server cannot read there: {error}")
            }
            Error::NoExport(words) => write!(f, "the NBD server has no such export: {words}"),
            Error::Nonsense(what) => {
                write!(f, "the NBD server does not keep to the protocol: {what}")
            }
            Error::Broken(why) => f.write_str(why),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (errno, next) = match &error {
            Error::Io(_) | Error::NoExport(_) => {
                (Errno::EIO, "see whether the VM runs: cat vm.json")
            }
            Error::TimedOut => (Errno::ETIMEDOUT, "look whether QEMU hangs, and read again"),
            Error::Refused(_) => (Errno::EIO, "see what the host says of its disk: dmesg"),
            Error::Nonsense(_) => (Errno::EIO, "keep the log and report it"),
            Error::Broken(_) => (Errno::EIO, "rmdir this instant and make another"),
        };
        Failure::new(errno, error.to_string()).next(next)
    }
}
