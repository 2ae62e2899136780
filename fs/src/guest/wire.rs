//! What the daemon and a reader say to each other over their socket: length, then a message.
//! The reader is not trusted: every length is checked before anything is made of it.

use crate::errno::{Errno, Failure};
use qmpfs_guestfs::{Attributes, Extent, Journal, Kind, Xattr};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// The longest message: a batch of names with all that is known of them is far shorter.
pub(super) const MESSAGE_MAX: usize = 8 << 20;
/// The most bytes of a disk that a reader may ask for at once.
pub(super) const NEED_MAX: u32 = 1 << 20;
/// The most bytes of a file that are asked for at once.
pub(super) const READ_MAX: u32 = 1 << 20;

/// A question of the daemon.
#[allow(missing_docs)]
#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    /// Open the filesystem; the first one.
    Open { kind: Kind, length: u64 },
    /// What is called so?
    Lookup { directory: u64, name: Vec<u8> },
    /// Some names, with what they name.
    List { directory: u64, cookie: u64 },
    /// What stat(2) shows.
    Node(u64),
    /// Where a file's bytes are.
    Extents { node: u64, offset: u64, limit: u32 },
    /// Bytes of a file.
    Read { node: u64, offset: u64, length: u32 },
    /// Extended attributes.
    Xattrs(u64),
}

/// What a reader says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// It needs bytes of the disk before it can answer.
    Need { offset: u64, length: u32 },
    /// The answer, or why there is none.
    Answer(Result<Answer, Trouble>),
}

/// Answers, one for each kind of question.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// It is open.
    Opened {
        /// The root directory.
        root: u64,
        /// What its log had to say.
        journal: Journal,
    },
    /// A node.
    Node(Node),
    /// Some names.
    Names {
        /// They.
        entries: Vec<Named>,
        /// Where to go on.
        next: Option<u64>,
    },
    /// Stretches of a file.
    Extents(Vec<Extent>),
    /// Bytes of a file.
    Bytes(Vec<u8>),
    /// Names and values.
    Xattrs(Vec<Xattr>),
}

/// A file, directory or link.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub number: u64,
    /// What stat(2) shows.
    pub attributes: Attributes,
    /// Where a link leads.
    pub target: Option<Vec<u8>>,
}

/// A name of a directory; without a node where that cannot be read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Named {
    /// The name.
    pub name: Vec<u8>,
    /// What it names.
    pub node: Option<Node>,
    /// Whether that is known to have no extended attributes.
    pub bare: bool,
}

/// Why a reader has no answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trouble {
    /// Of which sort.
    sort: Sort,
    /// In its words.
    words: String,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Sort {
    Io,
    Corrupt,
    Unsupported,
    NotFound,
    WrongKind,
}

impl From<&qmpfs_guestfs::Error> for Trouble {
    fn from(error: &qmpfs_guestfs::Error) -> Trouble {
        use qmpfs_guestfs::Error;
        let sort = match error {
            Error::Io(_) => Sort::Io,
            Error::Corrupt(_) => Sort::Corrupt,
            Error::Unsupported(_) => Sort::Unsupported,
            Error::NotFound => Sort::NotFound,
            Error::WrongKind => Sort::WrongKind,
        };
        let words = error.to_string();
        Trouble { sort, words }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Failure {
        let (errno, next) = match trouble.sort {
            Sort::Io => (
                Errno::EIO,
                "read disk.raw to see which bytes cannot be had, and why",
            ),
            Sort::Corrupt => (
                Errno::EUCLEAN,
                "all bytes are in partitions/: check a copy with the filesystem's own tools",
            ),
            Sort::Unsupported => (Errno::EOPNOTSUPP, "files/N.txt says what may read it"),
            Sort::NotFound => (Errno::ENOENT, ""),
            Sort::WrongKind => (Errno::EINVAL, ""),
        };
        let printable = |c: char| if c.is_control() { '?' } else { c };
        let words: String = trouble.words.chars().take(200).map(printable).collect();
        Failure::new(errno, words).next(next)
    }
}

/// Sends one message.
pub(super) fn send(socket: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    bytes = postcard::to_extend(message, bytes).map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > MESSAGE_MAX {
        return Err(io::Error::other("a message is too long"));
    }
    // Far below what fits.
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    socket.write_all(&bytes)
}

/// Receives one message.
pub(super) fn receive<T: DeserializeOwned>(socket: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_MAX {
        return Err(io::Error::other("a message is too long"));
    }
    let mut bytes = vec![0; length];
    socket.read_exact(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_and_lies_about_lengths_do_not() {
        let mut sent = Vec::new();
        let name = vec![0xff; 255];
        let question = Question::Lookup { directory: 7, name };
        send(&mut sent, &question).expect("memory takes it");
        let received: Question = receive(&mut &sent[..]).expect("it arrives");
        assert_eq!(format!("{received:?}"), format!("{question:?}"));
        assert!(receive::<Question>(&mut &[0xff; 64][..]).is_err());
        assert!(receive::<Word>(&mut &sent[..]).is_err() || sent[4] < 2);
        // a list that says to have 2^60 entries
        let lie = [
            11, 0, 0, 0, 1, 0, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
        ];
        assert!(receive::<Word>(&mut &lie[..]).is_err());
    }
}
