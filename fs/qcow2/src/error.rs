//! Why an image could not be read: three families outside, numbered causes inside.
//!
//! Knows: how to name a feature, a table, and an offset in one clause.
//! Does not know: errnos, or what the caller will do about it.

use std::fmt;
use std::io;

use crate::units::{GuestOffset, HostOffset};

/// Why an image could not be read.
#[derive(Debug)]
pub enum Error {
    /// The file could not be read.
    Io {
        /// What was being read.
        what: &'static str,
        /// Where in the file.
        offset: u64,
        /// What the file said.
        source: io::Error,
    },
    /// The file contradicts the format, or itself.
    Corrupt(Corrupt),
    /// The file may be right, but needs something this reader does not do.
    Unsupported(Unsupported),
}

impl Error {
    /// Whether an internal snapshot was deleted (or replaced) while it was being opened.
    pub fn is_snapshot_gone(&self) -> bool {
        matches!(self, Error::Corrupt(Corrupt(CorruptCause::SnapshotGone)))
    }
}

/// A contradiction in an image. The cause is private; [`Corrupt::number`] names it stably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt(pub(crate) CorruptCause);

/// A feature that is not read. The cause is private; [`Unsupported::number`] names it stably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported(pub(crate) UnsupportedCause);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CorruptCause {
    NotQcow2,
    HeaderLength(u32),
    ClusterBits(u32),
    Subclusters(u32),
    RefcountWidth(u32),
    NoRefcountTable,
    Table {
        table: &'static str,
        offset: HostOffset,
    },
    TableTooLarge {
        table: &'static str,
        offset: HostOffset,
        bytes: u64,
    },
    L1TooSmall {
        entries: u32,
        needed: u64,
    },
    Extension {
        magic: u32,
        offset: u64,
    },
    BackingName {
        offset: u64,
        len: u32,
    },
    CompressionBit,
    L1Entry {
        guest: GuestOffset,
        table: HostOffset,
    },
    ClusterOffset {
        guest: GuestOffset,
        host: HostOffset,
    },
    DataFileOffset {
        guest: GuestOffset,
        host: HostOffset,
    },
    ZeroInV2 {
        guest: GuestOffset,
    },
    CompressedInDataFile {
        guest: GuestOffset,
    },
    SubclusterBitmap {
        guest: GuestOffset,
    },
    CompressedStream {
        host: HostOffset,
    },
    SnapshotEntry {
        index: u32,
        offset: HostOffset,
    },
    SnapshotTableChanging,
    SnapshotGone,
    RawWithoutDataFile,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UnsupportedCause {
    Version(u32),
    Encryption(u32),
    Features(Vec<String>),
    CompressionType(u8),
    DataFileMissing,
    DataFileUnexpected,
}

impl Corrupt {
    /// The number of the cause; it never changes its meaning.
    pub fn number(&self) -> u16 {
        match &self.0 {
            CorruptCause::NotQcow2 => 1,
            CorruptCause::HeaderLength(_) => 2,
            CorruptCause::ClusterBits(_) => 3,
            CorruptCause::Subclusters(_) => 4,
            CorruptCause::RefcountWidth(_) => 5,
            CorruptCause::NoRefcountTable => 6,
            CorruptCause::Table { .. } => 7,
            CorruptCause::TableTooLarge { .. } => 8,
            CorruptCause::L1TooSmall { .. } => 9,
            CorruptCause::Extension { .. } => 10,
            CorruptCause::BackingName { .. } => 11,
            CorruptCause::CompressionBit => 12,
            CorruptCause::L1Entry { .. } => 13,
            CorruptCause::ClusterOffset { .. } => 14,
            CorruptCause::DataFileOffset { .. } => 15,
            CorruptCause::ZeroInV2 { .. } => 16,
            CorruptCause::CompressedInDataFile { .. } => 17,
            CorruptCause::SubclusterBitmap { .. } => 18,
            CorruptCause::CompressedStream { .. } => 19,
            CorruptCause::SnapshotEntry { .. } => 20,
            CorruptCause::SnapshotTableChanging => 21,
            CorruptCause::SnapshotGone => 22,
            CorruptCause::RawWithoutDataFile => 23,
        }
    }
}

impl Unsupported {
    /// The number of the cause; it never changes its meaning.
    pub fn number(&self) -> u16 {
        match &self.0 {
            UnsupportedCause::Version(_) => 101,
            UnsupportedCause::Encryption(_) => 102,
            UnsupportedCause::Features(_) => 103,
            UnsupportedCause::CompressionType(_) => 104,
            UnsupportedCause::DataFileMissing => 105,
            UnsupportedCause::DataFileUnexpected => 106,
        }
    }
}

impl From<CorruptCause> for Error {
    fn from(cause: CorruptCause) -> Error {
        Error::Corrupt(Corrupt(cause))
    }
}

impl From<UnsupportedCause> for Error {
    fn from(cause: UnsupportedCause) -> Error {
        Error::Unsupported(Unsupported(cause))
    }
}

