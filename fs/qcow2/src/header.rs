//! The header: what the first cluster of an image says about the rest.
//!
//! Knows: the fixed fields of versions 2 and 3, and QEMU's limits on them.
//! Does not know: what lies behind the header area.
//! Invariant: a `Header` that exists has passed every check that QEMU makes when opening.

mod extensions;
mod features;
mod tables;

pub use features::Features;
pub(crate) use tables::{SnapshotFields, TableRef, check_l1};

use crate::bytes::{be32, be64, slice};
use crate::error::{CorruptCause, Error, UnsupportedCause, io_at};
use crate::read_at::{ReadAt, read_available};
use crate::table::EntryFormat;
use crate::units::{ClusterBits, HostOffset};
use extensions::Extensions;
use tables::check_refcount_table;

/// Holds the header area of every image that QEMU makes; only a longer one is read again.
const HEADER_READ: usize = 64 << 10;
const MAGIC: u32 = 0x5146_49fb;
/// Length of the version 2 header, which has no length field.
const V2_LENGTH: u32 = 72;
/// Length of the shortest version 3 header.
const V3_MIN_LENGTH: u32 = 104;
/// QEMU keeps a backing file name in a buffer of 1024 bytes with its final NUL.
const MAX_BACKING_NAME: u64 = 1023;
/// QEMU counts disks in sectors; the rest of an odd size in a header is not shown.
const SECTOR: u64 = 512;

/// What was read from the first cluster of an image.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Size of the disk in bytes, in whole sectors as QEMU counts them.
    pub virtual_size: u64,
    /// The cluster size.
    pub cluster_bits: ClusterBits,
    /// Feature bits.
    pub features: Features,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// The backing file, if the header names one.
    pub backing: Option<BackingRef>,
    /// Name of the external data file, if the header names one.
    pub data_file: Option<Vec<u8>>,
    /// Whether there is a bitmaps extension (persistent dirty bitmaps; never read).
    pub has_bitmaps: bool,
    /// Number of internal snapshots when the header was read.
    pub snapshot_count: u32,
    /// Where the L1 table is, and its number of entries.
    pub(crate) l1: TableRef,
}

/// A backing file as the header names it: a string from the image, trusted in nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingRef {
    /// The name, as bytes.
    pub name: Vec<u8>,
    /// The format, where the header names it.
    pub format: Option<String>,
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// Why parsing stopped.
pub(crate) enum ParseFailure {
    /// The header area goes on beyond the bytes given, up to this many.
    NeedsMore(usize),
    /// It cannot be read.
    Failed(Error),
}

impl<E: Into<Error>> From<E> for ParseFailure {
    fn from(error: E) -> ParseFailure {
        ParseFailure::Failed(error.into())
    }
}

impl Header {
    /// Reads the header of a qcow2 file, and nothing else of it: the header area in one read.
    pub fn read(file: &dyn ReadAt) -> Result<Header, Error> {
        let mut len = HEADER_READ;
        loop {
            let mut area = vec![0; len];
            let n = read_available(file, &mut area, 0).map_err(io_at("header", 0))?;
            if n < 72 {
                return Err(CorruptCause::NotQcow2.into());
            }
            match Header::parse(&area) {
                Ok(header) => return Ok(header),
                Err(ParseFailure::Failed(e)) => return Err(e),
                Err(ParseFailure::NeedsMore(more)) if more > len => len = more,
                Err(ParseFailure::NeedsMore(_)) => return Err(CorruptCause::NotQcow2.into()),
            }
        }
    }

    /// The smallest stretch of the disk that has a mapping of its own, in bytes: a cluster, or a subcluster.
    pub fn mapped_unit(&self) -> u64 {
        let entries = EntryFormat::new(self.version, self.cluster_bits, &self.features);
        1 << entries.unit_bits()
    }

