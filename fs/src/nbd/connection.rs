//! One connection to a server: the handshake, and one request at a time. It trusts nobody: every
//! length is checked before room is made for it, every byte of an answer must come exactly once, and
//! each wait ends at a deadline. After an error other than [`Error::Refused`] it is of no more use.

use super::covered::Covered;
use super::error::Error;
use super::stream::{receive, transmit};
use super::wire::{self, Chunk, Extent, Fields, Reply};
use crate::sys;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a server may take to let us in.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// How long it may take for an answer: a disk under load is slow, and this is no judge of it.
pub(super) const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// How long a farewell may take.
const FAREWELL_DEADLINE: Duration = Duration::from_millis(100);
/// Longest answer to an option: names and words.
const OPTION_MAX: u32 = 64 << 10;
/// Answers to one option: an export has a handful of properties.
const OPTION_REPLIES_MAX: u32 = 64;
/// Longest words of an error.
const ERROR_MAX: u32 = 64 << 10;
/// Longest list of extents: 128 Ki of them, as many as QEMU sends.
const EXTENTS_MAX: u32 = 4 + (8 << 17);
/// What may be asked for in one read: QEMU gives 32 MiB.
const READ_MAX: usize = 32 << 20;
/// Chunks of one answer; QEMU sends one for each stretch, of 512 bytes at least.
const CHUNKS_MAX: usize = READ_MAX / 512;
/// Largest export: an offset is an i64 in the kernel.
const SIZE_MAX: u64 = i64::MAX as u64;

/// See the module.
pub(super) struct Connection {
    stream: UnixStream,
    size: u64,
    /// The number of `base:allocation`, where the server has it.
    context: Option<u32>,
    cookie: u64,
}

impl Connection {
    /// Connects to an export.
    pub(super) fn open(socket: &Path, export: &str) -> Result<Self, Error> {
        let stream =
            sys::connect_unix(socket, HANDSHAKE_DEADLINE).map_err(|error| match error.kind() {
                ErrorKind::WouldBlock => Error::TimedOut,
                _ => Error::Io(error),
            })?;
        Self::greet(stream, export)
    }

    fn greet(stream: UnixStream, export: &str) -> Result<Self, Error> {
        let deadline = Instant::now() + HANDSHAKE_DEADLINE;
        let mut greeting = [0; 18];
        receive(&stream, &mut greeting, deadline)?;
        let mut fields = Fields(&greeting);
        if fields.u64()? != wire::GREETING || fields.u64()? != wire::OPTION {
            return Err(Error::nonsense("it is no NBD server"));
        }
        if fields.u16()? & wire::HANDSHAKE_FLAGS != wire::HANDSHAKE_FLAGS {
            return Err(Error::nonsense("it speaks an old NBD"));
        }
        let flags = u32::from(wire::HANDSHAKE_FLAGS).to_be_bytes();
        transmit(&stream, &flags, deadline)?;
        let mut connection = Connection {
            stream,
            size: 0,
            context: None,
            cookie: 0,
        };
        if connection.structured(deadline)? {
            connection.context = connection.allocation(export, deadline)?;
        }
        connection.size = connection.go(export, deadline)?;
        Ok(connection)
    }

