//! Where the bytes of a view come from: which layer's file, and where in it.

use super::{Content, View, failure};
use crate::errno::Failure;
use crate::model::FileId;
use crate::origin::{self, Origin, Origins};
use qmpfs_qcow2::{Mapping, Source};
use std::ops::Range;

/// Stretches that are looked at for one answer: one with few origins must not take for ever.
const PIECES_MAX: usize = 16 << 10;
/// In the place of a compressed cluster's offset, which cannot be that: the disk that the file is to QEMU.
const SERVED: u64 = u64::MAX;
/// Zeros that are asked for as a whole, and not as far as a chain's map is kept in one piece.
const LONG_HOLE: u64 = 16 << 20;

impl View {
    /// Adds the origins of a stretch, as many as there is room for, or as can be found at once. True
    /// when that is all of it.
    pub fn origins(&self, stretch: Range<u64>, origins: &mut Origins) -> Result<bool, Failure> {
        let opened = match &self.content {
            Content::Chain(opened) => opened,
            Content::Served(..) => {
                return Ok(origins.add(Origin::unknown(stretch.end.saturating_sub(stretch.start))));
            }
        };
        let chain = opened.chain();
        let end = stretch.end.min(chain.virtual_size());
        let mut at = stretch.start;
        for _ in 0..PIECES_MAX {
            if at >= end {
                return Ok(true);
            }
            let piece = chain
                .resolve(at, end - at)
                .map_err(|error| failure(&error))?;
            let mut length = piece.len.min(end - at);
            if length == 0 {
                return Ok(false);
            }
            let origin = match piece.source {
                Source::Zero => {
                    if length >= LONG_HOLE {
                        let hole = chain.extent_at(at, end - at);
                        length = length.max(hole.map_err(|error| failure(&error))?.len);
                    }
                    Origin::zeros(length)
                }
                Source::Layer { index, mapping } => {
                    let layer = &opened.layers()[index];
                    let file = layer.data_id();
                    match mapping {
                        Mapping::Data { host } if layer.served().is_some() => {
                            Origin::of(named(file, Some(SERVED)), host.0, length)
                        }
                        Mapping::Data { host } => Origin::of(named(file, None), host.0, length),
                        Mapping::Compressed { cluster, within } => {
                            let cluster = Some(cluster.host.0);
                            Origin::of(named(file, cluster), within.into(), length)
                        }
                        Mapping::Zero | Mapping::Unallocated => Origin::unknown(length),
                    }
                }
            };
            if !origins.add(origin) {
                return Ok(false);
            }
            at += length;
        }
        Ok(false)
    }
}

/// What a file, or a compressed cluster of it, is called.
fn named(file: FileId, cluster: Option<u64>) -> origin::Source {
    // No cluster begins at the last byte there could be.
    let part = cluster.map_or(0, |host| host.saturating_add(1));
    [file.dev, file.ino, part]
}
