//! The disk as a reader sees it: bytes that it asks for over its socket, and keeps for a while.

use super::wire::{self, Question, Word};
use lru::LruCache;
use qmpfs_guestfs::ReadAt;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that are asked for at once: inodes and names that are wanted next lie beside each other.
const CHUNK: u64 = 64 << 10;
/// Chunks that are kept: 64 MiB.
const CHUNKS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The far end of the socket.
pub(super) struct Remote {
    length: AtomicU64,
    line: Mutex<Line>,
}

struct Line {
    socket: UnixStream,
    chunks: LruCache<u64, Vec<u8>>,
}

impl Remote {
    pub(super) fn new(socket: UnixStream) -> Remote {
        Remote {
            length: AtomicU64::new(0),
            line: Mutex::new(Line {
                socket,
                chunks: LruCache::new(CHUNKS),
            }),
        }
    }

    pub(super) fn set_length(&self, length: u64) {
        self.length.store(length, Ordering::Relaxed);
    }

    pub(super) fn receive(&self) -> io::Result<Question> {
        wire::receive(&mut self.line().socket)
    }

    pub(super) fn send(&self, word: &Word) -> io::Result<()> {
        wire::send(&mut self.line().socket, word)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Asks for bytes: one that says whether they follow, then they.
    fn fetch(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        wire::send(&mut self.socket, &Word::Need { offset, length })?;
        let mut is_there = [0];
        self.socket.read_exact(&mut is_there)?;
        if is_there != [1] {
            return Err(io::Error::other("the disk gave an error"));
        }
        let mut bytes = vec![0; length as usize];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl ReadAt for Remote {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut line = self.line();
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let start = at / CHUNK * CHUNK;
            if line.chunks.get(&start).is_none() {
                let length = CHUNK.min(self.size() - start);
                // A chunk at most.
                let bytes = line.fetch(start, length as u32)?;
                line.chunks.put(start, bytes);
            }
            let within = (at - start) as usize;
            let chunk = line
                .chunks
                .get(&start)
                .and_then(|chunk| chunk.get(within..));
            let chunk = chunk.ok_or(io::ErrorKind::UnexpectedEof)?;
            let length = chunk.len().min(buffer.len() - done);
            buffer[done..done + length].copy_from_slice(&chunk[..length]);
            done += length;
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }
}
