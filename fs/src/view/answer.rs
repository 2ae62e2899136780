//! What a read is answered with: parts that lie where they lie, for one message.
//! It knows which bytes the kernel can copy from a layer's file and which have to be read first;
//! it does not know who is answered.

use super::cache::OpenChain;
use super::{Content, Cursor, View, failure};
use crate::errno::{Errno, Failure};
use crate::sys::{Bytes, MappedFile};
use qmpfs_qcow2::{Layer, Mapping, Source};
use std::ops::Range;
use std::sync::Arc;

/// Stretches from here on are parts of their own. Reading a shorter one into the buffer costs less
/// than finding its pages, reads no more of a cold file than was asked for, and keeps the parts of
/// an answer far below the 1024 that one message may have.
const PART_MIN: usize = 32 << 10;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A part of an answer, and where its bytes are.
enum Part {
    Zeros(usize),
    /// In the buffer.
    Read(Range<usize>),
    /// In the file of a layer.
    Mapped(Arc<MappedFile>, u64, usize),
    /// In a decompressed cluster.
    Cluster(Arc<[u8]>, Range<usize>),
}

impl View {
    /// Reads `size` bytes, fewer only at the end of the disk, and hands their parts to `send`: those
    /// that had to be read first are in `buffer`, the others are copied from where they lie.
    pub fn answer<R>(
        &self,
        cursor: &Cursor,
        offset: u64,
        size: usize,
        buffer: &mut Vec<u8>,
        send: impl FnOnce(&[Bytes<'_>]) -> R,
    ) -> Result<R, Failure> {
        let opened = match &self.content {
            Content::Chain(opened) => &**opened,
            Content::Served(disk, _) => {
                let bytes = disk.read_now(offset, size)?;
                return Ok(send(&[Bytes::from(&bytes[..])]));
            }
        };
        let rest = opened.chain().virtual_size().saturating_sub(offset);
        let size = usize::try_from(rest).unwrap_or(usize::MAX).min(size);
        let mut found = Found {
            opened,
            buffer,
            parts: Vec::new(),
            filled: 0,
            looked_at: None,
        };
        let mut done = 0;
        let mut is_compressed = false;
        while done < size {
            let at = offset + done as u64;
            let piece = opened.chain().resolve(at, (size - done) as u64);
            let piece = piece.map_err(|error| failure(&error))?;
            // At most what is left, so it is a length in memory.
            let length = (piece.len as usize).min(size - done);
            if length == 0 {
                return Err(short());
            }
            done += length;
            if piece.source.is_compressed() && !is_compressed {
                is_compressed = true;
                // All cores begin with what comes behind the cluster that this thread begins with.
                let others = offset + done as u64;
                cursor.read(opened.chain(), offset..offset + size as u64, others);
            }
            found.add(piece.source, length)?;
        }
        let bytes = found.bytes();
        if bytes.iter().map(Bytes::length).sum::<usize>() != size {
            return Err(short());
        }
        let sent = send(&bytes);
        opened.mappings().used(found.mapped());
        Ok(sent)
    }
}

/// Cannot be. A short answer would be taken for the end of the disk.
fn short() -> Failure {
    Failure::new(Errno::EIO, "bug: some of the bytes were not found")
        .next("keep the log and report it: this is a bug")
}

/// The parts of an answer, in order.
struct Found<'a> {
    opened: &'a OpenChain,
    buffer: &'a mut Vec<u8>,
    parts: Vec<Part>,
    /// Bytes of the buffer that are used.
    filled: usize,
    /// The layer whose file was looked at last, and the file's length: not for every part anew.
    looked_at: Option<(usize, u64)>,
}

impl Found<'_> {
    /// Adds a stretch: as a part of its own, or read into the buffer.
    fn add(&mut self, source: Source, length: usize) -> Result<(), Failure> {
        let own_part = match source {
            _ if length < PART_MIN => None,
            Source::Zero => Some(Part::Zeros(length)),
            Source::Layer {
                index,
                mapping: Mapping::Data { host },
            } => self.map(index, host.0, length)?,
            Source::Layer {
                index,
                mapping: Mapping::Compressed { cluster, within },
            } => match &*self.opened.chain().layers()[index] {
                Layer::Qcow2(image) => {
                    let whole = image.decompressed(cluster);
                    let start = within as usize;
                    Some(Part::Cluster(
                        whole.map_err(|error| failure(&error))?,
                        start..start + length,
                    ))
                }
                Layer::Raw(_) => None,
            },
            Source::Layer { .. } => None,
        };
        match own_part {
            Some(part) => self.parts.push(part),
            None => self.read(source, length)?,
        }
        Ok(())
    }

    fn map(&mut self, layer: usize, host: u64, length: usize) -> Result<Option<Part>, Failure> {
        let open = &self.opened.layers()[layer];
        let Some(file) = open.mapped(host, length) else {
            return Ok(None);
        };
        let file_length = match self.looked_at {
            Some((known, length)) if known == layer => length,
            Some(_) | None => open.data_length()?,
        };
        self.looked_at = Some((layer, file_length));
        // Behind a new end, the rest of its page would be zeros.
        if host + length as u64 > file_length {
            return Err(Failure::new(
                Errno::EIO,
                format!("a layer's file was cut to {file_length} bytes"),
            )
            .next("see what happened to the file: the VM stands on it, too; then qemu-img check"));
        }
        Ok(Some(Part::Mapped(file, host, length)))
    }

    fn read(&mut self, source: Source, length: usize) -> Result<(), Failure> {
        let stretch = self.filled..self.filled + length;
        if self.buffer.len() < stretch.end {
            self.buffer.resize(stretch.end, 0);
        }
        let bytes = &mut self.buffer[stretch.clone()];
        match source {
            Source::Zero => bytes.fill(0),
            Source::Layer { index, mapping } => self.opened.chain().layers()[index]
                .read_mapped(mapping, bytes)
                .map_err(|error| failure(&error))?,
        }
        self.filled = stretch.end;
        match self.parts.last_mut() {
            Some(Part::Read(range)) => range.end = stretch.end,
            _ => self.parts.push(Part::Read(stretch)),
        }
        Ok(())
    }

    /// The parts as they are given to the kernel.
    fn bytes(&self) -> Vec<Bytes<'_>> {
        let mut bytes = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            match part {
                Part::Zeros(length) => bytes.extend(zeros(*length)),
                Part::Read(range) => bytes.push(Bytes::from(&self.buffer[range.clone()])),
                Part::Mapped(file, host, length) => bytes.extend(file.stretch(*host, *length)),
                Part::Cluster(whole, range) => {
                    bytes.extend(whole.get(range.clone()).map(Bytes::from));
                }
            }
        }
        bytes
    }

    /// How many bytes are in mapped files.
    fn mapped(&self) -> u64 {
        let mapped = self.parts.iter().map(|part| match part {
            Part::Mapped(_, _, length) => *length as u64,
            Part::Zeros(_) | Part::Read(_) | Part::Cluster(..) => 0,
        });
        mapped.sum()
    }
}

fn zeros<'a>(length: usize) -> impl Iterator<Item = Bytes<'a>> {
    let pieces = (0..length).step_by(ZEROS.len());
    pieces.map(move |at| Bytes::from(&ZEROS[..(length - at).min(ZEROS.len())]))
}
