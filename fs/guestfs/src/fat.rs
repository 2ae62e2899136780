//! FAT12, FAT16 and FAT32, with long names. A node is the place of its short entry, in units of entries.
//! There are no owners, links or permissions: what Linux makes up for them is shown, and the time as
//! it was written, which is the guest's local one. There is no journal either.

pub(crate) mod clusters;
mod name;
pub(crate) mod time;

use crate::bytes::{le16, le32, u8};
use crate::filesystem::{
    Attributes, DirEntry, Extent, FileKind, Filesystem, Journal, Listing, Time, is_name,
};
use crate::{Error, ReadAt, stretches};
use clusters::{Chain, Clusters, Width};
use name::Long;
use std::sync::Arc;

/// The root directory has no entry; no entry is in the first sector.
const ROOT: u64 = 1;
/// Bytes of an entry.
const ENTRY: u64 = 32;
/// The most bytes that a directory can have.
const DIRECTORY_MAX: u64 = 2 << 20;
/// Bytes of a directory that one listing goes through.
const PIECE: u64 = 16 << 10;
/// FAT12 has so many clusters at most.
const TWELVE_MAX: u64 = 4084;

const READ_ONLY: u8 = 0x1;
const LABEL: u8 = 0x8;
const DIRECTORY: u8 = 0x10;
/// What marks an entry as a part of a long name.
const LONG: u8 = 0xf;

const REMOVED: u8 = 0xe5;

/// An open FAT.
pub struct Fat {
    clusters: Clusters,
    root: Root,
}

/// Where the root directory is.
#[derive(Clone, Copy)]
enum Root {
    /// In a place of its own, with so many bytes.
    Fixed {
        start: u64,
        length: u64,
    },
    Chain(Chain),
}

/// A short entry.
struct Entry {
    flags: u8,
    first: u32,
    size: u32,
    modified: Time,
    accessed: Time,
}

impl Entry {
    fn parse(bytes: &[u8], width: Width) -> Result<Entry, Error> {
        // Where numbers are not that long something else may be there.
        let high = match width {
            Width::ThirtyTwo => le16(bytes, 20)?,
            Width::Twelve | Width::Sixteen | Width::Whole => 0,
        };
        let first = u32::from(high) << 16 | u32::from(le16(bytes, 26)?);
        let modified = time::time(le16(bytes, 24)?, le16(bytes, 22)?);
        Ok(Entry {
            flags: u8(bytes, 11)?,
            first,
            size: le32(bytes, 28)?,
            modified,
            accessed: match le16(bytes, 18)? {
                0 => modified,
                date => time::time(date, 0),
            },
        })
    }

    fn is_directory(&self) -> bool {
        self.flags & DIRECTORY != 0
    }

    fn chain(&self) -> Chain {
        Chain {
            first: self.first,
            contiguous: false,
        }
    }
}

/// What marks an entry that names nothing: a label, a part of a name, a removed one.
fn names_nothing(bytes: &[u8]) -> Result<bool, Error> {
    let (first, flags) = (u8(bytes, 0)?, u8(bytes, 11)?);
    Ok(matches!(first, 0 | REMOVED) || flags & LABEL != 0)
}

