//! A chain's map made flat: for each stretch of the disk its source, however deep that lies.
//!
//! Knows: how stretches are kept, found and thrown away; does not know how they are resolved.
//! A map is filled segment by segment when somebody reads there, and only kept while there is
//! room: it is a cache of what the layers' tables say, never the truth itself.
//! Invariant: all maps that share a `Room` hold at most its bytes together, but for one segment, and
//! for their slots, which are counted and stay.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwapOption;

use crate::chain::{Piece, Source};
use crate::error::Error;

/// Units of the smallest cluster (or subcluster) in a segment, as an exponent of two: enough to make
/// a lookup rare, few enough to be filled within a read.
const SEGMENT_UNITS_BITS: u32 = 10;
/// A segment's offsets are kept in 32 bits.
const MAX_SEGMENT_BITS: u32 = 31;
/// Slots of one map. A longer disk has several segments for a slot, and the last one read stays.
const MAX_SLOTS: u64 = 1 << 16;
/// Enough for 16 GiB of a disk of 64 KiB clusters that are all over the place.
const DEFAULT_ROOM: usize = 10 << 20;
/// What a segment costs besides its stretches: itself and its slot.
const SEGMENT_BYTES: usize = 128;

/// The flat map of one chain.
pub(crate) struct FlatMap {
    slots: Arc<Slots>,
    bits: u32,
}

/// Memory for flat maps, shared by all chains it is given to.
pub(crate) struct Room {
    max_bytes: usize,
    used: AtomicUsize,
    maps: Mutex<Vec<Weak<Slots>>>,
}

struct Slots {
    segments: Box<[ArcSwapOption<Segment>]>,
    used: AtomicUsize,
    /// Where throwing away goes on.
    hand: AtomicU64,
    room: Arc<Room>,
}

/// What is known of one stretch of 2^bits bytes.
struct Segment {
    number: u64,
    starts: Box<[u32]>,
    sources: Box<[Source]>,
    /// Where the last stretch ends.
    end: u32,
}

impl FlatMap {
    /// A map of a disk of this size, of layers whose smallest unit is 2^`unit_bits` bytes.
    pub(crate) fn new(virtual_size: u64, unit_bits: u32, room: &Arc<Room>) -> FlatMap {
        let bits = unit_bits
            .saturating_add(SEGMENT_UNITS_BITS)
            .min(MAX_SEGMENT_BITS);
        let count = virtual_size.div_ceil(1 << bits).min(MAX_SLOTS);
        let segments: Box<[_]> = (0..count).map(|_| ArcSwapOption::empty()).collect();
        let used = size_of_val(&*segments);
        room.used.fetch_add(used, Ordering::Relaxed);
        let slots = Arc::new(Slots {
            segments,
            used: AtomicUsize::new(used),
            hand: AtomicU64::new(0),
            room: Arc::clone(room),
        });
        room.enter(&slots);
        FlatMap { slots, bits }
    }

    /// What lies at `offset`, to the end of its stretch; made with `resolve` if it is not known.
    /// Nothing if that fails there.
    pub(crate) fn piece(
        &self,
        offset: u64,
        resolve: impl FnMut(u64, u64) -> Result<Piece, Error>,
    ) -> Option<Piece> {
        let number = offset >> self.bits;
        let slots = self.slots.segments.len() as u64;
        let index = match number {
            // Nearly always, and without a division.
            number if number < slots => number,
            number => number.checked_rem(slots)?,
        };
        let slot = self.slots.segments.get(index as usize)?;
        // Less than 2^31.
        let within = offset.wrapping_sub(number << self.bits) as u32;
        let known = slot.load();
        if let Some(segment) = &*known
            && segment.number == number
        {
            return segment.piece(within, self.bits);
        }
        let (segment, is_whole) = Segment::fill(number, self.bits, resolve);
        let piece = segment.piece(within, self.bits);
        // What could not be read now may be readable the next time.
        if is_whole {
            self.slots.put(slot, Arc::new(segment));
        }
        piece
    }
}

