//! What NTFS compresses with: LZNT1, in chunks of 4 KiB. Pure.

use crate::Error;
use crate::bytes::{le16, u8};

const CHUNK: usize = 4096;
const DAMAGE: Error = Error::Corrupt("compressed bytes");

/// Decompresses into exactly `length` bytes; what is missing is zeros.
pub(super) fn decompress(bytes: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(length);
    let mut at = 0;
    while out.len() < length && at + 2 <= bytes.len() {
        let header = le16(bytes, at)?;
        if header == 0 {
            break;
        }
        let size = usize::from(header & 0xfff) + 1;
        let chunk = bytes.get(at + 2..at + 2 + size).ok_or(DAMAGE)?;
        let start = out.len();
        match header & 0x8000 {
            0 => out.extend(&chunk[..size.min(CHUNK)]),
            _ => expand(chunk, &mut out, start)?,
        }
        // A chunk that is short is the last, or has zeros at its end.
        out.resize(start + CHUNK, 0);
        at += 2 + size;
    }
    out.resize(length, 0);
    Ok(out)
}

fn expand(chunk: &[u8], out: &mut Vec<u8>, start: usize) -> Result<(), Error> {
    let mut at = 0;
    while at < chunk.len() {
        let flags = u8(chunk, at)?;
        at += 1;
        for bit in 0..8 {
            if at >= chunk.len() {
                return Ok(());
            }
            let done = out.len() - start;
            if flags >> bit & 1 == 0 {
                if done >= CHUNK {
                    return Err(DAMAGE);
                }
                out.push(u8(chunk, at)?);
                at += 1;
                continue;
            }
            let token = usize::from(le16(chunk, at)?);
            at += 2;
            // The further on, the more bits say how far back.
            let last = done.checked_sub(1).ok_or(DAMAGE)?;
            let more = (usize::BITS - (last >> 4).leading_zeros()) as usize;
            let length_bits = 12 - more.min(8);
            let length = (token & ((1 << length_bits) - 1)) + 3;
            let back = (token >> length_bits) + 1;
            if back > done || done + length > CHUNK {
                return Err(DAMAGE);
            }
            let from = out.len() - back;
            for index in from..from + length {
                out.push(out[index]);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::decompress;

    #[test]
    fn chunks_with_and_without_matches() {
        // From the description of the format: "F# F# G A A G F# E D D E F# F# E E ..."
        let packed = [
            0x38, 0xb0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xa2,
            0x47, 0x01, 0xa0, 0x45, 0x20, 0x44, 0x00, 0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xc0,
            0x45, 0x20, 0x05, 0x24, 0x13, 0x88, 0x05, 0xb4, 0x02, 0x4a, 0x44, 0xef, 0x03, 0x58,
            0x02, 0x8c, 0x09, 0x16, 0x01, 0x48, 0x45, 0x00, 0xbe, 0x00, 0x9e, 0x00, 0x04, 0x01,
            0x18, 0x90, 0x00,
        ];
        let text = decompress(&packed, 142).expect("it is right");
        let text = String::from_utf8(text).expect("letters");
        assert!(
            text.starts_with("F# F# G A A G F# E D D E F# F# E E F# F# G A A"),
            "{text}"
        );
        assert_eq!(decompress(&[], 10).expect("nothing"), [0; 10]);
        let raw = [0x02, 0x30, b'a', b'b', b'c'];
        assert_eq!(&decompress(&raw, 4096).expect("it is right")[..4], b"abc\0");
        assert!(decompress(&[0x05, 0xb0, 1, 0, 0], 10).is_err());
        assert!(
            decompress(&[0x02, 0xb0, 1, 0, 0], 10).is_err(),
            "nothing to go back to"
        );
    }
}