impl Fat {
    /// Reads the first sector.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Fat, Error> {
        let head = source.bytes(0, 512)?;
        let sector = u64::from(le16(&head, 11)?);
        let per_cluster = u64::from(u8(&head, 13)?);
        if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
            return Err(Error::Corrupt("the size of sectors"));
        }
        if !per_cluster.is_power_of_two() {
            return Err(Error::Corrupt("the size of clusters"));
        }
        let reserved = u64::from(le16(&head, 14)?);
        let tables = u64::from(u8(&head, 16)?);
        let root_bytes = u64::from(le16(&head, 17)?) * ENTRY;
        let sectors = match le16(&head, 19)? {
            0 => u64::from(le32(&head, 32)?),
            few => few.into(),
        };
        let (table_sectors, is_large) = match le16(&head, 22)? {
            0 => (u64::from(le32(&head, 36)?), true),
            few => (few.into(), false),
        };
        let root_start = reserved + tables * table_sectors;
        let first = root_start + root_bytes.div_ceil(sector);
        let count = sectors.checked_sub(first).map(|it| it / per_cluster);
        let count = count.filter(|_| reserved > 0 && tables > 0 && table_sectors > 0);
        let count = count.ok_or(Error::Corrupt("the sizes of its parts"))?;
        let width = match (is_large, count) {
            (true, _) => Width::ThirtyTwo,
            (false, ..=TWELVE_MAX) => Width::Twelve,
            (false, _) => Width::Sixteen,
        };
        // Of several tables one may be in use alone.
        let flags = le16(&head, 40)?;
        let active = match is_large && flags & 0x80 != 0 {
            true => u64::from(flags & 0xf),
            false => 0,
        };
        if active >= tables || width.bytes(count + 2) > table_sectors * sector {
            return Err(Error::Corrupt("its table of clusters"));
        }
        let table = (reserved + active * table_sectors) * sector;
        let count = u32::try_from(count).map_err(|_| Error::Corrupt("too many clusters"))?;
        let root = match is_large {
            true => Root::Chain(Chain {
                first: le32(&head, 44)?,
                contiguous: false,
            }),
            false => Root::Fixed {
                start: root_start * sector,
                length: root_bytes,
            },
        };
        let area = (first * sector, per_cluster * sector, count);
        Ok(Fat {
            clusters: Clusters::new(source, (table, width), area),
            root,
        })
    }

    fn entry(&self, node: u64) -> Result<Entry, Error> {
        const NONE: Error = Error::Corrupt("a number is of no file");
        let place = node.checked_mul(ENTRY).ok_or(NONE)?;
        let in_root = match self.root {
            Root::Fixed { start, length } => (start..start + length).contains(&place),
            Root::Chain(_) => false,
        };
        if !in_root && self.clusters.of_place(place).is_none() {
            return Err(NONE);
        }
        let bytes = self.clusters.source.bytes(place, ENTRY as usize)?;
        match names_nothing(&bytes)? {
            true => Err(NONE),
            false => Entry::parse(&bytes, self.clusters.width),
        }
    }

    /// Where the bytes of a file are, and how many.
    fn content(&self, node: u64) -> Result<(Chain, u64), Error> {
        if node == ROOT {
            return Err(Error::WrongKind);
        }
        let entry = self.entry(node)?;
        match entry.is_directory() {
            true => Err(Error::WrongKind),
            false => Ok((entry.chain(), entry.size.into())),
        }
    }

    /// Where the bytes of a directory are, from one on.
    fn directory(&self, node: u64, offset: u64) -> Result<Vec<Extent>, Error> {
        let chain = match (node, self.root) {
            (ROOT, Root::Fixed { start, length }) => {
                let mut all = Vec::new();
                let rest = length.saturating_sub(offset);
                if rest == 0 {
                    return Ok(all);
                }
                stretches::add(&mut all, offset, rest, start + offset);
                return Ok(all);
            }
            (ROOT, Root::Chain(chain)) => chain,
            (node, _) => {
                let entry = self.entry(node)?;
                if !entry.is_directory() {
                    return Err(Error::WrongKind);
                }
                entry.chain()
            }
        };
        let size = self
            .clusters
            .length(chain)?
            .saturating_mul(self.clusters.size);
        let size = size.min(DIRECTORY_MAX.max(self.clusters.size));
        self.clusters.extents(chain, size, offset, usize::MAX)
    }

    /// Names of a directory from `from` on, and where to go on.
    fn names(&self, node: u64, from: u64) -> Result<Listing, Error> {
        let mut entries = Vec::new();
        let mut long = Long::default();
        for extent in self.directory(node, from)? {
            let whole = [extent];
            let mut at = extent.offset.max(from);
            let end = extent.offset.saturating_add(extent.length);
            while at < end {
                let bytes = stretches::read(&*self.clusters.source, &whole, end, at, 4096)?;
                let crate::Place::At(start) = extent.place else {
                    return Err(Error::WrongKind);
                };
                let place = start + (at - extent.offset);
                for (index, bytes) in bytes.chunks_exact(ENTRY as usize).enumerate() {
                    let before = index as u64 * ENTRY;
                    if at + before >= from + PIECE && long.is_empty() {
                        let next = Some(at + before);
                        return Ok(Listing { entries, next });
                    }
                    if u8(bytes, 0)? == 0 {
                        let next = None;
                        return Ok(Listing { entries, next });
                    }
                    if u8(bytes, 11)? & 0x3f == LONG && u8(bytes, 0)? != REMOVED {
                        long.add(bytes)?;
                        continue;
                    }
                    let found = std::mem::take(&mut long).of(bytes);
                    if names_nothing(bytes)? {
                        continue;
                    }
                    let name = found.unwrap_or_else(|| name::short(bytes));
                    if is_name(&name) {
                        let is_directory = u8(bytes, 11)? & DIRECTORY != 0;
                        entries.push(DirEntry {
                            name,
                            node: (place + before) / ENTRY,
                            kind: Some(FileKind::of_directory(is_directory)),
                        });
                    }
                }
                at += bytes.len() as u64;
            }
        }
        Ok(Listing {
            entries,
            next: None,
        })
    }
}

/// The permissions that Linux makes up.
pub(crate) fn permissions(is_read_only: bool) -> u16 {
    match is_read_only {
        true => 0o555,
        false => 0o755,
    }
}

impl Filesystem for Fat {
    fn root(&self) -> u64 {
        ROOT
    }

    fn journal(&self) -> Journal {
        Journal::Clean
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Error> {
        let entry = match node {
            ROOT => None,
            node => Some(self.entry(node)?),
        };
        let (is_directory, flags) = match &entry {
            Some(entry) => (entry.is_directory(), entry.flags),
            None => (true, 0),
        };
        let size = match (&entry, self.root) {
            (None, Root::Fixed { length, .. }) => length,
            (None, Root::Chain(chain)) => self.clusters.length(chain)? * self.clusters.size,
            (Some(entry), _) if is_directory => {
                self.clusters.length(entry.chain())? * self.clusters.size
            }
            (Some(entry), _) => entry.size.into(),
        };
        let modified = entry.as_ref().map_or(Time::EPOCH, |entry| entry.modified);
        let cluster = self.clusters.size;
        Ok(Attributes {
            kind: FileKind::of_directory(is_directory),
            permissions: permissions(flags & READ_ONLY != 0),
            links: 1,
            owner: (0, 0),
            size,
            blocks: size.div_ceil(cluster) * (cluster / 512),
            device: (0, 0),
            accessed: entry.map_or(Time::EPOCH, |entry| entry.accessed),
            modified,
            changed: modified,
        })
    }

    fn list(&self, directory: u64, cookie: u64) -> Result<Listing, Error> {
        // A cookie of nobody's making leads to the end.
        if !cookie.is_multiple_of(ENTRY) {
            return Err(Error::NotFound);
        }
        self.names(directory, cookie)
    }

    fn extents(&self, node: u64, offset: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        let (chain, size) = self.content(node)?;
        self.clusters.extents(chain, size, offset, limit)
    }

    fn read(&self, node: u64, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let (chain, size) = self.content(node)?;
        let extents = self.clusters.extents(chain, size, offset, length)?;
        stretches::read(&*self.clusters.source, &extents, size, offset, length)
    }
}
