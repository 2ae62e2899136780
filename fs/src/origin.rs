//! Where the bytes of a file in a mount come from, as a mount tells it to `qmpfs diff`: stretches of one origin are
//! the same bytes, and nobody has to read them. Pure: the message, and what it means.
//! Invariant: an origin holds as long as both files are open, and in one mount alone.

/// Stretches of one answer: a message has less than 16 KiB.
pub const STRETCHES_MAX: usize = 400;
/// Bytes of the message: two numbers asked, or their count and the stretches answered.
pub const MESSAGE: usize = 16 + STRETCHES_MAX * STRETCH;
const STRETCH: usize = 40;
/// `_IOWR('Q', 1, MESSAGE)`: the kernel carries the message there and back.
pub const REQUEST: u32 = 3 << 30 | (MESSAGE as u32) << 16 | (b'Q' as u32) << 8 | 1;

/// What tells a file, or a part of one, from all others: device, inode, and which part. Whole names and no sums of
/// them: an image could be made for two sums to be the same.
pub type Source = [u64; 3];

/// Zeros, whoever has them.
const ZEROS: Source = [0; 3];
/// Nothing is known: it has to be read.
const UNKNOWN: Source = [u64::MAX; 3];

/// A stretch that comes from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Its bytes.
    pub length: u64,
    /// Which file, or which part of one.
    source: Source,
    /// Where it begins there.
    at: u64,
}

impl Origin {
    /// Zeros.
    pub fn zeros(length: u64) -> Origin {
        Origin {
            length,
            source: ZEROS,
            at: 0,
        }
    }

    /// What has to be read.
    pub fn unknown(length: u64) -> Origin {
        Origin {
            length,
            source: UNKNOWN,
            at: 0,
        }
    }

    /// Bytes of something that `source` tells from all others, from `at` on there.
    pub fn of(source: Source, at: u64, length: u64) -> Origin {
        match source {
            // No file is called so.
            ZEROS | UNKNOWN => Origin::unknown(length),
            source => Origin { length, source, at },
        }
    }

    /// Without its first bytes.
    pub fn skip(self, bytes: u64) -> Origin {
        Origin {
            length: self.length.saturating_sub(bytes),
            at: match self.source {
                ZEROS | UNKNOWN => 0,
                _ => self.at.saturating_add(bytes),
            },
            ..self
        }
    }

    /// Its first bytes.
    pub fn at_most(self, bytes: u64) -> Origin {
        Origin {
            length: self.length.min(bytes),
            ..self
        }
    }

    /// Whether two stretches have the same bytes, as far as both go, for all that is known.
    pub fn is_same(self, other: Origin) -> bool {
        self.source != UNKNOWN && (self.source, self.at) == (other.source, other.at)
    }

    /// Takes in `next`, which lies behind it, if both are one stretch.
    fn absorb(&mut self, next: Origin) -> bool {
        let goes_on = self.skip(self.length);
        let is_one = (goes_on.source, goes_on.at) == (next.source, next.at);
        if is_one {
            self.length = self.length.saturating_add(next.length);
        }
        is_one
    }
}

/// Stretches in their order, as few as they are.
#[derive(Debug, Default)]
pub struct Origins(Vec<Origin>);

impl Origins {
    /// Adds the next one; false where there is no room for it.
    pub fn add(&mut self, next: Origin) -> bool {
        if next.length == 0 || self.0.last_mut().is_some_and(|last| last.absorb(next)) {
            return true;
        }
        let has_room = self.0.len() < STRETCHES_MAX;
        if has_room {
            self.0.push(next);
        }
        has_room
    }

    /// They.
    pub fn all(&self) -> &[Origin] {
        &self.0
    }

    /// As an answer.
    pub fn message(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(MESSAGE);
        message.extend((self.0.len() as u64).to_le_bytes());
        message.extend([0; 8]);
        for origin in &self.0 {
            let [device, inode, part] = origin.source;
            for number in [origin.length, device, inode, part, origin.at] {
                message.extend(number.to_le_bytes());
            }
        }
        message.resize(MESSAGE, 0);
        message
    }
}

/// Asks for a stretch.
pub fn question(offset: u64, length: u64) -> Vec<u8> {
    let mut message = vec![0; MESSAGE];
    message[..8].copy_from_slice(&offset.to_le_bytes());
    message[8..16].copy_from_slice(&length.to_le_bytes());
    message
}

/// The offset and the length that are asked for.
pub fn asked(message: &[u8]) -> Option<(u64, u64)> {
    Some((number(message, 0)?, number(message, 8)?))
}

/// The stretches of an answer; None for one that is none.
pub fn answered(message: &[u8]) -> Option<Vec<Origin>> {
    let count = usize::try_from(number(message, 0)?).ok()?;
    let one = |index: usize| {
        let at = 16 + index * STRETCH;
        Some(Origin {
            length: number(message, at)?,
            source: [
                number(message, at + 8)?,
                number(message, at + 16)?,
                number(message, at + 24)?,
            ],
            at: number(message, at + 32)?,
        })
    };
    match count <= STRETCHES_MAX {
        true => (0..count).map(one).collect(),
        false => None,
    }
}

fn number(message: &[u8], at: usize) -> Option<u64> {
    let bytes = message.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{MESSAGE, Origin, Origins, answered, asked, question};

    #[test]
    fn what_is_asked_and_answered_arrives() {
        assert_eq!(asked(&question(7, u64::MAX)), Some((7, u64::MAX)));
        let mut origins = Origins::default();
        assert!(origins.add(Origin::of([9, 8, 7], 100, 10)));
        assert!(origins.add(Origin::of([9, 8, 7], 110, 10)), "it goes on");
        assert!(origins.add(Origin::zeros(5)) && origins.add(Origin::zeros(6)));
        assert!(origins.add(Origin::unknown(1)));
        let message = origins.message();
        assert_eq!(message.len(), MESSAGE);
        let all = [
            Origin::of([9, 8, 7], 100, 20),
            Origin::zeros(11),
            Origin::unknown(1),
        ];
        assert_eq!(answered(&message).as_deref(), Some(&all[..]));
        assert_eq!(answered(&[0xff; MESSAGE]), None);
        assert_eq!(answered(&[]), None);
    }

    #[test]
    fn only_what_is_known_is_the_same() {
        let (zeros, unknown) = (Origin::zeros(9), Origin::unknown(9));
        assert!(zeros.is_same(Origin::zeros(4)) && !unknown.is_same(unknown));
        let (source, other) = ([1, 2, 3], [1, 2, 4]);
        let origin = Origin::of(source, 50, 9);
        assert!(origin.skip(2).is_same(Origin::of(source, 52, 1)));
        assert!(
            !origin.is_same(Origin::of(source, 51, 9)) && !origin.is_same(Origin::of(other, 50, 9))
        );
        assert!(
            !zeros.is_same(Origin::of([0; 3], 0, 9)),
            "no file is called zeros"
        );
    }
}
