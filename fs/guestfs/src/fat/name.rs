//! Names of FAT: the long ones, in pieces before their entry, and the short ones. Pure.

use crate::Error;
use crate::bytes::{slice, u8, utf16};

/// What marks the first piece of a long name.
const LAST: u8 = 0x40;
/// Pieces that a name can have.
const PIECES_MAX: u8 = 20;
/// Where the units of a piece are.
const UNITS: [(usize, usize); 3] = [(1, 10), (14, 12), (28, 4)];
/// What the upper half of the code page of the PC means; Linux and most others take names for that.
const CODE_PAGE: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The pieces of a long name, of which the last one comes first.
#[derive(Default)]
pub(super) struct Long {
    /// The pieces so far, in the order of the disk.
    pieces: Vec<[u8; 26]>,
    checksum: u8,
    /// The number of the piece that has to come next; 0 when all are here.
    awaited: u8,
}

impl Long {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds a piece; what does not go on begins anew, or is nothing.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let (order, checksum) = (u8(bytes, 0)?, u8(bytes, 13)?);
        let number = order & !LAST;
        let goes_on = number == self.awaited && checksum == self.checksum;
        if order & LAST != 0 {
            *self = Long::default();
            self.checksum = checksum;
        } else if !goes_on {
            *self = Long::default();
            return Ok(());
        }
        if number == 0 || number > PIECES_MAX {
            *self = Long::default();
            return Ok(());
        }
        let mut piece = [0; 26];
        let mut at = 0;
        for (start, length) in UNITS {
            piece[at..at + length].copy_from_slice(slice(bytes, start, length)?);
            at += length;
        }
        self.pieces.push(piece);
        self.awaited = number - 1;
        Ok(())
    }

    /// The long name of a short entry, if all its pieces are here.
    pub(super) fn of(self, short: &[u8]) -> Option<Vec<u8>> {
        let sum = short
            .get(..11)?
            .iter()
            .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if self.pieces.is_empty() || self.awaited != 0 || sum != self.checksum {
            return None;
        }
        let all = self.pieces.into_iter().rev().flatten();
        let units: Vec<u8> = all.collect();
        let end = units.chunks_exact(2).position(|unit| unit == [0, 0]);
        let end = end.map_or(units.len(), |end| end * 2);
        Some(utf16(&units[..end]))
    }
}

/// A short name, as Linux shows it.
pub(super) fn short(entry: &[u8]) -> Vec<u8> {
    const LOWER_STEM: u8 = 0x8;
    const LOWER_SUFFIX: u8 = 0x10;
    let case = entry.get(12).copied().unwrap_or(0);
    let part = |range: std::ops::Range<usize>, is_lower: bool| {
        let bytes = entry.get(range).unwrap_or_default();
        let end = bytes.iter().rposition(|byte| *byte != b' ');
        let bytes = &bytes[..end.map_or(0, |end| end + 1)];
        let text: String = bytes.iter().map(|byte| character(*byte)).collect();
        if is_lower { text.to_lowercase() } else { text }
    };
    let mut stem = part(0..8, case & LOWER_STEM != 0);
    // The mark of a removed file stands in for a letter that is the same.
    if entry.first() == Some(&5) {
        stem.replace_range(..1, "σ");
    }
    let suffix = part(8..11, case & LOWER_SUFFIX != 0);
    if !suffix.is_empty() {
        stem.push('.');
        stem.push_str(&suffix);
    }
    stem.into_bytes()
}

fn character(byte: u8) -> char {
    match byte.checked_sub(128) {
        None => byte.into(),
        Some(index) => {
            let mut upper = CODE_PAGE.chars();
            upper
                .nth(index.into())
                .unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CODE_PAGE, Long, short};

    fn entry(name: &[u8; 11], case: u8) -> [u8; 32] {
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(name);
        entry[12] = case;
        entry
    }

    #[test]
    fn short_names() {
        let of = |name, case| String::from_utf8(short(&entry(name, case))).expect("text");
        assert_eq!(of(b"README  TXT", 0), "README.TXT");
        assert_eq!(of(b"README  TXT", 0x18), "readme.txt");
        assert_eq!(of(b"MAKEFILE   ", 8), "makefile");
        assert_eq!(of(b"\x05BC     \x84  ", 0), "σBC.ä");
        assert_eq!(CODE_PAGE.chars().count(), 128);
    }

    #[test]
    fn pieces_out_of_order_or_of_another_are_no_name() {
        let mut first = [b'b'; 32];
        (first[0], first[11], first[13]) = (0x42, 0xf, 0);
        let mut second = first;
        second[0] = 1;
        let whole = |pieces: &[[u8; 32]]| {
            let mut long = Long::default();
            pieces
                .iter()
                .for_each(|it| long.add(it).expect("long enough"));
            long.of(&[0; 32])
        };
        assert!(whole(&[first, second]).is_some());
        assert_eq!(whole(&[first]), None);
        assert_eq!(whole(&[second]), None);
        assert_eq!(whole(&[second, first]), None);
        let mut other = second;
        other[13] = 7;
        assert_eq!(whole(&[first, other]), None);
        assert_eq!(whole(&[]), None);
    }
}
