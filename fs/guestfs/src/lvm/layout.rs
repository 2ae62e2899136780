//! Where the bytes of a logical volume are on its physical volumes. Pure.
#![deny(clippy::arithmetic_side_effects)]

use crate::Error;
use std::sync::Arc;

/// A place on a physical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    /// The volume's uuid. There may be very many areas of few volumes.
    pub uuid: Arc<str>,
    /// A byte of it.
    pub start: u64,
}

/// A run of extents of a logical volume, over one or more areas in turn.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) start: u64,
    pub(super) length: u64,
    /// Bytes on one area before it is the next one's turn.
    pub(super) stripe: u64,
    pub(super) areas: Vec<Area>,
}

/// Segments without gaps.
#[derive(Debug, Clone)]
pub struct Layout {
    segments: Vec<Segment>,
    length: u64,
}

/// A stretch of a volume that lies in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The physical volume's uuid.
    pub uuid: &'a str,
    /// Its first byte there.
    pub start: u64,
    /// Its bytes.
    pub length: u64,
}

impl Layout {
    pub(super) fn new(mut segments: Vec<Segment>) -> Result<Layout, Error> {
        segments.sort_by_key(|segment| segment.start);
        let mut length = 0u64;
        for segment in &segments {
            if segment.start != length || segment.length == 0 {
                return Err(Error::Corrupt("a logical volume has gaps"));
            }
            length = length
                .checked_add(segment.length)
                .ok_or(Error::Corrupt("a logical volume is too large"))?;
        }
        Ok(Layout { segments, length })
    }

    /// Bytes of the volume.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// All areas of it, and how many bytes of each.
    pub fn areas(&self) -> impl Iterator<Item = (&Area, u64)> {
        self.segments.iter().flat_map(|segment| {
            let count = segment.areas.len() as u64;
            let each = segment.length.checked_div(count).unwrap_or(0);
            segment.areas.iter().map(move |area| (area, each))
        })
    }

    /// The piece that begins at a byte of the volume, with `length` bytes at most; None behind its end.
    pub fn piece(&self, offset: u64, length: u64) -> Option<Piece<'_>> {
        let after = self.segments.partition_point(|it| it.start <= offset);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        let within = offset.checked_sub(segment.start)?;
        let rest = segment
            .length
            .checked_sub(within)
            .filter(|rest| *rest > 0)?;
        let (turn, in_stripe) = (
            within.checked_div(segment.stripe)?,
            within.checked_rem(segment.stripe)?,
        );
        let count = segment.areas.len() as u64;
        let (row, column) = (turn.checked_div(count)?, turn.checked_rem(count)?);
        let area = segment.areas.get(usize::try_from(column).ok()?)?;
        let in_area = row.checked_mul(segment.stripe)?.checked_add(in_stripe)?;
        Some(Piece {
            uuid: &area.uuid,
            start: area.start.checked_add(in_area)?,
            length: length.min(rest).min(segment.stripe.checked_sub(in_stripe)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Area, Layout, Segment};

    fn area(uuid: &str, start: u64) -> Area {
        let uuid = uuid.into();
        Area { uuid, start }
    }

    #[test]
    fn linear_and_striped_pieces() {
        let segments = vec![
            Segment {
                start: 100,
                length: 60,
                stripe: 10,
                areas: vec![area("a", 500), area("b", 700), area("c", 900)],
            },
            Segment {
                start: 0,
                length: 100,
                stripe: 100,
                areas: vec![area("a", 1000)],
            },
        ];
        let layout = Layout::new(segments).expect("no gaps");
        let piece = |offset| {
            let piece = layout.piece(offset, 50).expect("within");
            (piece.uuid.to_owned(), piece.start, piece.length)
        };
        assert_eq!(piece(0), ("a".into(), 1000, 50));
        assert_eq!(piece(70), ("a".into(), 1070, 30));
        assert_eq!(piece(100), ("a".into(), 500, 10));
        assert_eq!(piece(115), ("b".into(), 705, 5));
        assert_eq!(piece(133), ("a".into(), 513, 7));
        assert_eq!(piece(159), ("c".into(), 919, 1));
        assert_eq!(layout.piece(160, 1), None);
        assert_eq!(layout.areas().count(), 4);
        let gap = Segment {
            start: 1,
            length: 1,
            stripe: 1,
            areas: vec![area("a", 0)],
        };
        assert!(Layout::new(vec![gap]).is_err());
    }
}