    /// Parses the header area from the first bytes of a file, zero-padded at the file's end.
    pub(crate) fn parse(area: &[u8]) -> Result<Header, ParseFailure> {
        let field32 = |at| be32(area, at).ok_or(CorruptCause::NotQcow2);
        let field64 = |at| be64(area, at).ok_or(CorruptCause::NotQcow2);
        if field32(0)? != MAGIC {
            return Err(CorruptCause::NotQcow2.into());
        }
        let version = field32(4)?;
        if !(2..=3).contains(&version) {
            return Err(UnsupportedCause::Version(version).into());
        }
        let bits = field32(20)?;
        let cluster_bits = ClusterBits::new(bits).ok_or(CorruptCause::ClusterBits(bits))?;
        let v3 = version >= 3;
        let length = if v3 { field32(100)? } else { V2_LENGTH };
        let shortest = if v3 { V3_MIN_LENGTH } else { V2_LENGTH };
        if length < shortest || u64::from(length) > cluster_bits.size() {
            return Err(CorruptCause::HeaderLength(length).into());
        }

        let backing_offset = field64(8)?;
        if backing_offset > cluster_bits.size() {
            return Err(CorruptCause::BackingName {
                offset: backing_offset,
                len: 0,
            }
            .into());
        }
        let extensions_end = if backing_offset == 0 {
            cluster_bits.size()
        } else {
            backing_offset
        };
        let area = Area {
            bytes: area,
            cluster: cluster_bits.bytes(),
        };
        let incompatible = if v3 { field64(72)? } else { 0 };
        let features = Features::new(
            incompatible,
            if v3 { field64(80)? } else { 0 },
            if v3 { field64(88)? } else { 0 },
        );
        let extensions = Extensions::parse(&area, u64::from(length), extensions_end);
        if features.has_unknown_incompatible() {
            // The table of feature names is worth reading even where other extensions are broken.
            let names = match extensions {
                Ok(extensions) => extensions.feature_names,
                Err(ParseFailure::Failed(_)) => Vec::new(),
                Err(more) => return Err(more),
            };
            return Err(UnsupportedCause::Features(features.name_unknown(&names)).into());
        }
        let extensions = extensions?;

        if features.data_file_raw() && !features.data_file() {
            return Err(CorruptCause::RawWithoutDataFile.into());
        }
        let crypt = field32(32)?;
        if crypt != 0 {
            return Err(UnsupportedCause::Encryption(crypt).into());
        }
        if let Some(offset) = extensions.encryption {
            let magic = extensions::ENCRYPTION;
            return Err(CorruptCause::Extension { magic, offset }.into());
        }
        if features.extended_l2() && cluster_bits.get() < EntryFormat::MIN_SUBCLUSTER_CLUSTER_BITS {
            return Err(CorruptCause::Subclusters(bits).into());
        }
        let compression = match length > V3_MIN_LENGTH {
            true => Compression::from_header(area.get(V3_MIN_LENGTH as usize, 1)?[0], &features)?,
            false => Compression::from_header(0, &features)?,
        };
        let refcount_order = if v3 { field32(96)? } else { 4 };
        if refcount_order > 6 {
            return Err(CorruptCause::RefcountWidth(refcount_order).into());
        }
        check_refcount_table(HostOffset(field64(48)?), field32(56)?, cluster_bits)?;

        let snapshots =
            SnapshotFields::parse(&area.get(SnapshotFields::AT as usize, SnapshotFields::LEN)?)?;
        snapshots.check(cluster_bits)?;
        let virtual_size = field64(24)?;
        let l1 = TableRef {
            offset: HostOffset(field64(40)?),
            entries: field32(36)?,
        };
        check_l1("L1 table", l1, cluster_bits)?;
        let needed = EntryFormat::new(version, cluster_bits, &features).l1_entries(virtual_size);
        if needed > u64::from(l1.entries) {
            return Err(CorruptCause::L1TooSmall {
                entries: l1.entries,
                needed,
            }
            .into());
        }

        Ok(Header {
            version,
            virtual_size: whole_sectors(virtual_size),
            cluster_bits,
            backing: backing(
                &area,
                backing_offset,
                field32(16)?,
                extensions.backing_format,
            )?,
            features,
            compression,
            data_file: extensions.data_file,
            has_bitmaps: extensions.has_bitmaps,
            snapshot_count: snapshots.count,
            l1,
        })
    }
}

/// The header area: the first bytes of the file, of which nothing beyond the first cluster counts.
pub(crate) struct Area<'a> {
    bytes: &'a [u8],
    cluster: usize,
}

impl Area<'_> {
    pub(crate) fn get(&self, at: usize, len: usize) -> Result<Vec<u8>, ParseFailure> {
        match slice(self.bytes, at, len) {
            Some(bytes) => Ok(bytes.to_vec()),
            None if self.bytes.len() < self.cluster => Err(ParseFailure::NeedsMore(self.cluster)),
            None => Err(CorruptCause::NotQcow2.into()),
        }
    }
}

impl Compression {
    fn from_header(number: u8, features: &Features) -> Result<Compression, Error> {
        let compression = match number {
            0 => Compression::Zlib,
            1 => Compression::Zstd,
            n => return Err(UnsupportedCause::CompressionType(n).into()),
        };
        if features.has_compression_type() == (compression == Compression::Zlib) {
            return Err(CorruptCause::CompressionBit.into());
        }
        Ok(compression)
    }
}

/// A disk's size as QEMU counts it: the sectors that are whole.
pub(crate) fn whole_sectors(size: u64) -> u64 {
    size & !SECTOR.wrapping_sub(1)
}

fn backing(
    area: &Area<'_>,
    offset: u64,
    len: u32,
    format: Option<String>,
) -> Result<Option<BackingRef>, ParseFailure> {
    if offset == 0 {
        return Ok(None);
    }
    let room = (area.cluster as u64)
        .saturating_sub(offset)
        .min(MAX_BACKING_NAME);
    let invalid = CorruptCause::BackingName { offset, len };
    if u64::from(len) > room {
        return Err(invalid.into());
    }
    let at = usize::try_from(offset).map_err(|_| invalid)?;
    let name = until_nul(area.get(at, len as usize)?);
    Ok(if name.is_empty() {
        None
    } else {
        Some(BackingRef { name, format })
    })
}

/// A name as QEMU keeps it: a C string.
pub(crate) fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|&b| b == 0) {
        name.truncate(end);
    }
    name
}
