//! Attributes: what stat(2) shows. It knows owners, modes and times; sizes are given to it.

use super::LONGEST_READ;
use crate::render::Sizes;
use fuser::{FileAttr, FileType, INodeNo};
use qmpfs_guestfs::{Attributes, FileKind};
use std::time::SystemTime;

/// Unit of `st_blocks`, whatever the block size.
const STAT_BLOCK: u64 = 512;

/// Whose the tree is and who may look.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    /// st_uid.
    pub uid: u32,
    /// st_gid.
    pub gid: u32,
    /// Taken away from 0777, 0666 and 0444. The w of a directory stays, or the kernel would refuse
    /// an unlink inside a point by itself and a recursive delete could not be told from rmdir.
    pub umask: u16,
    /// Guests' files are shown with the owners and permissions that they have there: for root, who may
    /// copy them so. For others they are their own, and readable.
    pub guest_owners: bool,
}

impl Owner {
    /// Owner, group and permissions of a guest's file.
    pub(super) fn of_guest(&self, of: &Attributes) -> (u32, u32, u16) {
        if self.guest_owners {
            return (of.owner.0, of.owner.1, of.permissions);
        }
        let perm = match of.kind {
            // Links have no permissions of their own.
            FileKind::Symlink => return (self.uid, self.gid, 0o777),
            FileKind::Directory => 0o555,
            _ if of.permissions & 0o111 != 0 => 0o555,
            _ => 0o444,
        };
        (self.uid, self.gid, perm & !self.umask)
    }

    /// A directory with `subdirectories` entries that are directories.
    pub(super) fn directory(&self, ino: u64, subdirectories: usize, time: SystemTime) -> FileAttr {
        let nlink = u32::try_from(subdirectories)
            .unwrap_or(u32::MAX)
            .saturating_add(2);
        FileAttr {
            kind: FileType::Directory,
            perm: 0o777 & !self.umask,
            nlink,
            ..self.text(ino, 0, time)
        }
    }

    /// A symbolic link to a name of `length` bytes; who may follow it its target decides.
    pub(super) fn link(&self, ino: u64, length: usize, time: SystemTime) -> FileAttr {
        FileAttr {
            kind: FileType::Symlink,
            perm: 0o777,
            blocks: 0,
            ..self.text(ino, length as u64, time)
        }
    }

    /// A text of `length` bytes.
    pub(super) fn text(&self, ino: u64, length: u64, time: SystemTime) -> FileAttr {
        self.view(
            ino,
            Sizes {
                virtual_size: length,
                allocated: length,
            },
            time,
        )
    }

    /// A control file whose text has `length` bytes.
    pub(super) fn control(&self, ino: u64, length: u64, time: SystemTime) -> FileAttr {
        FileAttr {
            perm: 0o666 & !self.umask,
            ..self.text(ino, length, time)
        }
    }

    /// A view.
    pub(super) fn view(&self, ino: u64, sizes: Sizes, time: SystemTime) -> FileAttr {
        FileAttr {
            ino: INodeNo(ino),
            size: sizes.virtual_size,
            blocks: sizes.allocated.div_ceil(STAT_BLOCK),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: FileType::RegularFile,
            perm: 0o444 & !self.umask,
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            // what readers should ask for at once
            blksize: LONGEST_READ,
            flags: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Owner;
    use crate::render::Sizes;
    use std::time::UNIX_EPOCH;

    #[test]
    fn modes_sizes_and_links() {
        let owner = Owner {
            uid: 7,
            gid: 8,
            umask: 0o077,
            guest_owners: true,
        };
        let directory = owner.directory(2, 3, UNIX_EPOCH);
        assert_eq!((directory.perm, directory.nlink), (0o700, 5));
        let view = owner.view(
            3,
            Sizes {
                virtual_size: 1 << 40,
                allocated: 513,
            },
            UNIX_EPOCH,
        );
        assert_eq!(
            (view.perm, view.size, view.blocks, view.uid, view.gid),
            (0o400, 1 << 40, 2, 7, 8)
        );
        let open = Owner {
            umask: 0o022,
            ..owner
        };
        assert_eq!(open.directory(2, 0, UNIX_EPOCH).perm, 0o755);
        assert_eq!(open.text(2, 9, UNIX_EPOCH).perm, 0o444);
        assert_eq!(open.control(2, 9, UNIX_EPOCH).perm, 0o644);
        assert_eq!(owner.control(2, 9, UNIX_EPOCH).perm, 0o600);
    }
}