    /// Bytes of the export.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn structured(&mut self, deadline: Instant) -> Result<bool, Error> {
        self.send_option(wire::OPT_STRUCTURED_REPLY, &[], deadline)?;
        match self.option_reply(wire::OPT_STRUCTURED_REPLY, deadline)? {
            (wire::REP_ACK, _) => Ok(true),
            (kind, _) if kind & wire::REP_ERROR != 0 => Ok(false),
            _ => Err(Error::nonsense("it answers no option like that")),
        }
    }

    fn allocation(&mut self, export: &str, deadline: Instant) -> Result<Option<u32>, Error> {
        let option = wire::OPT_SET_META_CONTEXT;
        self.send_option(option, &wire::allocation_of(export), deadline)?;
        let mut found = None;
        for _ in 0..OPTION_REPLIES_MAX {
            match self.option_reply(option, deadline)? {
                (wire::REP_ACK, _) => return Ok(found),
                (wire::REP_META_CONTEXT, payload) => {
                    let (number, name) = wire::context(&payload)?;
                    if name == wire::ALLOCATION {
                        found = Some(number);
                    }
                }
                (wire::REP_ERR_UNSUP, _) => return Ok(None),
                (kind, words) if kind & wire::REP_ERROR != 0 => return Err(no_export(&words)),
                _ => return Err(Error::nonsense("it answers no option like that")),
            }
        }
        Err(Error::nonsense("its answers do not end"))
    }

    fn go(&mut self, export: &str, deadline: Instant) -> Result<u64, Error> {
        self.send_option(wire::OPT_GO, &wire::go(export), deadline)?;
        let mut size = None;
        for _ in 0..OPTION_REPLIES_MAX {
            match self.option_reply(wire::OPT_GO, deadline)? {
                (wire::REP_ACK, _) => {
                    let size = size.ok_or_else(|| Error::nonsense("it tells no size"))?;
                    if size > SIZE_MAX {
                        return Err(Error::nonsense("no disk is that large"));
                    }
                    return Ok(size);
                }
                (wire::REP_INFO, payload) => size = wire::export_size(&payload)?.or(size),
                (kind, words) if kind & wire::REP_ERROR != 0 => return Err(no_export(&words)),
                _ => return Err(Error::nonsense("it answers no option like that")),
            }
        }
        Err(Error::nonsense("its answers do not end"))
    }

    fn send_option(&self, option: u32, data: &[u8], deadline: Instant) -> Result<(), Error> {
        transmit(&self.stream, &wire::option(option, data), deadline)
    }

    fn option_reply(&self, option: u32, deadline: Instant) -> Result<(u32, Vec<u8>), Error> {
        let mut head = [0; 20];
        receive(&self.stream, &mut head, deadline)?;
        let (kind, length) = wire::option_reply(&head, option)?;
        Ok((kind, self.payload(length, OPTION_MAX, deadline)?))
    }

    /// Reads `into.len()` bytes at `offset`.
    pub(super) fn read(
        &mut self,
        offset: u64,
        into: &mut [u8],
        deadline: Instant,
    ) -> Result<(), Error> {
        let end = offset.checked_add(into.len() as u64);
        if into.len() > READ_MAX || end.is_none_or(|end| end > self.size) {
            return Err(Error::nonsense("bug: more is asked for than there is"));
        }
        if into.is_empty() {
            return Ok(());
        }
        let cookie = self.ask(wire::READ, offset, into.len() as u64, deadline)?;
        match self.reply(deadline)? {
            Reply::Simple => {
                let mut head = [0; 12];
                receive(&self.stream, &mut head, deadline)?;
                match wire::simple(&head, cookie)? {
                    0 => receive(&self.stream, into, deadline),
                    number => Err(Error::Refused(number)),
                }
            }
            Reply::Structured => self.read_chunks(cookie, offset, into, deadline),
        }
    }

    fn read_chunks(
        &self,
        cookie: u64,
        offset: u64,
        into: &mut [u8],
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut covered = Covered::new(into.len() as u64);
        let mut refused = None;
        for number in 0..CHUNKS_MAX {
            if number > 0 && self.reply(deadline)? != Reply::Structured {
                return Err(Error::nonsense("a simple reply among chunks"));
            }
            let mut head = [0; 16];
            receive(&self.stream, &mut head, deadline)?;
            let head = wire::chunk(&head, cookie)?;
            match head.chunk {
                Chunk::None => {}
                Chunk::Error => {
                    let words = self.payload(head.length, ERROR_MAX, deadline)?;
                    refused = Some(wire::error(&words)?);
                }
                Chunk::Data => {
                    let length = u64::from(head.length)
                        .checked_sub(8)
                        .ok_or_else(|| Error::nonsense("data without an offset"))?;
                    let mut at = [0; 8];
                    receive(&self.stream, &mut at, deadline)?;
                    let place = covered.take(u64::from_be_bytes(at), offset, length)?;
                    receive(&self.stream, &mut into[place], deadline)?;
                }
                Chunk::Hole => {
                    let payload = self.payload(head.length, ERROR_MAX, deadline)?;
                    let mut fields = Fields(&payload);
                    let (at, length) = (fields.u64()?, fields.u32()?);
                    let place = covered.take(at, offset, u64::from(length))?;
                    into[place].fill(0);
                }
                Chunk::Status => return Err(Error::nonsense("a status instead of data")),
            }
            if head.done {
                return match refused {
                    Some(number) => Err(Error::Refused(number)),
                    None => covered.whole(),
                };
            }
        }
        Err(Error::nonsense("its chunks do not end"))
    }

    /// What lies from `offset` on, at least something and never beyond `length`.
    pub(super) fn extents(
        &mut self,
        offset: u64,
        length: u64,
        deadline: Instant,
    ) -> Result<Vec<Extent>, Error> {
        let rest = self.size.saturating_sub(offset).min(length);
        let Some(context) = self.context else {
            // a server that tells nothing of holes has none
            return Ok(vec![Extent {
                length: rest,
                data: true,
            }]);
        };
        let asked = rest.min(u64::from(u32::MAX) & !0xffff);
        let cookie = self.ask(wire::BLOCK_STATUS, offset, asked, deadline)?;
        let mut found = None;
        let mut refused = None;
        for _ in 0..OPTION_REPLIES_MAX {
            if self.reply(deadline)? != Reply::Structured {
                return Err(Error::nonsense("a simple reply to a question for holes"));
            }
            let mut head = [0; 16];
            receive(&self.stream, &mut head, deadline)?;
            let head = wire::chunk(&head, cookie)?;
            match head.chunk {
                Chunk::None => {}
                Chunk::Status if found.is_none() => {
                    let payload = self.payload(head.length, EXTENTS_MAX, deadline)?;
                    found = Some(wire::extents(&payload, context)?);
                }
                Chunk::Error => {
                    let words = self.payload(head.length, ERROR_MAX, deadline)?;
                    refused = Some(wire::error(&words)?);
                }
                Chunk::Status | Chunk::Data | Chunk::Hole => {
                    return Err(Error::nonsense("not the answer to a question for holes"));
                }
            }
            if head.done {
                return match (refused, found) {
                    (Some(number), _) => Err(Error::Refused(number)),
                    (None, Some(found)) => Ok(cut(found, rest)),
                    (None, None) => Err(Error::nonsense("a status that tells of nothing")),
                };
            }
        }
        Err(Error::nonsense("its chunks do not end"))
    }

    fn ask(
        &mut self,
        command: u16,
        offset: u64,
        length: u64,
        deadline: Instant,
    ) -> Result<u64, Error> {
        self.cookie = self.cookie.wrapping_add(1);
        let length = u32::try_from(length)
            .map_err(|_| Error::nonsense("bug: more is asked for than one request may ask"))?;
        let request = wire::request(command, self.cookie, offset, length);
        transmit(&self.stream, &request, deadline)?;
        Ok(self.cookie)
    }

    fn reply(&self, deadline: Instant) -> Result<Reply, Error> {
        let mut magic = [0; 4];
        receive(&self.stream, &mut magic, deadline)?;
        wire::reply(magic)
    }

    fn payload(&self, length: u32, most: u32, deadline: Instant) -> Result<Vec<u8>, Error> {
        if length > most {
            return Err(Error::nonsense("more bytes than such an answer can have"));
        }
        let mut payload = vec![0; length as usize];
        receive(&self.stream, &mut payload, deadline)?;
        Ok(payload)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // a server that does not hear it sees the end of the stream
        let farewell = wire::request(wire::DISCONNECT, 0, 0, 0);
        let _heard = transmit(&self.stream, &farewell, Instant::now() + FAREWELL_DEADLINE);
    }
}

fn no_export(words: &[u8]) -> Error {
    Error::NoExport(String::from_utf8_lossy(words).chars().take(200).collect())
}

/// The first `rest` bytes of what was told; a server may tell of more.
fn cut(extents: Vec<Extent>, mut rest: u64) -> Vec<Extent> {
    let mut kept = Vec::new();
    for extent in extents {
        let length = extent.length.min(rest);
        if length > 0 {
            kept.push(Extent { length, ..extent });
        }
        rest -= length;
    }
    kept
}
