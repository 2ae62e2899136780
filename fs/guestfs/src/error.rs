//! What can be wrong with a guest's bytes.

use std::fmt;
use std::io;

/// Why something could not be read.
#[derive(Debug)]
pub enum Error {
    /// The bytes could not be had.
    Io(io::Error),
    /// The bytes make no sense; what does not.
    Corrupt(&'static str),
    /// They may make sense, but not to this reader; what is not known here.
    Unsupported(&'static str),
    /// There is no such name.
    NotFound,
    /// It is no directory, or no link.
    WrongKind,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(_) => f.write_str("the disk could not be read"),
            Error::Corrupt(what) => write!(f, "damaged: {what}"),
            Error::Unsupported(what) => write!(f, "not supported: {what}"),
            Error::NotFound => f.write_str("no such name"),
            Error::WrongKind => f.write_str("another kind of file"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(error) => Some(error),
            Error::Corrupt(_) | Error::Unsupported(_) | Error::NotFound | Error::WrongKind => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Io(error)
    }
}
