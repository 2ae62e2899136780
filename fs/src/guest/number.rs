//! Inode numbers of a guest's files: which tree, how deep, which node of it. They are computed and
//! not remembered, so they stay the same, and any number of files costs nothing. Pure.

/// Tells them from the numbers that are given one after the other.
const GUEST: u64 = 1 << 62;
const NODE_BITS: u32 = 40;
const DEPTH_BITS: u32 = 8;
/// Trees of one mount: filesystems of points that somebody has looked into.
pub(super) const TREES_MAX: u64 = 1 << 14;

/// A file, directory or link of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Number {
    /// Which tree.
    pub tree: u16,
    /// For a directory, and a link that is shown by its depth, how far below the root it is; 255 for
    /// more than can be told. 0 for others.
    pub depth: u8,
    /// Which node of it.
    pub node: u64,
}

impl Number {
    /// As the kernel knows it; None for a node with a number that is too large.
    pub fn inode(self) -> Option<u64> {
        let tree = u64::from(self.tree) << (NODE_BITS + DEPTH_BITS);
        let depth = u64::from(self.depth) << NODE_BITS;
        (self.node >> NODE_BITS == 0).then_some(GUEST | tree | depth | self.node)
    }

    /// From the kernel's; None for one that is no guest's.
    pub fn of_inode(inode: u64) -> Option<Number> {
        (inode & GUEST != 0).then_some(Number {
            // 14 bits
            tree: (inode >> (NODE_BITS + DEPTH_BITS) & (TREES_MAX - 1)) as u16,
            // 8 bits
            depth: (inode >> NODE_BITS & 0xff) as u8,
            node: inode & ((1 << NODE_BITS) - 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Number;

    #[test]
    fn numbers_come_back() {
        for (tree, depth, node) in [(0, 0, 0), (1, 2, 3), (0x3fff, 0xff, (1 << 40) - 1)] {
            let number = Number { tree, depth, node };
            let inode = number.inode().expect("it fits");
            assert_eq!(Number::of_inode(inode), Some(number));
            assert!(i64::try_from(inode).is_ok());
        }
        let large = Number {
            tree: 0,
            depth: 0,
            node: 1 << 40,
        };
        assert_eq!(large.inode(), None);
        assert_eq!(Number::of_inode(7), None);
    }
}
