//! Extended attributes of squashfs: a table says where those of an index are; a long value that several have
//! stands once.

use super::tables::Blocks;
use crate::bytes::{le16, le32, le64};
use crate::filesystem::Xattr;
use crate::{Error, ReadAt};

/// Bytes of all extended attributes of a file, as Linux limits each.
const XATTRS_MAX: usize = 1 << 20;
/// The longest value, as in Linux.
const VALUE_MAX: u32 = 64 << 10;
/// The value stands elsewhere.
const ELSEWHERE: u16 = 0x100;
const ENTRY: usize = 16;

/// Where they are.
pub(super) struct Table {
    /// The blocks of names and values.
    start: u64,
    count: u32,
    /// The list of the blocks that say where those of an index are.
    list: u64,
}

impl Table {
    pub(super) fn read(source: &dyn ReadAt, at: u64) -> Result<Table, Error> {
        let head = source.bytes(at, ENTRY)?;
        Ok(Table {
            start: le64(&head, 0)?,
            count: le32(&head, 8)?,
            // The head is there.
            list: at + ENTRY as u64,
        })
    }

    fn entry(&self, blocks: &Blocks, index: u32) -> Result<Vec<u8>, Error> {
        match index < self.count {
            true => blocks.entry(self.list, index.into(), ENTRY),
            false => Err(Error::Corrupt("a file has no such extended attributes")),
        }
    }

    /// Bytes that those of an index take.
    pub(super) fn size(&self, blocks: &Blocks, index: u32) -> Result<u32, Error> {
        le32(&self.entry(blocks, index)?, 12)
    }

    pub(super) fn of(&self, blocks: &Blocks, index: u32) -> Result<Vec<Xattr>, Error> {
        let entry = self.entry(blocks, index)?;
        let count = le32(&entry, 8)?;
        let stream = |reference: u64| {
            let block = self.start.checked_add(reference >> 16);
            let block = block.ok_or(Error::Corrupt("an extended attribute is behind the end"))?;
            Ok::<_, Error>(blocks.stream(block, (reference & 0xffff) as usize))
        };
        let mut stream_of_names = stream(le64(&entry, 0)?)?;
        let (mut found, mut total) = (Vec::new(), 0);
        for _ in 0..count {
            let head = stream_of_names.take(4)?;
            let (kind, length) = (le16(&head, 0)?, usize::from(le16(&head, 2)?));
            let name = stream_of_names.take(length)?;
            let mut value = value(&mut stream_of_names)?;
            total += 8 + name.len() + value.len();
            if kind & ELSEWHERE != 0 {
                let mut there = stream(le64(&value, 0)?)?;
                value = self::value(&mut there)?;
                total += value.len();
            }
            if total > XATTRS_MAX {
                break;
            }
            let prefix = match kind & 0xff {
                0 => "user.",
                1 => "trusted.",
                2 => "security.",
                _ => continue,
            };
            found.push(([prefix.as_bytes(), &name].concat(), value));
        }
        Ok(found)
    }
}

fn value(stream: &mut super::tables::Stream<'_>) -> Result<Vec<u8>, Error> {
    match le32(&stream.take(4)?, 0)? {
        length @ ..=VALUE_MAX => stream.take(length as usize),
        _ => Err(Error::Corrupt("the value of an extended attribute")),
    }
}
