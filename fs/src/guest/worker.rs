//! The daemon's end of a reader's process: questions go out, and the bytes it needs.
//! Invariants: it is given bytes of its own partition and nothing else; it may be late, die or lie, and
//! costs one question and its own life.

use super::Volume;
use super::disks::Disks;
use super::wire::{self, Answer, Question, Word};
use crate::errno::Failure;
use crate::sys;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The command that a process is started with; `cli` knows it.
pub const COMMAND: &str = "guest-reader";
/// What a reader may take for one question, while nothing is read for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// What one question may take with all that is read for it.
const LONGEST: Duration = Duration::from_secs(60);

/// Why a question has no answer.
pub(super) enum Fault {
    /// The reader says why.
    Said(Failure),
    /// There is no reader any more, or none that can be trusted.
    Lost(String),
}

/// A reader at work.
pub(super) struct Worker {
    child: Child,
    socket: UnixStream,
    disks: Arc<Disks>,
    volume: Volume,
}

impl Worker {
    /// Starts one for what is in a partition or a logical volume. It ends with the thread that calls this.
    pub(super) fn start(disks: Arc<Disks>, volume: Volume) -> io::Result<Worker> {
        let (socket, theirs) = UnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("qmpfs")
            .arg(COMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        sys::die_with_parent(&mut command);
        Ok(Worker {
            child: command.spawn()?,
            socket,
            disks,
            volume,
        })
    }

    /// Asks, and reads for the reader what it needs for its answer.
    pub(super) fn ask(&mut self, question: &Question) -> Result<Answer, Fault> {
        let lost = |error: io::Error| {
            Fault::Lost(match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                    "the reader did not answer in time".to_owned()
                }
                _ => format!("the reader is gone: {error}"),
            })
        };
        let end = Instant::now() + LONGEST;
        let mut until = Instant::now() + PATIENCE;
        wire::send(&mut self.timed(until), question).map_err(lost)?;
        loop {
            match wire::receive(&mut self.timed(until.min(end))).map_err(lost)? {
                Word::Answer(Ok(answer)) => return Ok(answer),
                Word::Answer(Err(trouble)) => return Err(Fault::Said(trouble.into())),
                Word::Need { offset, length } => {
                    let began = Instant::now();
                    let bytes = self.bytes(offset, length)?;
                    until += began.elapsed();
                    let mut line = self.timed(until.min(end));
                    line.write_all(&bytes).map_err(lost)?;
                }
            }
        }
    }

    /// The answer to a need: a byte that says whether there are bytes, then they.
    fn bytes(&self, offset: u64, length: u32) -> Result<Vec<u8>, Fault> {
        let pieces = match length {
            ..=wire::NEED_MAX => self.volume.pieces(offset, length.into()),
            _ => None,
        };
        let pieces = pieces.ok_or_else(|| {
            Fault::Lost("the reader asked for what is none of its business".to_owned())
        })?;
        let mut bytes = vec![0; 1 + length as usize];
        let mut at = 1;
        for piece in pieces {
            let end = at + piece.length as usize;
            let view = self.disks.view(piece.disk);
            if let Err(failure) = view.and_then(|it| it.read(piece.start, &mut bytes[at..end])) {
                tracing::debug!(%failure, "a reader gets an error");
                bytes.truncate(1);
                return Ok(bytes);
            }
            at = end;
        }
        bytes[0] = 1;
        Ok(bytes)
    }

    fn timed(&self, until: Instant) -> Timed<'_> {
        Timed {
            socket: &self.socket,
            until,
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _collected = self.child.wait();
    }
}

/// A socket with one deadline for all that is read and written.
struct Timed<'a> {
    socket: &'a UnixStream,
    until: Instant,
}

impl Timed<'_> {
    fn rest(&self) -> io::Result<Duration> {
        let rest = self.until.saturating_duration_since(Instant::now());
        match rest.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(rest),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.rest()?))?;
        self.socket.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.rest()?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
