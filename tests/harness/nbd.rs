//! A small synchronous NBD client (fixed newstyle, simple replies): the guest's hands on its disk.
//! Knows offsets and bytes; nothing of QEMU.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::wait::{self, PATIENCE};

const IHAVEOPT: u64 = 0x4948_4156_454F_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const NO_HOLE: u16 = 2;

/// Where an export is to be had.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The server's unix socket.
    pub socket: std::path::PathBuf,
    /// The export's name.
    pub name: String,
}

/// One connection to one export.
#[derive(Debug)]
pub struct Nbd {
    stream: UnixStream,
    size: u64,
    cookie: u64,
}

impl Nbd {
    /// Connects as soon as the server listens.
    #[track_caller]
    pub fn connect(endpoint: &Endpoint) -> Self {
        let stream = wait::until("the NBD server listens", || {
            UnixStream::connect(&endpoint.socket).ok()
        });
        Self::negotiate(stream, &endpoint.name)
            .unwrap_or_else(|e| panic!("NBD export {}: {e}", endpoint.name))
    }

    /// Connects if the server is there now.
    pub fn try_connect(socket: &Path, name: &str) -> io::Result<Self> {
        Self::negotiate(UnixStream::connect(socket)?, name)
    }

    fn negotiate(mut stream: UnixStream, name: &str) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let hello: [u8; 18] = read_array(&mut stream)?;
        if hello[..8] != *b"NBDMAGIC" || hello[8..16] != IHAVEOPT.to_be_bytes() {
            return Err(io::Error::other("not a newstyle NBD server"));
        }
        stream.write_all(&FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes())?;

        let mut go = Vec::new();
        go.extend(IHAVEOPT.to_be_bytes());
        go.extend(OPT_GO.to_be_bytes());
        let name_len = u32::try_from(name.len()).expect("a short export name");
        go.extend((4 + name_len + 2).to_be_bytes());
        go.extend(name_len.to_be_bytes());
        go.extend(name.as_bytes());
        go.extend(0u16.to_be_bytes()); // no information asked for beyond the export's size
        stream.write_all(&go)?;

        let mut size = 0;
        loop {
            let magic = u64::from_be_bytes(read_array(&mut stream)?);
            let _option = read_array::<4>(&mut stream)?;
            let kind = u32::from_be_bytes(read_array(&mut stream)?);
            let mut payload = vec![0; u32::from_be_bytes(read_array(&mut stream)?) as usize];
            stream.read_exact(&mut payload)?;
            match (magic, kind) {
                (OPTION_REPLY, REP_ACK) => {
                    return Ok(Self {
                        stream,
                        size,
                        cookie: 0,
                    });
                }
                (OPTION_REPLY, REP_INFO) if payload.len() >= 10 && payload[..2] == [0, 0] => {
                    size = u64::from_be_bytes(payload[2..10].try_into().expect("eight bytes"));
                }
                (OPTION_REPLY, REP_INFO) => {}
                _ => {
                    return Err(io::Error::other(format!(
                        "refused ({kind:#x}): {}",
                        String::from_utf8_lossy(&payload)
                    )));
                }
            }
        }
    }

    /// The size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads `buf.len()` bytes at `offset`.
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.request(READ, 0, offset, buf.len(), &[])?;
        self.stream.read_exact(buf)
    }

    /// Writes `data` at `offset`; returns when the disk has acknowledged it.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.request(WRITE, 0, offset, data.len(), data)
    }

    /// Makes every acknowledged write durable.
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(FLUSH, 0, 0, 0, &[])
    }

    /// Tells the disk that these bytes are not needed; what is read there afterwards is the disk's choice.
    pub fn trim(&mut self, offset: u64, length: usize) -> io::Result<()> {
        self.request(TRIM, 0, offset, length, &[])
    }

    /// Writes zeroes, as a hole where the disk may make one.
    pub fn write_zeroes(&mut self, offset: u64, length: usize) -> io::Result<()> {
        self.request(WRITE_ZEROES, 0, offset, length, &[])
    }

    /// Writes zeroes that take the room of data.
    pub fn write_zeroes_as_data(&mut self, offset: u64, length: usize) -> io::Result<()> {
        self.request(WRITE_ZEROES, NO_HOLE, offset, length, &[])
    }

    fn request(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: usize,
        data: &[u8],
    ) -> io::Result<()> {
        self.cookie += 1;
        let mut message = Vec::with_capacity(28 + data.len());
        message.extend(REQUEST.to_be_bytes());
        message.extend(flags.to_be_bytes());
        message.extend(command.to_be_bytes());
        message.extend(self.cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(
            u32::try_from(length)
                .expect("a small request")
                .to_be_bytes(),
        );
        message.extend(data);
        self.stream.write_all(&message)?;

        let magic = u32::from_be_bytes(read_array(&mut self.stream)?);
        let error = u32::from_be_bytes(read_array(&mut self.stream)?);
        let cookie = u64::from_be_bytes(read_array(&mut self.stream)?);
        if magic != SIMPLE_REPLY || cookie != self.cookie {
            return Err(io::Error::other("the NBD server answered something else"));
        }
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error.cast_signed()));
        }
        Ok(())
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        // A polite end: QEMU waits for it when it takes the export down.
        let mut message = Vec::with_capacity(28);
        message.extend(REQUEST.to_be_bytes());
        message.extend([0, 0, 0, 2]);
        message.extend([0; 20]);
        let _ = self.stream.write_all(&message);
    }
}

fn read_array<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
