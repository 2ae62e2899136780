//! The feature bits of a version 3 header.
//!
//! Knows: which incompatible bits this reader understands, and their names.
//! Does not know: how each feature is read.

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN_INCOMPATIBLE: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2;
const LAZY_REFCOUNTS: u64 = 1 << 0;
const DATA_FILE_RAW: u64 = 1 << 1;

/// The three sets of feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// A reader must know all of these.
    pub incompatible: u64,
    /// May be ignored.
    pub compatible: u64,
    /// May be ignored, and are cleared by a writer that does not know them.
    pub autoclear: u64,
}

/// A name from the feature name table: for one bit of one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FeatureName {
    pub(crate) set: u8,
    pub(crate) bit: u8,
    pub(crate) name: String,
}

impl Features {
    pub(crate) fn new(incompatible: u64, compatible: u64, autoclear: u64) -> Features {
        Features {
            incompatible,
            compatible,
            autoclear,
        }
    }

    /// Refcounts may be wrong (lazy refcounts after a crash). Reading does not use them.
    pub fn dirty(&self) -> bool {
        self.incompatible & DIRTY != 0
    }

    /// QEMU found the image corrupt. It still reads it, and so does this reader.
    pub fn corrupt(&self) -> bool {
        self.incompatible & CORRUPT != 0
    }

    /// Guest data lies in an external data file.
    pub fn data_file(&self) -> bool {
        self.incompatible & DATA_FILE != 0
    }

    /// The external data file can be read as a raw image.
    pub fn data_file_raw(&self) -> bool {
        self.autoclear & DATA_FILE_RAW != 0
    }

    /// L2 entries are extended with subcluster bitmaps.
    pub fn extended_l2(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    /// Refcounts are updated lazily.
    pub fn lazy_refcounts(&self) -> bool {
        self.compatible & LAZY_REFCOUNTS != 0
    }

    pub(crate) fn has_compression_type(&self) -> bool {
        self.incompatible & COMPRESSION_TYPE != 0
    }

    pub(crate) fn has_unknown_incompatible(&self) -> bool {
        self.incompatible & !KNOWN_INCOMPATIBLE != 0
    }

    /// The unknown incompatible bits by the names the image gives them, or by number.
    pub(crate) fn name_unknown(&self, names: &[FeatureName]) -> Vec<String> {
        let unknown = self.incompatible & !KNOWN_INCOMPATIBLE;
        (0..64u8)
            .filter(|bit| unknown >> bit & 1 != 0)
            .map(|bit| {
                let named = names.iter().find(|n| n.set == 0 && n.bit == bit);
                named.map_or_else(|| format!("bit {bit}"), |n| n.name.clone())
            })
            .collect()
    }
}