impl Segment {
    fn fill(
        number: u64,
        bits: u32,
        mut resolve: impl FnMut(u64, u64) -> Result<Piece, Error>,
    ) -> (Segment, bool) {
        let (start, len) = (number << bits, 1u32 << bits);
        let mut is_whole = true;
        let (mut starts, mut sources) = (Vec::new(), Vec::<Source>::new());
        let mut at: u32 = 0;
        while at < len {
            let rest = u64::from(len.saturating_sub(at));
            let piece = match resolve(start.saturating_add(u64::from(at)), rest) {
                Ok(piece) if piece.len > 0 => piece,
                Ok(_) => break,
                // It is met again, and told, by whoever reads there.
                Err(error) => {
                    is_whole = !matches!(error, Error::Io { .. });
                    break;
                }
            };
            let before = starts.last().map_or(0, |start| at.saturating_sub(*start));
            let goes_on = sources
                .last()
                .is_some_and(|last| last.skip(u64::from(before)) == piece.source);
            if !goes_on {
                starts.push(at);
                sources.push(piece.source);
            }
            at = at.saturating_add(u32::try_from(piece.len.min(rest)).unwrap_or(u32::MAX));
        }
        let segment = Segment {
            number,
            starts: starts.into(),
            sources: sources.into(),
            end: at.min(len),
        };
        (segment, is_whole)
    }

    fn piece(&self, within: u32, bits: u32) -> Option<Piece> {
        if within >= self.end {
            return None;
        }
        let index = self.index(within, bits);
        let start = *self.starts.get(index)?;
        let next = index.saturating_add(1);
        let end = self.starts.get(next).copied().unwrap_or(self.end);
        Some(Piece {
            len: u64::from(end.saturating_sub(within)),
            source: self
                .sources
                .get(index)?
                .skip(u64::from(within.saturating_sub(start))),
        })
    }

    /// The stretch that `within` is in.
    fn index(&self, within: u32, bits: u32) -> usize {
        // Stretches of one length, as in a disk written in random order, are found at once.
        let count = self.starts.len() as u64;
        let guess = (u64::from(within).saturating_mul(count) >> bits) as usize;
        let starts_before = |index: usize| self.starts.get(index).is_some_and(|s| *s <= within);
        if starts_before(guess) && !starts_before(guess.saturating_add(1)) {
            return guess;
        }
        self.starts
            .partition_point(|start| *start <= within)
            .saturating_sub(1)
    }

    fn bytes(&self) -> usize {
        size_of_val::<[u32]>(&self.starts)
            .saturating_add(size_of_val::<[Source]>(&self.sources))
            .saturating_add(SEGMENT_BYTES)
    }
}

impl Slots {
    fn put(&self, slot: &ArcSwapOption<Segment>, segment: Arc<Segment>) {
        let bytes = segment.bytes();
        self.used.fetch_add(bytes, Ordering::Relaxed);
        let used = self.room.used.fetch_add(bytes, Ordering::Relaxed);
        self.forget(slot.swap(Some(segment)).as_deref());
        if used.saturating_add(bytes) > self.room.max_bytes {
            self.room.make_room(bytes);
        }
    }

