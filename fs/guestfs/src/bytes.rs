//! Numbers in bytes. What lies behind the end of the bytes is damage, never a panic.

use crate::Error;

const SHORT: Error = Error::Corrupt("a structure is cut short");

pub(crate) fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], Error> {
    let end = at.checked_add(length).ok_or(SHORT)?;
    bytes.get(at..end).ok_or(SHORT)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Error> {
    slice(bytes, at, N)?.try_into().map_err(|_| SHORT)
}

pub(crate) fn u8(bytes: &[u8], at: usize) -> Result<u8, Error> {
    bytes.get(at).copied().ok_or(SHORT)
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> Result<u16, Error> {
    Ok(u16::from_le_bytes(array(bytes, at)?))
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> Result<u32, Error> {
    Ok(u32::from_le_bytes(array(bytes, at)?))
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> Result<u64, Error> {
    Ok(u64::from_le_bytes(array(bytes, at)?))
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Result<u16, Error> {
    Ok(u16::from_be_bytes(array(bytes, at)?))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Result<u32, Error> {
    Ok(u32::from_be_bytes(array(bytes, at)?))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> Result<u64, Error> {
    Ok(u64::from_be_bytes(array(bytes, at)?))
}

/// Text in a field that is filled up with zeros.
pub(crate) fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0);
    let field = &field[..end.unwrap_or(field.len())];
    String::from_utf8_lossy(field).trim_end().to_owned()
}

/// A UUID whose bytes are in the order they are written.
pub(crate) fn uuid(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let hex = hex.concat();
    match hex.len() {
        32 => format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        ),
        _ => hex,
    }
}

/// A GUID, whose first three fields are numbers in little endian.
pub(crate) fn guid(bytes: &[u8]) -> String {
    let mut ordered = bytes.to_vec();
    for field in [0..4, 4..6, 6..8] {
        if let Some(field) = ordered.get_mut(field) {
            field.reverse();
        }
    }
    uuid(&ordered).to_uppercase()
}

/// Text of UTF-16 units in little endian, as UTF-8; half a pair is shown as what cannot be shown.
pub(crate) fn utf16(bytes: &[u8]) -> Vec<u8> {
    let units = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|it| u16::from_le_bytes(*it));
    let characters = char::decode_utf16(units);
    let text: String = characters
        .map(|it| it.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    text.into_bytes()
}
