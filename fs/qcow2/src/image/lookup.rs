//! From a guest offset to a run: through the L1 table in memory and cached slices of L2 tables.
//!
//! Knows: how tables are found, and how far one lookup may go.
//! Does not know: what is done with a run, or how entries are read (`table` does).

use std::sync::Arc;

use super::Image;
use crate::bytes::be64_table;
use crate::error::{Error, io_at};
use crate::mapping::{Mapping, Run};
use crate::units::{GuestOffset, HostOffset};

/// Part of an L2 table that is read and cached at once: a whole table up to 64 KiB clusters.
const SLICE_BYTES: usize = 64 << 10;
/// Slices one `map` may walk, so that a long run does not hold up a short read.
const MAX_SLICES_PER_MAP: u32 = 64;

impl Image {
    /// The run that starts at `offset`, at most `max_len` long; of length 0 beyond the end.
    ///
    /// A run may end before its kind of mapping does: ask again behind it.
    pub fn map(&self, offset: GuestOffset, max_len: u64) -> Result<Run, Error> {
        let end = offset.0.saturating_add(max_len).min(self.virtual_size);
        let mut run = Run {
            len: 0,
            what: Mapping::Unallocated,
        };
        if offset.0 >= end {
            return Ok(run);
        }
        let mut slice = None;
        let mut budget = MAX_SLICES_PER_MAP;
        let mut at = offset.0;
        while at < end {
            let next = match self.next_run(GuestOffset(at), end, &mut slice, &mut budget) {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(e) if run.len == 0 => return Err(e),
                // The caller meets the error when it asks for what lies there.
                Err(_) => break,
            };
            if run.len == 0 {
                run = next;
            } else if !run.absorb(&next) {
                break;
            }
            at = offset.0.saturating_add(run.len);
        }
        run.len = run.len.min(end.saturating_sub(offset.0));
        Ok(run)
    }

    /// A run from `at` on, within one cluster or a gap of the L1 table; nothing if out of budget.
    fn next_run(
        &self,
        at: GuestOffset,
        end: u64,
        slice: &mut Option<(HostOffset, Arc<[u64]>)>,
        budget: &mut u32,
    ) -> Result<Option<Run>, Error> {
        let format = &self.shared.format;
        let l1_index = at.0 >> format.l1_shift();
        let Some(table) = format.l2_table(self.l1_entry(l1_index), at)? else {
            return Ok(Some(self.l1_gap(at, l1_index, end)));
        };
        let l2_index =
            (at.0 >> format.cluster_bits().get()) & (1u64 << format.l2_bits()).wrapping_sub(1);
        let word = (l2_index as usize) << format.entry_words_bits();
        let slice_bytes = SLICE_BYTES.min(format.cluster_bits().bytes());
        let slice_words = slice_bytes >> 3;
        // A power of two, so this is the part of `word` that picks the slice.
        let skipped = (word & !slice_words.wrapping_sub(1)) << 3;
        let place = table.checked_add(skipped as u64).unwrap_or(table);
        let words = match slice {
            Some((cached, words)) if *cached == place => words,
            _ => {
                if *budget == 0 {
                    return Ok(None);
                }
                *budget = budget.saturating_sub(1);
                &slice.insert((place, self.l2_slice(place, slice_bytes)?)).1
            }
        };
        let entry = words
            .get(word & slice_words.wrapping_sub(1)..)
            .unwrap_or(&[]);
        format.run(entry, at).map(Some)
    }

    /// The L1 entry, or 0 (no table) beyond the table's end.
    fn l1_entry(&self, index: u64) -> u64 {
        usize::try_from(index)
            .ok()
            .and_then(|i| self.l1.get(i))
            .copied()
            .unwrap_or(0)
    }

    fn l1_gap(&self, at: GuestOffset, first: u64, end: u64) -> Run {
        let shift = self.shared.format.l1_shift();
        let last = end.saturating_sub(1) >> shift;
        let mut next = first.saturating_add(1);
        while next <= last {
            if next >= self.l1.len() as u64 {
                next = last.saturating_add(1);
                break;
            }
            // Any set bit ends the gap; a lone flag bit only makes it end early.
            if self.l1_entry(next) != 0 {
                break;
            }
            next = next.saturating_add(1);
        }
        let gap_end = next.checked_mul(1 << shift).unwrap_or(end).min(end);
        Run {
            len: gap_end.saturating_sub(at.0),
            what: Mapping::Unallocated,
        }
    }

    fn l2_slice(&self, place: HostOffset, bytes: usize) -> Result<Arc<[u64]>, Error> {
        let tables = &self.shared.caches.tables;
        // At most a slice.
        let key = (self.owner, place, u32::try_from(bytes).unwrap_or(u32::MAX));
        if let Some(words) = tables.get(key) {
            return Ok(words);
        }
        let mut raw = vec![0; bytes];
        self.shared
            .file
            .read(&mut raw, place.0)
            .map_err(io_at("L2 table", place.0))?;
        let words = be64_table(&raw).collect();
        Ok(tables.get_or_insert(key, bytes, || words))
    }
}