    /// Gives back the room of a segment that has left its slot.
    fn forget(&self, segment: Option<&Segment>) {
        let bytes = segment.map_or(0, Segment::bytes);
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.room.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Throws segments away until so many bytes are free, or none is left.
    fn throw_away(&self, bytes: usize) {
        let goal = self.used.load(Ordering::Relaxed).saturating_sub(bytes);
        for _ in 0..self.segments.len() {
            if self.used.load(Ordering::Relaxed) <= goal {
                break;
            }
            let hand = self.hand.fetch_add(1, Ordering::Relaxed);
            let next = hand.checked_rem(self.segments.len() as u64).unwrap_or(0);
            if let Some(slot) = self.segments.get(next as usize)
                && slot.load().is_some()
            {
                self.forget(slot.swap(None).as_deref());
            }
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        let used = self.used.load(Ordering::Relaxed);
        self.room.used.fetch_sub(used, Ordering::Relaxed);
    }
}

impl Default for Room {
    fn default() -> Room {
        Room::new(DEFAULT_ROOM)
    }
}

impl Room {
    /// Room for this many bytes.
    pub(crate) fn new(max_bytes: usize) -> Room {
        Room {
            max_bytes,
            used: AtomicUsize::new(0),
            maps: Mutex::default(),
        }
    }

    /// Bytes held now.
    pub(crate) fn bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn enter(&self, slots: &Arc<Slots>) {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.retain(|map| map.strong_count() > 0);
        maps.push(Arc::downgrade(slots));
    }

    /// Takes what is missing from the map that has most.
    fn make_room(&self, needed: usize) {
        let largest = {
            let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
            let open = maps.iter().filter_map(Weak::upgrade);
            open.max_by_key(|map| map.used.load(Ordering::Relaxed))
        };
        if let Some(map) = largest {
            // Some more, so that not every segment has to look for room.
            map.throw_away(needed.saturating_add(self.max_bytes >> 4));
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "tests may overflow loudly")]
mod tests {
    use super::*;
    use crate::error::CorruptCause;
    use crate::mapping::Mapping;
    use crate::units::{GuestOffset, HostOffset};

    const UNIT: u64 = 1 << 16;
    const SIZE: u64 = 4 << 30;

    /// Every other unit is data, and lies at twice its place.
    fn striped(at: u64, max_len: u64) -> Result<Piece, Error> {
        let rest = UNIT.wrapping_sub(at % UNIT);
        let source = match (at / UNIT) % 2 {
            0 => Source::Zero,
            _ => Source::Layer {
                index: 300,
                mapping: Mapping::Data {
                    host: HostOffset(at + at / UNIT * UNIT),
                },
            },
        };
        let len = rest.min(max_len).min(SIZE - at);
        Ok(Piece { len, source })
    }

    #[test]
    fn what_is_found_is_what_was_resolved() {
        let map = FlatMap::new(SIZE, 16, &Arc::default());
        for at in [0, 1, UNIT - 1, UNIT, 77 * UNIT + 5, SIZE - 1, 3 * UNIT] {
            let piece = map.piece(at, striped).unwrap();
            assert_eq!(piece, striped(at, u64::MAX).unwrap(), "{at}");
            let known = map.piece(at, |_, _| unreachable!("it is known")).unwrap();
            assert_eq!(known, piece, "{at}");
        }
        assert!(
            map.piece(SIZE, |_, _| Ok(Piece {
                len: 0,
                source: Source::Zero
            }))
            .is_none()
        );
        assert!(
            FlatMap::new(0, 9, &Arc::default())
                .piece(0, striped)
                .is_none()
        );
    }

    #[test]
    fn stretches_of_one_source_are_one() {
        let map = FlatMap::new(SIZE, 16, &Arc::default());
        let contiguous = |at: u64, _| {
            let mapping = Mapping::Data {
                host: HostOffset(at + 512),
            };
            let source = Source::Layer { index: 0, mapping };
            Ok(Piece { len: UNIT, source })
        };
        assert_eq!(map.piece(0, contiguous).unwrap().len, 64 << 20);
    }

    #[test]
    fn behind_an_error_nothing_is_known_and_before_it_all() {
        let map = FlatMap::new(SIZE, 16, &Arc::default());
        let broken = |at: u64, max_len: u64| match at {
            ..0x50000 => striped(at, max_len),
            _ => Err(CorruptCause::ZeroInV2 {
                guest: GuestOffset(at),
            }
            .into()),
        };
        assert!(map.piece(0x4ffff, broken).is_some());
        assert!(map.piece(0x50000, broken).is_none());
    }

    #[test]
    fn all_maps_together_stay_within_their_room() {
        let room = Arc::new(Room::new(1 << 20));
        let maps = [0, 1, 2].map(|_| FlatMap::new(SIZE, 16, &room));
        for at in (0..SIZE).step_by(1 << 24) {
            for map in &maps {
                assert_eq!(map.piece(at, striped), striped(at, u64::MAX).ok());
            }
            let largest = maps[0].slots.used.load(Ordering::Relaxed).min(100 << 10);
            assert!(room.bytes() <= (1 << 20) + largest, "{}", room.bytes());
        }
        assert!(room.bytes() > 1 << 19, "{}", room.bytes());
        drop(maps);
        assert_eq!(room.bytes(), 0);
    }

    #[test]
    fn a_disk_of_more_segments_than_slots() {
        let map = FlatMap::new(u64::MAX, 9, &Arc::default());
        for at in [0, 1 << 50, 0, 1 << 62, 1 << 50] {
            let source = Source::Layer {
                index: 1,
                mapping: Mapping::Data {
                    host: HostOffset(at),
                },
            };
            let piece = map.piece(at, |_, max_len| {
                Ok(Piece {
                    len: max_len,
                    source,
                })
            });
            assert_eq!(piece.unwrap().source, source);
        }
    }
}
