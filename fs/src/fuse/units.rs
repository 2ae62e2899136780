//! Data and holes of a file in whole units: who reads past the kernel's cache asks for nothing smaller, and QEMU,
//! which opens files so, ends where data ends within one. What begins or ends within a unit makes it data; only
//! the end of the file is exact. Pure: where data and holes are, byte by byte, is asked of others.

use crate::nbd::Seek;
use std::ops::ControlFlow;

/// Bytes of a unit: what QEMU takes for the smallest piece where a file takes any (`raw_probe_alignment`).
const UNIT: u64 = 4096;

/// A search for data or a hole of a file, question by question.
#[derive(Clone, Copy)]
pub(super) struct Search {
    wanted: Seek,
    /// From where on.
    from: u64,
    /// Bytes of the file.
    length: u64,
    /// The next question: what, and from where on.
    asks: Seek,
    at: u64,
}

impl Search {
    /// From a byte of a file on.
    pub(super) fn new(wanted: Seek, from: u64, length: u64) -> Search {
        Search {
            wanted,
            from,
            length,
            // a hole is where no data is
            asks: Seek::Data,
            at: unit_of(from),
        }
    }

    /// What is to be looked for, and from where on: a byte of the file.
    pub(super) fn question(&self) -> (Seek, u64) {
        (self.asks, self.at)
    }

    /// Takes the answer to the question, None where there is nothing to the end; and ends, or has another.
    pub(super) fn told(mut self, found: Option<u64>) -> ControlFlow<Option<u64>, Search> {
        let found = found.filter(|found| *found < self.length);
        match (self.asks, self.wanted, found) {
            (Seek::Data, Seek::Data, found) => {
                ControlFlow::Break(found.map(|data| unit_of(data).max(self.from)))
            }
            (Seek::Data, Seek::Hole, Some(data)) if unit_of(data) == self.at => {
                (self.asks, self.at) = (Seek::Hole, data);
                ControlFlow::Continue(self)
            }
            (Seek::Data, Seek::Hole, _) => ControlFlow::Break(Some(self.at.max(self.from))),
            (Seek::Hole, _, None) => ControlFlow::Break(Some(self.length)),
            (Seek::Hole, _, Some(hole)) => {
                // the unit that was looked at has data, whatever the answer is
                let next = unit_of(self.at).saturating_add(UNIT);
                let next = hole.checked_next_multiple_of(UNIT).map(|at| at.max(next));
                let Some(next) = next.filter(|next| *next < self.length) else {
                    return ControlFlow::Break(Some(self.length));
                };
                (self.asks, self.at) = (Seek::Data, next);
                ControlFlow::Continue(self)
            }
        }
    }

    /// Asks until it is found.
    pub(super) fn find<E>(
        mut self,
        mut ask: impl FnMut(Seek, u64) -> Result<Option<u64>, E>,
    ) -> Result<Option<u64>, E> {
        loop {
            let (seek, at) = self.question();
            match self.told(ask(seek, at)?) {
                ControlFlow::Break(found) => return Ok(found),
                ControlFlow::Continue(further) => self = further,
            }
        }
    }
}

/// Where the unit begins that a byte is in.
fn unit_of(at: u64) -> u64 {
    at - at % UNIT
}

#[cfg(test)]
mod tests {
    use super::{Search, UNIT};
    use crate::nbd::Seek;
    use std::convert::Infallible;
    use std::ops::Range;

    /// As a file of that length with data there answers, which is said in bytes.
    fn sought(data: &[Range<u64>], length: u64, wanted: Seek, from: u64) -> Option<u64> {
        let is_data = |at: u64| data.iter().find(|it| it.contains(&at));
        let ask = |seek, from| -> Result<Option<u64>, Infallible> {
            let mut at = from;
            Ok(loop {
                if at >= length {
                    break (seek == Seek::Hole).then_some(length);
                }
                match (is_data(at), seek) {
                    (Some(_), Seek::Data) | (None, Seek::Hole) => break Some(at),
                    (Some(range), Seek::Hole) => at = range.end,
                    (None, Seek::Data) => {
                        let next = data.iter().map(|it| it.start).filter(|it| *it > at).min();
                        at = next.unwrap_or(length);
                    }
                }
            })
        };
        let Ok(found) = Search::new(wanted, from, length).find(ask);
        found
    }

    /// The same by looking at each unit.
    fn expected(data: &[Range<u64>], length: u64, wanted: Seek, from: u64) -> Option<u64> {
        let has_data = |unit: u64| {
            let unit = unit * UNIT..((unit + 1) * UNIT).min(length);
            let mut data = data.iter();
            data.any(|it| it.start < unit.end && unit.start < it.end)
        };
        let mut units = from / UNIT..length.div_ceil(UNIT);
        let found = units.find(|unit| has_data(*unit) == (wanted == Seek::Data));
        let at = found.map(|unit| (unit * UNIT).max(from));
        at.or((wanted == Seek::Hole).then_some(length))
    }

    #[test]
    fn units_with_a_byte_of_data_are_data() {
        let cases: [(&[(u64, u64)], u64); 7] = [
            (&[], 20_480),
            (&[(0, 512)], 20_480),
            (&[(5_000, 5_001), (9_000, 13_000)], 20_480),
            // a hole of less than a unit, and one of a unit that lies in two
            (&[(0, 4_608), (5_120, 9_000), (13_096, 20_480)], 20_480),
            (&[(0, 13_824)], 13_824),
            (&[(1_000, 13_000)], 13_824),
            (&[(13_400, 13_800), (13_810, 20_000)], 13_824),
        ];
        for (data, length) in cases {
            let data: Vec<_> = data.iter().map(|(start, end)| *start..*end).collect();
            for from in (0..length).step_by(8).chain([length - 1]) {
                for wanted in [Seek::Data, Seek::Hole] {
                    assert_eq!(
                        sought(&data, length, wanted, from),
                        expected(&data, length, wanted, from),
                        "{wanted:?} from {from} of {length} with {data:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_answer_that_leads_nowhere_ends_the_search() {
        let answers = |seek, at| -> Result<Option<u64>, Infallible> {
            Ok(match seek {
                Seek::Data => Some(at),
                Seek::Hole => Some(0),
            })
        };
        let Ok(found) = Search::new(Seek::Hole, 0, 100_000).find(answers);
        assert_eq!(found, Some(100_000));
    }
}
