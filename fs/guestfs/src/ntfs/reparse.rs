//! Reparse points: which are links, and where these lead; and which have their bytes elsewhere. Pure.

use crate::Error;
use crate::bytes::{le16, le32, slice, utf16};
use crate::filesystem::FileKind;

const MOUNT_POINT: u32 = 0xa000_0003;
const SYMLINK: u32 = 0xa000_000c;
/// Those of Linux under Windows.
const LX_SYMLINK: u32 = 0xa000_001d;
const LX_SOCKET: u32 = 0x8000_0023;
const LX_FIFO: u32 = 0x8000_0024;
const LX_CHAR: u32 = 0x8000_0025;
const LX_BLOCK: u32 = 0x8000_0026;

/// What a reparse point makes of a file.
pub(super) enum Reparse {
    Link(Vec<u8>),
    Special(FileKind),
    /// Its bytes are not where those of files are.
    Foreign,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Reparse, Error> {
    let tag = le32(bytes, 0)?;
    let data = slice(bytes, 8, usize::from(le16(bytes, 4)?))?;
    Ok(match tag {
        MOUNT_POINT => Reparse::Link(target(data, 8)?),
        SYMLINK => Reparse::Link(target(data, 12)?),
        LX_SYMLINK => Reparse::Link(data.get(4..).unwrap_or_default().to_vec()),
        LX_SOCKET => Reparse::Special(FileKind::Socket),
        LX_FIFO => Reparse::Special(FileKind::Fifo),
        LX_CHAR => Reparse::Special(FileKind::CharDevice),
        LX_BLOCK => Reparse::Special(FileKind::BlockDevice),
        _ => Reparse::Foreign,
    })
}

/// The name that Windows follows, as a target that Linux does.
fn target(data: &[u8], names: usize) -> Result<Vec<u8>, Error> {
    let (at, length) = (usize::from(le16(data, 0)?), usize::from(le16(data, 2)?));
    let name = utf16(slice(data, names + at, length)?);
    Ok(translated(&name))
}

fn translated(name: &[u8]) -> Vec<u8> {
    let name = name.strip_prefix(br"\??\").unwrap_or(name);
    let name = match name {
        // Which letter a volume had nobody knows; mostly it is the one that it leads to.
        [letter, b':', rest @ ..] if letter.is_ascii_alphabetic() => match rest {
            [b'\\', ..] => rest,
            _ => br"\",
        },
        other => other,
    };
    let slash = |byte: &u8| if *byte == b'\\' { b'/' } else { *byte };
    name.iter().map(slash).collect()
}

/// A link as Interix writes it, into the file's bytes.
pub(super) fn interix(bytes: &[u8]) -> Option<Vec<u8>> {
    bytes.strip_prefix(b"IntxLNK\x01").map(utf16)
}

#[cfg(test)]
mod tests {
    use super::{Reparse, interix, parse, translated};

    #[test]
    fn targets_of_windows() {
        let of = |name: &str| String::from_utf8(translated(name.as_bytes())).expect("text");
        assert_eq!(of(r"\??\C:\Users\Public"), "/Users/Public");
        assert_eq!(of(r"\??\D:"), "/");
        assert_eq!(of(r"..\a\b"), "../a/b");
        assert_eq!(of(r"\Windows"), "/Windows");
        assert_eq!(
            interix(b"IntxLNK\x01a\0/\0b\0").as_deref(),
            Some(&b"a/b"[..])
        );
        assert_eq!(interix(b"IntxLNK"), None);
    }

    #[test]
    fn what_is_cut_short_is_damage() {
        let mut point = vec![0; 8 + 12 + 4];
        point[..4].copy_from_slice(&super::SYMLINK.to_le_bytes());
        point[4] = 16;
        point[10] = 4;
        point[20..].copy_from_slice(b"a\0b\0");
        assert!(matches!(parse(&point), Ok(Reparse::Link(target)) if target == b"ab"));
        point[10] = 5;
        assert!(parse(&point).is_err());
        assert!(parse(&point[..7]).is_err());
    }
}
