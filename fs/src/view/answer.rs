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

/// Stretches from here on are copied by the kernel out of the page cache. Reading a shorter one
/// costs less than finding its pages, and reads no more of a cold file than was asked for.
const MAPPED_MIN: usize = 32 << 10;

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

/// The parts of an answer, in order.
#[derive(Default)]
struct Found {
    parts: Vec<Part>,
    /// Where in the disk the first compressed part ends.
    first_cluster_end: Option<u64>,
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
    let found = Found::find(opened, offset, size, buffer)?;
    if let Some(first) = found.first_cluster_end {
        cursor.read(opened.chain(), offset..offset + size as u64, first);
    }
    let clusters = found.decompress(opened)?;
    let (bytes, mapped) = found.bytes(opened, buffer, &clusters)?;
    let sent = send(&bytes);
    opened.mappings().used(mapped);
    Ok(sent)
}

impl Found {
    /// Finds where all parts are, and reads those that the kernel cannot copy from where they lie.
    fn find(
        opened: &OpenChain,
        offset: u64,
        size: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Found, Failure> {
        let mut found = Found::default();
        let (mut done, mut filled) = (0, 0);
        while done < size {
            let piece = opened
                .chain()
                .resolve(offset + done as u64, (size - done) as u64)
                .map_err(|error| failure(&error))?;
            // At most what is left, so it is a length in memory.
            let length = (piece.len as usize).min(size - done);
            if length == 0 {
                // Cannot be: the disk goes on.
                return Err(Failure::new(Errno::EIO, "the disk has shrunk"));
            }
            done += length;
            let (layer, mapping) = match piece.source {
                Source::Zero => {
                    found.parts.push(Part::Zeros(length));
                    continue;
                }
                Source::Layer { index, mapping } => (index, mapping),
            };
            match mapping {
                Mapping::Data { host }
                    if length >= MAPPED_MIN && opened.layers()[layer].maps(host.0, length) =>
                {
                    found.parts.push(Part::Mapped {
                        layer,
                        host: host.0,
                        length,
                    });
                }
                Mapping::Compressed { cluster, within } => {
                    let start = within as usize;
                    found.parts.push(Part::Cluster {
                        layer,
                        cluster,
                        within: start..start + length,
                    });
                    let end = offset + done as u64;
                    found.first_cluster_end.get_or_insert(end);
                }
                Mapping::Data { .. } | Mapping::Zero | Mapping::Unallocated => {
                    let end = filled + length;
                    if buffer.len() < end {
                        buffer.resize(end, 0);
                    }
                    opened.chain().layers()[layer]
                        .read_mapped(mapping, &mut buffer[filled..end])
                        .map_err(|error| failure(&error))?;
                    match found.parts.last_mut() {
                        Some(Part::Read(range)) => range.end = end,
                        _ => found.parts.push(Part::Read(filled..end)),
                    }
                    filled = end;
                }
            }
        }
        Ok(found)
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
