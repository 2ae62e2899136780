//! Where a view has data and where it has holes.
//! It knows that a raw layer says "data" throughout, and asks that layer's file; for the rest it
//! believes the reader.

use super::cache::OpenChain;
use crate::sys;
use qmpfs_qcow2::{Error, Layer, Mapping, Source};
use std::ops::Range;
use std::time::Instant;

/// A hole that is looked at as a whole, and not as far as a chain's map is kept in one piece.
const LONG_HOLE: u64 = 16 << 20;

/// A walk over the extents of a chain.
pub(super) struct Extents<'a> {
    opened: &'a OpenChain,
    size: u64,
    has_raw: bool,
}

/// A stretch of the disk that is all data or all hole.
struct Stretch {
    end: u64,
    data: bool,
}

impl<'a> Extents<'a> {
    pub(super) fn new(opened: &'a OpenChain) -> Self {
        let raw = |layer: &std::sync::Arc<Layer>| matches!(**layer, Layer::Raw(_));
        let has_raw = opened.chain().layers().iter().any(raw);
        Extents {
            opened,
            size: opened.chain().virtual_size(),
            has_raw,
        }
    }

    /// The next offset where there is data (or a hole); None when there is none to the end.
    pub(super) fn next(&self, from: u64, data: bool) -> Result<Option<u64>, Error> {
        let mut at = from;
        while at < self.size {
            let stretch = self.at(at)?;
            if stretch.data == data {
                return Ok(Some(at));
            }
            at = stretch.end;
        }
        Ok(None)
    }

    /// Bytes of the disk that are data.
    pub(super) fn data_bytes(&self) -> Result<u64, Error> {
        if !self.has_raw {
            return self.opened.chain().allocated_bytes();
        }
        let (mut sum, mut at) = (0, 0);
        while at < self.size {
            let stretch = self.at(at)?;
            if stretch.data {
                sum += stretch.end - at;
            }
            at = stretch.end;
        }
        Ok(sum)
    }

    /// Bytes of a stretch that are data; None if that takes longer.
    pub(super) fn data_bytes_in(
        &self,
        stretch: Range<u64>,
        deadline: Instant,
    ) -> Result<Option<u64>, Error> {
        let (mut sum, mut at) = (0, stretch.start);
        let end = stretch.end.min(self.size);
        while at < end {
            if Instant::now() >= deadline {
                return Ok(None);
            }
            let found = self.at(at)?;
            if found.data {
                sum += found.end.min(end) - at;
            }
            at = found.end;
        }
        Ok(Some(sum))
    }

    /// What lies at `at`, which is before the end of the disk.
    fn at(&self, at: u64) -> Result<Stretch, Error> {
        let mut stretch = self.piece_at(at, self.size - at)?;
        if !stretch.data && !self.has_raw && stretch.end - at >= LONG_HOLE {
            // It may go on for most of the disk: a walk asks each layer for all of it at once.
            let extent = self.opened.chain().extent_at(at, self.size - at)?;
            stretch.end = at.saturating_add(extent.len);
        }
        // The reader's extents are never empty before the end; that a walk ends is worth a guard.
        Ok(Stretch {
            end: stretch.end.clamp(at + 1, self.size),
            data: stretch.data,
        })
    }

    fn piece_at(&self, at: u64, rest: u64) -> Result<Stretch, Error> {
        let piece = self.opened.chain().resolve(at, rest)?;
        let end = at.saturating_add(piece.len);
        let (index, host) = match piece.source {
            Source::Zero => return Ok(Stretch { end, data: false }),
            Source::Layer {
                index,
                mapping: Mapping::Data { host },
            } => (index, host.0),
            Source::Layer {
                mapping: Mapping::Compressed { .. } | Mapping::Zero | Mapping::Unallocated,
                ..
            } => {
                return Ok(Stretch { end, data: true });
            }
        };
        if !matches!(*self.opened.chain().layers()[index], Layer::Raw(_)) {
            return Ok(Stretch { end, data: true });
        }
        let layer = &self.opened.layers()[index];
        if let Some(served) = layer.served() {
            return Ok(match served.stretch_at(host) {
                Ok((in_layer, data)) => Stretch {
                    end: end.min(at.saturating_add(in_layer.saturating_sub(host))),
                    data,
                },
                Err(_) => Stretch { end, data: true },
            });
        }
        // A file that cannot be asked holds data throughout, which hides nothing.
        Ok(match sys::stretch_at(layer.file(), host) {
            Ok(in_file) => {
                let len = in_file.end.saturating_sub(host);
                Stretch {
                    end: end.min(at.saturating_add(len)),
                    data: in_file.data,
                }
            }
            Err(_) => Stretch { end, data: true },
        })
    }
}
