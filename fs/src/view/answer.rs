//! What a read is answered with: parts that lie where they lie, for one message.
//! It knows which bytes the kernel can copy from a layer's file and which have to be read first;
//! it does not know who is answered.

use super::cache::OpenChain;
use super::{Cursor, failure};
use crate::errno::{Errno, Failure};
use crate::sys::Bytes;
use qmpfs_qcow2::{CompressedCluster, Layer, Mapping, Source};
use std::ops::Range;
use std::sync::Arc;

/// Stretches from here on are parts of their own. Reading a shorter one into the buffer costs less
/// than finding its pages, reads no more of a cold file than was asked for, and keeps the parts of
/// an answer far below the 1024 that one message may have.
const PART_MIN: usize = 32 << 10;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Where a part of the answer is.
enum Part {
    Zeros(usize),
    /// In the buffer.
    Read(Range<usize>),
    /// In the file of a layer.
    Mapped {
        layer: usize,
        host: u64,
        length: usize,
    },
    /// In a decompressed cluster.
    Cluster {
        layer: usize,
        cluster: CompressedCluster,
        within: Range<usize>,
    },
}

/// Reads `size` bytes, fewer only at the end of the disk, and hands their parts to `send`.
pub(super) fn answer<R>(
    opened: &OpenChain,
    cursor: &Cursor,
    offset: u64,
    size: usize,
    buffer: &mut Vec<u8>,
    send: impl FnOnce(&[Bytes<'_>]) -> R,
) -> Result<R, Failure> {
    let rest = opened.chain().virtual_size().saturating_sub(offset);
    let size = usize::try_from(rest).unwrap_or(usize::MAX).min(size);
    let mut found = Found {
        parts: Vec::new(),
        filled: 0,
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
            // Cannot be: the disk goes on.
            return Err(Failure::new(Errno::EIO, "the disk has shrunk"));
        }
        done += length;
        if piece.source.is_compressed() && !is_compressed {
            is_compressed = true;
            let others = offset + done as u64;
            cursor.read(opened.chain(), offset..offset + size as u64, others);
        }
        found.add(opened, piece.source, length, buffer)?;
    }
    let clusters = found.decompress(opened)?;
    let (bytes, mapped) = found.bytes(opened, buffer, &clusters)?;
    let sent = send(&bytes);
    opened.mappings().used(mapped);
    Ok(sent)
}

/// The parts of an answer, in order.
struct Found {
    parts: Vec<Part>,
    /// Bytes of the buffer that are used.
    filled: usize,
}

impl Found {
    /// Adds a stretch: as a part of its own, or read into the buffer.
    fn add(
        &mut self,
        opened: &OpenChain,
        source: Source,
        length: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let own_part = match source {
            _ if length < PART_MIN => None,
            Source::Zero => Some(Part::Zeros(length)),
            Source::Layer {
                index: layer,
                mapping: Mapping::Data { host },
            } if opened.layers()[layer].maps(host.0, length) => Some(Part::Mapped {
                layer,
                host: host.0,
                length,
            }),
            Source::Layer {
                index: layer,
                mapping: Mapping::Compressed { cluster, within },
            } => Some(Part::Cluster {
                layer,
                cluster,
                within: within as usize..within as usize + length,
            }),
            Source::Layer { .. } => None,
        };
        if let Some(part) = own_part {
            self.parts.push(part);
            return Ok(());
        }
        let stretch = self.filled..self.filled + length;
        if buffer.len() < stretch.end {
            buffer.resize(stretch.end, 0);
        }
        let bytes = &mut buffer[stretch.clone()];
        match source {
            Source::Zero => bytes.fill(0),
            Source::Layer { index, mapping } => opened.chain().layers()[index]
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

    /// The clusters of the compressed parts, in order.
    fn decompress(&self, opened: &OpenChain) -> Result<Vec<Arc<[u8]>>, Failure> {
        let mut clusters = Vec::new();
        for part in &self.parts {
            if let Part::Cluster { layer, cluster, .. } = part
                && let Layer::Qcow2(image) = &*opened.chain().layers()[*layer]
            {
                let whole = image.decompressed(*cluster);
                clusters.push(whole.map_err(|error| failure(&error))?);
            }
        }
        Ok(clusters)
    }

    /// The parts as they are given to the kernel, and how many bytes of them are in mappings.
    fn bytes<'a>(
        &self,
        opened: &'a OpenChain,
        buffer: &'a [u8],
        clusters: &'a [Arc<[u8]>],
    ) -> Result<(Vec<Bytes<'a>>, u64), Failure> {
        let mut clusters = clusters.iter();
        let mut bytes = Vec::with_capacity(self.parts.len());
        let mut mapped = 0;
        // Each file is looked at once for an answer, however many parts it has.
        let mut looked_at: Option<(usize, u64)> = None;
        for part in &self.parts {
            match part {
                Part::Zeros(length) => bytes.extend(zeros(*length)),
                Part::Read(range) => bytes.push(Bytes::from(&buffer[range.clone()])),
                Part::Mapped {
                    layer,
                    host,
                    length,
                } => {
                    let open = &opened.layers()[*layer];
                    let file_length = match looked_at {
                        Some((known, length)) if known == *layer => length,
                        Some(_) | None => open.data_length()?,
                    };
                    looked_at = Some((*layer, file_length));
                    // Behind a new end, the rest of its page would be zeros.
                    if host + *length as u64 > file_length {
                        return Err(Failure::new(
                            Errno::EIO,
                            format!("a layer's file was cut to {file_length} bytes"),
                        ));
                    }
                    bytes.extend(open.stretch(*host, *length));
                    mapped += *length as u64;
                }
                Part::Cluster { within, .. } => {
                    let whole = clusters.next().and_then(|whole| whole.get(within.clone()));
                    bytes.extend(whole.map(Bytes::from));
                }
            }
        }
        Ok((bytes, mapped))
    }
}

fn zeros<'a>(length: usize) -> impl Iterator<Item = Bytes<'a>> {
    let pieces = (0..length).step_by(ZEROS.len());
    pieces.map(move |at| Bytes::from(&ZEROS[..(length - at).min(ZEROS.len())]))
}
