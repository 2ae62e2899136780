//! The messages of the network block device protocol, as bytes: what a reader sends, and the heads of
//! what it gets. Pure: no socket, no deadline. It knows the part of the protocol that reads, and
//! takes no other answer for one.

use super::Error;

/// `NBDMAGIC`
pub(super) const GREETING: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`
pub(super) const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Fixed newstyle, without the 124 zeros: the only handshake that is spoken.
pub(super) const HANDSHAKE_FLAGS: u16 = 0b11;

pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(super) const OPT_SET_META_CONTEXT: u32 = 10;

pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_META_CONTEXT: u32 = 4;
pub(super) const REP_ERROR: u32 = 1 << 31;
pub(super) const REP_ERR_UNSUP: u32 = REP_ERROR | 1;
const INFO_EXPORT: u16 = 0;

pub(super) const READ: u16 = 0;
pub(super) const DISCONNECT: u16 = 2;
pub(super) const BLOCK_STATUS: u16 = 7;

const FLAG_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 1 << 15;

/// Of `base:allocation`: the bytes read as zeros.
const STATE_ZERO: u32 = 2;

/// What says where an export has holes.
pub(super) const ALLOCATION: &[u8] = b"base:allocation";

/// An option, as a client sends it.
pub(super) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(16 + data.len());
    message.extend(OPTION.to_be_bytes());
    message.extend(option.to_be_bytes());
    message.extend((data.len() as u32).to_be_bytes());
    message.extend(data);
    message
}

/// The data of `OPT_GO`: nothing but the export's size is asked for.
pub(super) fn go(export: &str) -> Vec<u8> {
    let mut data = text(export.as_bytes());
    data.extend(0u16.to_be_bytes());
    data
}

/// The data of `OPT_SET_META_CONTEXT`.
pub(super) fn allocation_of(export: &str) -> Vec<u8> {
    let mut data = text(export.as_bytes());
    data.extend(1u32.to_be_bytes());
    data.extend(text(ALLOCATION));
    data
}

fn text(text: &[u8]) -> Vec<u8> {
    let mut data = (text.len() as u32).to_be_bytes().to_vec();
    data.extend(text);
    data
}

/// The head of an answer to an option: what kind, and how many bytes follow.
pub(super) fn option_reply(head: &[u8; 20], option: u32) -> Result<(u32, u32), Error> {
    let mut head = Fields(head);
    if head.u64()? != OPTION_REPLY || head.u32()? != option {
        return Err(Error::nonsense("it answers another option"));
    }
    Ok((head.u32()?, head.u32()?))
}

/// The size of the export, if this information tells it.
pub(super) fn export_size(payload: &[u8]) -> Result<Option<u64>, Error> {
    let mut fields = Fields(payload);
    if fields.u16()? != INFO_EXPORT {
        return Ok(None);
    }
    fields.u64().map(Some)
}

/// The number of a context, and its name.
pub(super) fn context(payload: &[u8]) -> Result<(u32, &[u8]), Error> {
    let mut fields = Fields(payload);
    Ok((fields.u32()?, fields.0))
}

/// A request without data.
pub(super) fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(28);
    message.extend(REQUEST.to_be_bytes());
    message.extend(0u16.to_be_bytes());
    message.extend(command.to_be_bytes());
    message.extend(cookie.to_be_bytes());
    message.extend(offset.to_be_bytes());
    message.extend(length.to_be_bytes());
    message
}

/// Which of the two kinds of replies begins with these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// 12 bytes follow.
    Simple,
    /// 16 bytes follow.
    Structured,
}

pub(super) fn reply(magic: [u8; 4]) -> Result<Reply, Error> {
    match u32::from_be_bytes(magic) {
        SIMPLE_REPLY => Ok(Reply::Simple),
        STRUCTURED_REPLY => Ok(Reply::Structured),
        _ => Err(Error::nonsense("that is no reply")),
    }
}

/// The rest of a simple reply: the error number.
pub(super) fn simple(head: &[u8; 12], cookie: u64) -> Result<u32, Error> {
    let mut head = Fields(head);
    let error = head.u32()?;
    is_ours(head.u64()?, cookie)?;
    Ok(error)
}

/// What a chunk of a structured reply brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    None,
    Data,
    Hole,
    Status,
    Error,
}

/// The head of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkHead {
    pub(super) chunk: Chunk,
    pub(super) length: u32,
    /// It is the last one.
    pub(super) done: bool,
}

/// The rest of a chunk's head.
pub(super) fn chunk(head: &[u8; 16], cookie: u64) -> Result<ChunkHead, Error> {
    let mut head = Fields(head);
    let flags = head.u16()?;
    let kind = head.u16()?;
    is_ours(head.u64()?, cookie)?;
    let length = head.u32()?;
    let done = flags & FLAG_DONE != 0;
    let chunk = match kind {
        CHUNK_NONE if length == 0 && done => Chunk::None,
        CHUNK_DATA => Chunk::Data,
        CHUNK_HOLE => Chunk::Hole,
        CHUNK_STATUS => Chunk::Status,
        error if error & CHUNK_ERROR != 0 => Chunk::Error,
        _ => return Err(Error::nonsense("a chunk of a kind that there is not")),
    };
    Ok(ChunkHead {
        chunk,
        length,
        done,
    })
}

fn is_ours(cookie: u64, ours: u64) -> Result<(), Error> {
    if cookie == ours {
        return Ok(());
    }
    Err(Error::nonsense("it answers another request"))
}

/// The error number of an error chunk.
pub(super) fn error(payload: &[u8]) -> Result<u32, Error> {
    Fields(payload).u32()
}

/// What lies somewhere, and how long it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) length: u64,
    /// What is no data reads as zeros.
    pub(super) data: bool,
}

/// The extents of a status chunk, neighbours of one kind as one.
pub(super) fn extents(payload: &[u8], context: u32) -> Result<Vec<Extent>, Error> {
    let mut fields = Fields(payload);
    if fields.u32()? != context {
        return Err(Error::nonsense("it tells of another context"));
    }
    let mut extents: Vec<Extent> = Vec::new();
    while !fields.0.is_empty() {
        let length = u64::from(fields.u32()?);
        let data = fields.u32()? & STATE_ZERO == 0;
        if length == 0 {
            return Err(Error::nonsense("an extent of no length"));
        }
        match extents.last_mut() {
            Some(last) if last.data == data => last.length += length,
            Some(_) | None => extents.push(Extent { length, data }),
        }
    }
    if extents.is_empty() {
        return Err(Error::nonsense("a status that tells of nothing"));
    }
    Ok(extents)
}

/// Numbers in network order, one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or_else(|| Error::nonsense("a message that is too short"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Error> {
        self.take().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        self.take().map(u64::from_be_bytes)
    }
}
