//! A chain: layers over one another, read as one disk.
//!
//! Knows: that what a layer does not hold is in the layer below, and zeros below the last.
//! Does not know: how a layer finds its bytes, or which file it is.
//! Invariant: a chain never changes; another set of layers is another chain.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::error::Error;
use crate::flat_map::FlatMap;
use crate::layer::Layer;
use crate::mapping::{Mapping, Run};
use crate::units::{ClusterBits, GuestOffset};

/// Pieces one `extent_at` may join, so that a badly fragmented disk does not hold it up for long.
const MAX_PIECES_PER_EXTENT: u32 = 1 << 12;

/// How far a walk looks ahead in each layer at first. It grows with the extent that is found, so
/// that asking for one extent costs no more than the extent is long.
const FIRST_WINDOW: u64 = 16 << 20;

/// An immutable composition of layers, base first.
#[derive(Clone)]
pub struct Chain {
    layers: Arc<[Arc<Layer>]>,
    map: Arc<FlatMap>,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("layers", &self.layers)
            .finish_non_exhaustive()
    }
}

/// A stretch of the disk that is all data or all hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes; 0 only at or beyond the end of the disk.
    pub len: u64,
    /// Whether there is anything to read.
    pub kind: ExtentKind,
}

/// Whether a stretch of the disk holds anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Some layer holds bytes.
    Data,
    /// Zeros, because a layer says so or because no layer holds anything.
    Hole,
}

/// A stretch of the disk with one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Length in bytes; 0 only at or beyond the end of the disk.
    pub len: u64,
    /// Where the bytes come from.
    pub source: Source,
}

/// Where the bytes of a piece come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Zeros.
    Zero,
    /// A layer, by its place in the chain (0 is the base). Its mapping is data or compressed.
    Layer {
        /// The layer's place in the chain.
        index: usize,
        /// What it says: `Data` or `Compressed`.
        mapping: Mapping,
    },
}

impl Source {
    fn kind(&self) -> ExtentKind {
        match self {
            Source::Zero => ExtentKind::Hole,
            Source::Layer { .. } => ExtentKind::Data,
        }
    }

    /// Whether the bytes have to be decompressed.
    pub fn is_compressed(&self) -> bool {
        let Source::Layer { mapping, .. } = self else {
            return false;
        };
        matches!(mapping, Mapping::Compressed { .. })
    }

    /// What lies `bytes` further on in the same piece.
    pub(crate) fn skip(self, bytes: u64) -> Source {
        match self {
            Source::Zero => Source::Zero,
            Source::Layer { index, mapping } => Source::Layer {
                index,
                mapping: mapping.skip(bytes),
            },
        }
    }
}

impl Chain {
    /// A chain of these layers, the base first, the top last.
    pub fn new(layers_base_first: Vec<Arc<Layer>>) -> Chain {
        let layers: Arc<[Arc<Layer>]> = layers_base_first.into();
        let size = layers.last().map_or(0, |top| top.virtual_size());
        let units = layers.iter().filter_map(|layer| layer.unit_bits());
        let unit = units.min().unwrap_or(ClusterBits::MAX);
        let caches = layers.iter().rev().find_map(|layer| layer.caches());
        let room = caches.map_or_else(Arc::default, |caches| Arc::clone(&caches.maps));
        Chain {
            map: Arc::new(FlatMap::new(size, unit, &room)),
            layers,
        }
    }

    /// The layers, base first.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// Size of the disk: that of the top layer. A chain of no layers is an empty disk.
    pub fn virtual_size(&self) -> u64 {
        self.layers.last().map_or(0, |top| top.virtual_size())
    }

    /// Where the bytes from `offset` on come from, for at most `max_len` bytes.
    pub fn resolve(&self, offset: u64, max_len: u64) -> Result<Piece, Error> {
        if offset >= self.virtual_size() {
            return Ok(Piece {
                len: 0,
                source: Source::Zero,
            });
        }
        let mut walk = None;
        let known = self.map.piece(offset, |at, max_len| {
            walk.get_or_insert_with(|| Walk::new(self, max_len))
                .piece_at(at, max_len)
        });
        match known {
            Some(piece) => Ok(Piece {
                len: piece.len.min(max_len),
                ..piece
            }),
            // The tables are broken here, and this says how.
            None => Walk::new(self, max_len).piece_at(offset, max_len),
        }
    }

