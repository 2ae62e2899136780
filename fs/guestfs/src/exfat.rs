//! exFAT. A node is the place of its first entry, in units of entries; those that follow are found again by
//! their checksum, as the directory alone knows whether it is chained.
//! There are no owners, links or permissions: what Linux makes up for them is shown. There is no journal.

mod entries;

use crate::bytes::{le32, le64, u8};
use crate::fat::clusters::{Chain, Clusters, Width};
use crate::fat::permissions;
use crate::filesystem::{
    Attributes, DirEntry, Extent, FileKind, Filesystem, Journal, Listing, Place, Time, is_name,
};
use crate::{Error, ReadAt, stretches};
use entries::{ENTRY, Set};
use std::sync::Arc;

/// The root directory has no entry; no entry is in the first sector.
const ROOT: u64 = 1;
/// The most bytes that a directory can have.
const DIRECTORY_MAX: u64 = 256 << 20;
/// Bytes of a directory that one listing goes through.
const PIECE: u64 = 16 << 10;

/// An open exFAT.
pub struct ExFat {
    clusters: Clusters,
    root: Chain,
}

impl ExFat {
    /// Reads the first sector.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<ExFat, Error> {
        let head = source.bytes(0, 512)?;
        let (sector, cluster) = (u8(&head, 108)?, u8(&head, 109)?);
        if !(9..=12).contains(&sector) || cluster > 25 - sector {
            return Err(Error::Corrupt("the size of sectors or clusters"));
        }
        // Of two tables the second may be the one in use.
        let second = le32(&head, 104)? >> 16 & 1 != 0 && u8(&head, 110)? == 2;
        let (table, length) = (u64::from(le32(&head, 80)?), u64::from(le32(&head, 84)?));
        let table = (table + length * u64::from(second)) << sector;
        let start = u64::from(le32(&head, 88)?) << sector;
        let count = le32(&head, 92)?;
        if Width::Whole.bytes(u64::from(count) + 2) > length << sector {
            return Err(Error::Corrupt("its table of clusters"));
        }
        let size = 1 << (sector + cluster);
        let root = Chain {
            first: le32(&head, 96)?,
            contiguous: false,
        };
        Ok(ExFat {
            clusters: Clusters::new(source, (table, Width::Whole), (start, size, count)),
            root,
        })
    }

    fn set(&self, node: u64) -> Result<Set, Error> {
        let place = node.checked_mul(ENTRY);
        let place = place.ok_or(Error::Corrupt("a number is of no file"))?;
        entries::find(&self.clusters, place)
    }

    /// A file, and no directory.
    fn file(&self, node: u64) -> Result<Set, Error> {
        if node == ROOT {
            return Err(Error::WrongKind);
        }
        let set = self.set(node)?;
        match set.is_directory() {
            true => Err(Error::WrongKind),
            false => Ok(set),
        }
    }

    fn extents_of(&self, set: &Set, offset: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        let mut extents = self.clusters.extents(set.chain, set.size, offset, limit)?;
        // What was never written is zeros.
        extents.retain(|extent| extent.offset < set.written);
        if let Some(last) = extents.last_mut() {
            last.length = last.length.min(set.written - last.offset);
        }
        Ok(extents)
    }

    /// Where a directory is, and its bytes.
    fn directory(&self, node: u64) -> Result<(Chain, u64), Error> {
        let (chain, size) = match node {
            ROOT => (
                self.root,
                self.clusters.length(self.root)? * self.clusters.size,
            ),
            node => {
                let set = self.set(node)?;
                if !set.is_directory() {
                    return Err(Error::WrongKind);
                }
                (set.chain, set.size)
            }
        };
        Ok((chain, size.min(DIRECTORY_MAX)))
    }

    fn names(&self, node: u64, from: u64) -> Result<Listing, Error> {
        let (chain, size) = self.directory(node)?;
        let mut names = Vec::new();
        // The set that is gathered: where it begins on the disk, and what is there so far.
        let mut gathered: Option<(u64, Vec<u8>)> = None;
        for extent in self.clusters.extents(chain, size, from, usize::MAX)? {
            let Place::At(start) = extent.place else {
                return Err(Error::WrongKind);
            };
            let end = extent.offset.saturating_add(extent.length).min(size);
            let mut at = extent.offset.max(from);
            while at < end {
                let bytes = stretches::read(&*self.clusters.source, &[extent], end, at, 4096)?;
                let place = start + (at - extent.offset);
                for (index, entry) in bytes.chunks_exact(ENTRY as usize).enumerate() {
                    let before = index as u64 * ENTRY;
                    if at + before >= from + PIECE && gathered.is_none() {
                        let next = Some(at + before);
                        return Ok(Listing {
                            entries: names,
                            next,
                        });
                    }
                    match entries::Sort::of(u8(entry, 0)?) {
                        entries::Sort::End => {
                            return Ok(Listing {
                                entries: names,
                                next: None,
                            });
                        }
                        entries::Sort::File => gathered = Some((place + before, entry.to_vec())),
                        entries::Sort::Secondary => {
                            if let Some((_, set)) = &mut gathered {
                                set.extend(entry);
                            }
                        }
                        entries::Sort::Other => gathered = None,
                    }
                    let is_whole = |set: &(u64, Vec<u8>)| entries::is_whole(&set.1);
                    if let Some((place, set)) = gathered.take_if(|it| is_whole(it))
                        && let Some(name) = entries::name(&set)
                        && is_name(&name)
                    {
                        names.push(DirEntry {
                            name,
                            node: place / ENTRY,
                            kind: Some(FileKind::of_directory(entries::is_directory(&set)?)),
                        });
                    }
                }
                at += bytes.len() as u64;
            }
        }
        Ok(Listing {
            entries: names,
            next: None,
        })
    }
}

impl Filesystem for ExFat {
    fn root(&self) -> u64 {
        ROOT
    }

    fn journal(&self) -> Journal {
        Journal::Clean
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Error> {
        let cluster = self.clusters.size;
        let (is_directory, is_read_only, size, modified, accessed) = match node {
            ROOT => (
                true,
                false,
                self.directory(ROOT)?.1,
                Time::EPOCH,
                Time::EPOCH,
            ),
            node => {
                let set = self.set(node)?;
                let is_directory = set.is_directory();
                (
                    is_directory,
                    set.is_read_only(),
                    set.size,
                    set.modified,
                    set.accessed,
                )
            }
        };
        Ok(Attributes {
            kind: FileKind::of_directory(is_directory),
            permissions: permissions(is_read_only),
            links: 1,
            owner: (0, 0),
            size,
            blocks: size.div_ceil(cluster).saturating_mul(cluster / 512),
            device: (0, 0),
            accessed,
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
        self.extents_of(&self.file(node)?, offset, limit)
    }

    fn read(&self, node: u64, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let set = self.file(node)?;
        let extents = self.extents_of(&set, offset, length)?;
        stretches::read(&*self.clusters.source, &extents, set.size, offset, length)
    }
}

/// The number of bytes of a file: no file has 2^63.
fn size(bytes: &[u8], at: usize) -> Result<u64, Error> {
    let size = le64(bytes, at)?;
    match i64::try_from(size) {
        Ok(_) => Ok(size),
        Err(_) => Err(Error::Corrupt("the size of a file")),
    }
}
