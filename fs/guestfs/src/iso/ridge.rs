//! The fields of Rock Ridge in a record, and where they go on.

use super::RECORD;
use crate::bytes::{le32, slice, u8};
use crate::filesystem::Time;
use crate::{Error, ReadAt};

/// Places where the fields of one record go on.
const AREAS_MAX: usize = 32;
/// The longest of them, which is in one sector.
const AREA_MAX: u32 = 2048;
/// The longest name and target, as in Linux.
const NAME_MAX: usize = 255;
const TARGET_MAX: usize = 4096;

/// What the fields of a record say.
#[derive(Default)]
pub(super) struct Ridge {
    pub(super) name: Vec<u8>,
    pub(super) mode: Option<u32>,
    pub(super) links: Option<u32>,
    pub(super) owner: (u32, u32),
    pub(super) device: (u32, u32),
    pub(super) target: Vec<u8>,
    pub(super) modified: Option<Time>,
    pub(super) accessed: Option<Time>,
    pub(super) changed: Option<Time>,
    /// A directory that stands elsewhere, in this block.
    pub(super) moved_to: Option<u32>,
    /// Where such a one stands: it is named elsewhere.
    pub(super) is_relocated: bool,
    pub(super) is_compressed: bool,
    /// The last part of the target goes on.
    is_part: bool,
}

/// Where the fields begin in a record.
fn start(record: &[u8]) -> Result<usize, Error> {
    let name = usize::from(u8(record, 32)?);
    Ok((RECORD + name).next_multiple_of(2))
}

/// Whether the first record of the root directory says that there are such fields, and how many bytes
/// before them are others'.
pub(super) fn marked(record: &[u8]) -> Result<Option<usize>, Error> {
    let fields = record.get(start(record)?..).unwrap_or_default();
    Ok(match fields {
        [b'S', b'P', 7, 1, 0xbe, 0xef, skipped, ..] => Some(usize::from(*skipped)),
        _ => None,
    })
}

pub(super) fn read(
    source: &dyn ReadAt,
    block: u64,
    record: &[u8],
    skipped: usize,
) -> Result<Ridge, Error> {
    let mut ridge = Ridge::default();
    let first = start(record)?;
    let is_marked = marked(record)?.is_some();
    // The record that says how much is skipped skips nothing.
    let first = if is_marked { first } else { first + skipped };
    let mut area = record.get(first..).unwrap_or_default().to_vec();
    for _ in 0..AREAS_MAX {
        let Some((number, offset, length)) = ridge.fields(&area)? else {
            return Ok(ridge);
        };
        if length > AREA_MAX {
            return Err(Error::Corrupt("the fields of a record"));
        }
        let at = u64::from(number) * block + u64::from(offset);
        area = source.bytes(at, length as usize)?;
    }
    Err(Error::Corrupt("the fields of a record do not end"))
}

impl Ridge {
    /// Takes in the fields of an area; gives where they go on: block, offset, length.
    fn fields(&mut self, area: &[u8]) -> Result<Option<(u32, u32, u32)>, Error> {
        let (mut at, mut next) = (0, None);
        while at + 4 <= area.len() {
            let length = usize::from(u8(area, at + 2)?);
            if length < 4 {
                break;
            }
            let field = slice(area, at, length)?;
            match &field[..2] {
                b"CE" => next = Some((le32(field, 4)?, le32(field, 12)?, le32(field, 20)?)),
                b"ST" => break,
                b"NM" => self.name(field)?,
                b"SL" => self.link(field)?,
                b"PX" => {
                    self.mode = Some(le32(field, 4)?);
                    self.links = Some(le32(field, 12)?);
                    self.owner = (le32(field, 20)?, le32(field, 28)?);
                }
                b"PN" => self.device = device(le32(field, 4)?, le32(field, 12)?),
                b"TF" => self.times(field)?,
                b"CL" => self.moved_to = Some(le32(field, 4)?),
                b"RE" => self.is_relocated = true,
                b"ZF" => self.is_compressed = true,
                _ => {}
            }
            at += length;
        }
        Ok(next)
    }

