//! Lines to messages and back.
//!
//! Pure: bytes in, values out; no socket, no clock. Knows the four shapes a QMP server sends.
//! Does not know commands: what a reply holds stays raw until its command parses it.
//! Invariant: memory is bounded by [`MAX_LINE`], whatever the peer sends.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::connection::QemuVersion;
use crate::event::Event;

/// QEMU prints a reply as one line. 300 layers seen through `query-block` are below 1 MiB, a non-flat
/// node list of them is 25 MiB; more than this is a peer gone wrong.
pub const MAX_LINE: usize = 64 << 20;

/// What a decoder keeps between lines: more than nearly every line needs.
const KEPT: usize = 1 << 20;

/// One line of a QMP server.
#[derive(Debug)]
pub enum Message {
    /// The first line of a connection.
    Greeting(QemuVersion),
    /// Something happened.
    Event(Event),
    /// A command succeeded. Raw: a deep `backing-image` must not meet a recursion limit nobody needs.
    Return {
        /// The id we gave, if it is one of ours.
        id: Option<u64>,
        /// What the command returned.
        value: Box<RawValue>,
    },
    /// A command failed; without an id when QEMU could not even parse the line.
    Error {
        /// The id we gave, if it is one of ours.
        id: Option<u64>,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        desc: String,
    },
}

/// Why bytes are no message.
#[derive(Debug, PartialEq, Eq)]
pub enum WireError {
    /// A line longer than the limit.
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// Not JSON, or not of a known shape.
    Malformed {
        /// What the parser says.
        reason: String,
        /// The start of the line.
        line: String,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::TooLong { limit } => write!(f, "a line longer than {limit} bytes"),
            WireError::Malformed { reason, line } => write!(f, "malformed line {line:?}: {reason}"),
        }
    }
}

impl std::error::Error for WireError {}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    qmp: Option<Greeting>,
    event: Option<String>,
    #[serde(default)]
    data: serde_json::Value,
    timestamp: Option<Timestamp>,
    #[serde(rename = "return")]
    value: Option<Box<RawValue>>,
    error: Option<Refusal>,
    id: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Greeting {
    version: GreetingVersion,
}

#[derive(Deserialize)]
struct GreetingVersion {
    qemu: VersionTriple,
    #[serde(default)]
    package: String,
}

#[derive(Deserialize)]
struct VersionTriple {
    major: u32,
    minor: u32,
    micro: u32,
}

#[derive(Deserialize)]
struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

/// Reads one line, with or without its line end.
pub fn parse(line: &[u8]) -> Result<Message, WireError> {
    let malformed = |reason: String| WireError::Malformed {
        reason,
        line: excerpt(line),
    };
    let parsed: Line = serde_json::from_slice(line).map_err(|e| malformed(e.to_string()))?;
    let id = parsed.id.and_then(|id| id.get().parse().ok());
    if let Some(value) = parsed.value {
        return Ok(Message::Return { id, value });
    }
    if let Some(Refusal { class, desc }) = parsed.error {
        return Ok(Message::Error { id, class, desc });
    }
    if let Some(name) = parsed.event {
        let time = parsed.timestamp.unwrap_or(Timestamp {
            seconds: -1,
            microseconds: -1,
        });
        return Ok(Message::Event(Event {
            name,
            data: parsed.data,
            seconds: time.seconds,
            microseconds: time.microseconds,
        }));
    }
    if let Some(Greeting { version }) = parsed.qmp {
        let VersionTriple {
            major,
            minor,
            micro,
        } = version.qemu;
        return Ok(Message::Greeting(QemuVersion {
            major,
            minor,
            micro,
            package: version.package,
        }));
    }
    Err(malformed(
        "neither greeting, event, return nor error".to_owned(),
    ))
}

/// The line of a command. Fails on what JSON cannot hold: a path that is not UTF-8.
pub fn encode<A: Serialize>(
    id: u64,
    name: &str,
    arguments: &A,
) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    struct Execute<'a> {
        execute: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        arguments: Option<Box<RawValue>>,
        id: u64,
    }
    let arguments = serde_json::value::to_raw_value(arguments)?;
    let arguments = (arguments.get() != "null").then_some(arguments);
    let mut line = serde_json::to_vec(&Execute {
        execute: name,
        arguments,
        id,
    })?;
    line.push(b'\n');
    Ok(line)
}

/// The first characters of a line, for people.
pub fn excerpt(line: &[u8]) -> String {
    const SHOWN: usize = 80;
    let cut = &line[..line.len().min(SHOWN)];
    String::from_utf8_lossy(cut).trim_end().to_owned()
}

/// Gathers received bytes and gives out whole lines.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already given out.
    taken: usize,
    /// Bytes of `buffer` known to hold no line end, so that a long line is searched once.
    searched: usize,
    limit: usize,
}

impl Decoder {
    /// A decoder that refuses lines longer than `limit`.
    pub fn new(limit: usize) -> Self {
        Decoder {
            buffer: Vec::new(),
            taken: 0,
            searched: 0,
            limit,
        }
    }

    /// Changes the limit for the lines to come.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.searched -= self.taken;
            self.taken = 0;
            if self.buffer.is_empty() {
                // One long reply must not cost its memory for ever.
                self.buffer.shrink_to(KEPT);
            }
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// What was received after the last whole line.
    pub fn rest(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    /// The next whole line without its line end; blank lines are skipped.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, WireError> {
        loop {
            let Some(at) = self.buffer[self.searched..]
                .iter()
                .position(|&b| b == b'\n')
            else {
                self.searched = self.buffer.len();
                if self.buffer.len() - self.taken > self.limit {
                    return Err(WireError::TooLong { limit: self.limit });
                }
                return Ok(None);
            };
            let start = self.taken;
            let end = self.searched + at;
            self.taken = end + 1;
            self.searched = end + 1;
            if end - start > self.limit {
                return Err(WireError::TooLong { limit: self.limit });
            }
            if !self.buffer[start..end].trim_ascii().is_empty() {
                return Ok(Some(self.buffer[start..end].trim_ascii()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
