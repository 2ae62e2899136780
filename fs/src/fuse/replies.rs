//! Answers that several requests give in the same way.

use super::handles::Entry;
use fuser::{INodeNo, ReplyDirectory, ReplyXattr};

/// Puts names into an answer, from offset `first`, until it is full; says whether one got in.
pub(super) fn fill(reply: &mut ReplyDirectory, entries: &[Entry], first: usize) -> bool {
    let mut added = false;
    for (index, entry) in entries.iter().enumerate().skip(first) {
        let ino = INodeNo(entry.ino);
        if reply.add(ino, index as u64 + 1, entry.kind, &entry.name) {
            break;
        }
        added = true;
    }
    added
}

/// The value of an extended attribute, or a list of their names, to who has `size` bytes for it; 0 asks for its length.
pub(super) fn xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply.size(length);
    } else if size < length {
        reply.error(fuser::Errno::ERANGE);
    } else {
        reply.data(value);
    }
}