    /// Reads into `buf`; fewer bytes than asked for only at the end of the disk.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, Error> {
        let rest = self.virtual_size().saturating_sub(offset);
        let len = usize::try_from(rest).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..len];
        let mut done: usize = 0;
        while done < len {
            let want = len.saturating_sub(done) as u64;
            let piece = self.resolve(offset.saturating_add(done as u64), want)?;
            // At most `want`, so it is a length in memory.
            let end = done.saturating_add(piece.len as usize).min(len);
            let part = &mut buf[done..end];
            match piece.source {
                Source::Zero => part.fill(0),
                Source::Layer { index, mapping } => {
                    self.layers[index].read_mapped(mapping, part)?
                }
            }
            done = end;
        }
        Ok(len)
    }

    /// The extent that starts at `offset`, at most `max_len` long.
    ///
    /// An extent may end before its kind does: ask again behind it.
    pub fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent, Error> {
        Walk::new(self, FIRST_WINDOW).extent_at(offset, max_len)
    }

    /// Bytes of the disk that are data: what `st_blocks` shows. Walks every table.
    ///
    /// A hostile image can make this long: see [`Chain::allocated_bytes_until`].
    pub fn allocated_bytes(&self) -> Result<u64, Error> {
        self.count_allocated(|| true).map(|(sum, _)| sum)
    }

    /// Like [`Chain::allocated_bytes`], but nothing if the walk is not done by `deadline`.
    pub fn allocated_bytes_until(&self, deadline: Instant) -> Result<Option<u64>, Error> {
        let (sum, done) = self.count_allocated(|| Instant::now() < deadline)?;
        Ok(done.then_some(sum))
    }

    fn count_allocated(&self, go_on: impl Fn() -> bool) -> Result<(u64, bool), Error> {
        let mut walk = Walk::new(self, FIRST_WINDOW);
        let mut sum: u64 = 0;
        let mut at: u64 = 0;
        while go_on() {
            let extent = walk.extent_at(at, u64::MAX)?;
            if extent.len == 0 {
                return Ok((sum, true));
            }
            if extent.kind == ExtentKind::Data {
                sum = sum.saturating_add(extent.len);
            }
            at = at.saturating_add(extent.len);
        }
        Ok((sum, false))
    }
}

/// A walk from front to back that asks each layer for each run once, however the others cut it.
struct Walk<'a> {
    chain: &'a Chain,
    window: u64,
    runs: Vec<(u64, Run)>,
}

impl Walk<'_> {
    fn new(chain: &Chain, window: u64) -> Walk<'_> {
        let none = Run {
            len: 0,
            what: Mapping::Unallocated,
        };
        Walk {
            chain,
            window,
            runs: vec![(0, none); chain.layers.len()],
        }
    }

    fn extent_at(&mut self, offset: u64, max_len: u64) -> Result<Extent, Error> {
        let first = self.piece_at(offset, max_len)?;
        let mut extent = Extent {
            len: first.len,
            kind: first.source.kind(),
        };
        for _ in 1..MAX_PIECES_PER_EXTENT {
            let rest = max_len.saturating_sub(extent.len);
            // An error further on is met when somebody asks there.
            match self.piece_at(offset.saturating_add(extent.len), rest) {
                Ok(next) if next.len > 0 && next.source.kind() == extent.kind => {
                    extent.len = extent.len.saturating_add(next.len);
                    self.window = self.window.max(extent.len);
                }
                _ => break,
            }
        }
        Ok(extent)
    }

    fn piece_at(&mut self, offset: u64, max_len: u64) -> Result<Piece, Error> {
        let chain = self.chain;
        let mut len = chain.virtual_size().saturating_sub(offset).min(max_len);
        for (index, layer) in chain.layers.iter().enumerate().rev() {
            // Beyond the end of a shorter backing file are zeros, whatever lies further down.
            if len == 0 || offset >= layer.virtual_size() {
                break;
            }
            let run = self.run_at(index, layer, offset)?;
            len = len.min(run.len);
            match run.what {
                Mapping::Unallocated => {}
                Mapping::Zero => break,
                mapping @ (Mapping::Data { .. } | Mapping::Compressed { .. }) => {
                    return Ok(Piece {
                        len,
                        source: Source::Layer { index, mapping },
                    });
                }
            }
        }
        Ok(Piece {
            len,
            source: Source::Zero,
        })
    }

    /// What a layer says from `offset` on, as far as it was asked.
    fn run_at(&mut self, index: usize, layer: &Layer, offset: u64) -> Result<Run, Error> {
        let (start, run) = &mut self.runs[index];
        if offset < *start || offset >= start.saturating_add(run.len) {
            *run = layer.map(GuestOffset(offset), self.window)?;
            *start = offset;
        }
        let skipped = offset.saturating_sub(*start);
        Ok(Run {
            len: run.len.saturating_sub(skipped),
            what: run.what.skip(skipped),
        })
    }
}
