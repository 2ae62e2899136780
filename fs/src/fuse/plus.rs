//! Listings that bring attributes along, so that who walks a tree asks once for a directory and not for each name in
//! it. The kernel asks for them in every directory, also where attributes are not known beforehand: there the
//! names come without.

use super::handles::Entry;
use super::message;
use super::shared::Shared;
use crate::sys::Bytes;
use fuser::{FileType, ReplyDirectoryPlus, RequestId};
use std::os::unix::ffi::OsStrExt;

/// `struct fuse_entry_out` of linux/fuse.h: all zeros say that nothing is told of the name.
const NOTHING_TOLD: usize = 128;
/// What `struct fuse_dirent` has before the name.
const NAME: usize = 24;
/// Bytes of an answer: the kernel asks for no less than a page.
const PAGE: usize = 4096;

/// Answers with the first of `entries`, which are those from offset `first` on, without attributes.
pub(super) fn bare(
    shared: &Shared,
    request: RequestId,
    reply: ReplyDirectoryPlus,
    entries: &[Entry],
    first: usize,
) {
    let mut page = Vec::with_capacity(PAGE);
    for (index, entry) in entries.iter().enumerate() {
        if !add(&mut page, entry, (first + index) as u64 + 1) {
            break;
        }
    }
    let answered = message::answer(shared.device(), request, reply, &[Bytes::from(&page[..])]);
    if let Err(error) = answered {
        tracing::debug!(%error, "nobody waits for the names");
    }
}

/// Adds a name, behind which a listing goes on at `next`; false where there is no room for it.
fn add(page: &mut Vec<u8>, entry: &Entry, next: u64) -> bool {
    let name = entry.name.as_bytes();
    let length = (NOTHING_TOLD + NAME + name.len()).next_multiple_of(8);
    // No name is longer than 1024 bytes.
    let (true, Ok(name_length)) = (page.len() + length <= PAGE, u32::try_from(name.len())) else {
        return false;
    };
    let start = page.len();
    page.resize(start + NOTHING_TOLD, 0);
    page.extend(entry.ino.to_ne_bytes());
    page.extend(next.to_ne_bytes());
    page.extend(name_length.to_ne_bytes());
    page.extend(kind(entry.kind).to_ne_bytes());
    page.extend(name);
    page.resize(start + length, 0);
    true
}

/// As `d_type` of readdir(3) has it.
fn kind(kind: FileType) -> u32 {
    let kind = match kind {
        FileType::NamedPipe => libc::DT_FIFO,
        FileType::CharDevice => libc::DT_CHR,
        FileType::BlockDevice => libc::DT_BLK,
        FileType::Directory => libc::DT_DIR,
        FileType::RegularFile => libc::DT_REG,
        FileType::Symlink => libc::DT_LNK,
        FileType::Socket => libc::DT_SOCK,
    };
    kind.into()
}

#[cfg(test)]
mod tests {
    use super::{Entry, FileType, NOTHING_TOLD, PAGE, add};

    #[test]
    fn names_lie_as_the_kernel_wants_them() {
        let entry = |name: &str| Entry {
            ino: 7,
            kind: FileType::Directory,
            name: name.into(),
        };
        let mut page = Vec::new();
        assert!(add(&mut page, &entry("snapshots"), 3));
        assert_eq!(page.len(), 128 + 24 + 16);
        assert!(page[..NOTHING_TOLD].iter().all(|byte| *byte == 0));
        let expected = [
            7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 4, 0, 0, 0,
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(page[NOTHING_TOLD..NOTHING_TOLD + 24], expected);
        }
        assert_eq!(&page[NOTHING_TOLD + 24..], b"snapshots\0\0\0\0\0\0\0");
        while add(&mut page, &entry(&"x".repeat(255)), 9) {}
        assert!(
            page.len() <= PAGE && page.len() > PAGE - 408,
            "{}",
            page.len()
        );
    }
}