    fn name(&mut self, field: &[u8]) -> Result<(), Error> {
        /// It is `.` or `..`.
        const SPECIAL: u8 = 6;
        if u8(field, 4)? & SPECIAL == 0 && self.name.len() <= NAME_MAX {
            self.name.extend(field.get(5..).unwrap_or_default());
        }
        Ok(())
    }

    fn link(&mut self, field: &[u8]) -> Result<(), Error> {
        const CONTINUED: u8 = 1;
        let mut at = 5;
        while at + 2 <= field.len() && self.target.len() <= TARGET_MAX {
            let (flags, length) = (u8(field, at)?, usize::from(u8(field, at + 1)?));
            let part = slice(field, at + 2, length)?;
            let needs_slash = !self.target.is_empty() && self.target != b"/" && !self.is_part;
            if needs_slash {
                self.target.push(b'/');
            }
            self.target.extend(match flags & 0xe {
                2 => &b"."[..],
                4 => b"..",
                8 => b"/",
                _ => part,
            });
            self.is_part = flags & CONTINUED != 0;
            at += 2 + length;
        }
        Ok(())
    }

    fn times(&mut self, field: &[u8]) -> Result<(), Error> {
        /// Times have 17 digits instead of seven bytes.
        const LONG: u8 = 0x80;
        let flags = u8(field, 4)?;
        if flags & LONG != 0 {
            return Ok(());
        }
        let mut at = 5;
        for bit in 0..7 {
            if flags >> bit & 1 == 0 {
                continue;
            }
            let time = short_time(slice(field, at, 7)?)?;
            match bit {
                1 => self.modified = Some(time),
                2 => self.accessed = Some(time),
                3 => self.changed = Some(time),
                _ => {}
            }
            at += 7;
        }
        Ok(())
    }
}

/// A device's numbers: apart, or packed as Linux does.
fn device(high: u32, low: u32) -> (u32, u32) {
    match high {
        0 => (low >> 8 & 0xfff, low & 0xff | low >> 12 & 0xf_ff00),
        high => (high, low),
    }
}

/// Years since 1900, month, day, hour, minute, second, and quarters of an hour before UTC.
pub(super) fn short_time(bytes: &[u8]) -> Result<Time, Error> {
    let field = |at: usize| u8(bytes, at).map(i64::from);
    let (year, month, day) = (1900 + field(0)?, field(1)?, field(2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Ok(Time::EPOCH);
    }
    // Years that begin in March have their leap day at the end.
    let (years, months) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        years * 365 + years / 4 - years / 100 + years / 400 + (months * 153 + 2) / 5 + day - 1;
    /// From the year 0, which begins in March, to 1970.
    const EPOCH_DAY: i64 = 719_468;
    let zone = i64::from(u8(bytes, 6)?.cast_signed()) * 15 * 60;
    let seconds = (days - EPOCH_DAY) * 86_400 + field(3)? * 3600 + field(4)? * 60 + field(5)?;
    Ok(Time {
        seconds: seconds - zone,
        nanoseconds: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::short_time;

    #[test]
    fn days_are_counted() {
        let of = |bytes: [u8; 7]| short_time(&bytes).expect("long enough").seconds;
        assert_eq!(of([70, 1, 1, 0, 0, 0, 0]), 0);
        assert_eq!(of([100, 3, 1, 0, 0, 0, 0]), 11_017 * 86_400);
        assert_eq!(of([124, 2, 29, 1, 2, 3, 0]), 19_782 * 86_400 + 3723);
        assert_eq!(of([126, 1, 1, 2, 0, 0, 8]), 20_454 * 86_400);
        assert_eq!(of([69, 12, 31, 23, 59, 59, 0]), -1);
    }
}