/// Turns a file's error into ours, saying what was being read and where.
pub(crate) fn io_at(what: &'static str, offset: u64) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        what,
        offset,
        source,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { what, offset, .. } => write!(f, "cannot read the {what} at {offset:#x}"),
            Error::Corrupt(corrupt) => corrupt.fmt(f),
            Error::Unsupported(unsupported) => unsupported.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            Error::Corrupt(_) | Error::Unsupported(_) => None,
        }
    }
}

/// Where the header keeps the field at fault, as the last words of a sentence.
macro_rules! in_header {
    ($f:expr, $at:literal, $($words:tt)+) => {{
        write!($f, $($words)+)?;
        write!($f, " (header at {:#x})", $at)
    }};
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            CorruptCause::NotQcow2 => in_header!(f, 0, "not a qcow2 file"),
            CorruptCause::HeaderLength(n) => in_header!(f, 100, "header length of {n} bytes"),
            CorruptCause::ClusterBits(n) => in_header!(f, 20, "cluster size of 2^{n} bytes"),
            CorruptCause::Subclusters(n) => {
                in_header!(f, 72, "subclusters in clusters of 2^{n} bytes")
            }
            CorruptCause::RefcountWidth(n) => in_header!(f, 96, "refcount width of 2^{n} bits"),
            CorruptCause::NoRefcountTable => in_header!(f, 56, "no refcount table"),
            CorruptCause::Table { table, offset } => {
                write!(f, "{table} at invalid offset {offset}")
            }
            CorruptCause::TableTooLarge {
                table,
                offset,
                bytes,
            } => {
                write!(f, "{table} at {offset} too large with {bytes} bytes")
            }
            CorruptCause::L1TooSmall { entries, needed } => in_header!(
                f,
                36,
                "L1 table of {entries} entries where the disk needs {needed}"
            ),
            CorruptCause::Extension { magic, offset } => {
                write!(
                    f,
                    "header extension {magic:#010x} at {offset:#x} is invalid"
                )
            }
            CorruptCause::BackingName { offset, len } => {
                in_header!(f, 8, "backing file name of {len} bytes at {offset:#x}")
            }
            CorruptCause::CompressionBit => in_header!(
                f,
                104,
                "compression type and its feature bit contradict each other"
            ),
            CorruptCause::L1Entry { guest, table } => {
                write!(
                    f,
                    "L1 entry for guest offset {guest} names an L2 table at {table}"
                )
            }
            CorruptCause::ClusterOffset { guest, host } => {
                write!(
                    f,
                    "L2 entry for guest offset {guest} names a cluster at {host}"
                )
            }
            CorruptCause::DataFileOffset { guest, host } => {
                write!(
                    f,
                    "L2 entry for guest offset {guest} names {host} in the data file"
                )
            }
            CorruptCause::ZeroInV2 { guest } => {
                write!(
                    f,
                    "L2 entry for guest offset {guest} is a zero cluster in a version 2 image"
                )
            }
            CorruptCause::CompressedInDataFile { guest } => {
                write!(
                    f,
                    "L2 entry for guest offset {guest} is a compressed cluster beside an external data file"
                )
            }
            CorruptCause::SubclusterBitmap { guest } => {
                write!(
                    f,
                    "L2 entry for guest offset {guest} has a contradicting subcluster bitmap"
                )
            }
            CorruptCause::CompressedStream { host } => {
                write!(f, "compressed cluster at {host} cannot be decompressed")
            }
            CorruptCause::SnapshotEntry { index, offset } => {
                write!(f, "snapshot table entry {index} at {offset} is invalid")
            }
            CorruptCause::SnapshotTableChanging => {
                write!(f, "snapshot table keeps changing while it is read")
            }
            CorruptCause::SnapshotGone => {
                write!(f, "internal snapshot is no longer in the snapshot table")
            }
            CorruptCause::RawWithoutDataFile => {
                in_header!(f, 88, "data file feature bits contradict each other")
            }
        }
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            UnsupportedCause::Version(n) => {
                in_header!(f, 4, "qcow2 version {n} is not supported")
            }
            UnsupportedCause::Encryption(1) => {
                in_header!(f, 32, "AES encryption is not supported")
            }
            UnsupportedCause::Encryption(2) => {
                in_header!(f, 32, "LUKS encryption is not supported")
            }
            UnsupportedCause::Encryption(n) => {
                in_header!(f, 32, "encryption {n} is not supported")
            }
            UnsupportedCause::Features(names) => {
                let names = names.join(", ");
                in_header!(f, 72, "unknown incompatible features: {names}")
            }
            UnsupportedCause::CompressionType(n) => {
                in_header!(f, 104, "compression type {n} is not supported")
            }
            UnsupportedCause::DataFileMissing => {
                in_header!(f, 72, "the image needs its external data file")
            }
            UnsupportedCause::DataFileUnexpected => {
                in_header!(f, 72, "a data file was given, but the image has none")
            }
        }
    }
}
