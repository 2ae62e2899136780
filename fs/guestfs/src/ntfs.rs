//! NTFS: records of the master file table, directories, streams. A node is the number of a record.
//! There are no owners and permissions that Linux knows: what it makes up for them is shown.
//! Knows: compressed and sparse files, junctions and links, named streams. Does not know: what is encrypted,
//! deduplicated, or kept elsewhere by a reparse point, which it says.

mod index;
mod log;
mod lznt1;
mod record;
mod reparse;
mod runs;
mod stream;

use crate::bytes::{le16, le32, le64, u8, utf16};
use crate::fat::permissions;
use crate::filesystem::{
    Attributes, Extent, FileKind, Filesystem, Journal, Listing, Time, Xattr, by_listing, is_name,
};
use crate::{Error, ReadAt};
use index::Found;
use record::{Body, DATA, Elsewhere, FILE_NAME, File, REPARSE, STANDARD};
use reparse::Reparse;
use runs::Run;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The record of the root directory.
const ROOT: u64 = 5;
/// The record of the table itself.
const TABLE: u64 = 0;
/// The record of the table of capital letters, and its bytes.
const CAPITALS: u64 = 10;
const CAPITALS_BYTES: u64 = 128 << 10;
/// Bytes of a named stream that are shown, as Linux limits them; longer ones are left out.
const XATTR_MAX: u64 = 64 << 10;
/// Bytes of all named streams of a file.
const XATTRS_MAX: u64 = 1 << 20;
/// The longest target of a link, with its mark.
const LINK_MAX: u64 = 8 << 10;

const READ_ONLY: u32 = 0x1;
const SYSTEM: u32 = 0x4;
/// A name for DOS, beside another.
const DOS: u8 = 2;

/// An open NTFS.
pub struct Ntfs {
    source: Arc<dyn ReadAt>,
    /// Bytes of a cluster.
    cluster: u64,
    /// Bytes of a record.
    record: u64,
    /// Where the table of records is, and its bytes.
    table: (Vec<Run>, u64),
    journal: Journal,
    /// Which characters are the same but for their case, once a name was looked up.
    capitals: OnceLock<Vec<u8>>,
    /// The file that was asked for last: one in many pieces is told by many records.
    last: Mutex<Option<(u64, Arc<File>)>>,
}

impl Ntfs {
    /// Reads the first sector, and where the table of records is.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Ntfs, Error> {
        let head = source.bytes(0, 512)?;
        let sector = u64::from(le16(&head, 11)?);
        let per_cluster = match u8(&head, 13)? {
            few @ ..=0x80 => u64::from(few),
            power => 1u64.checked_shl(256 - u32::from(power)).unwrap_or(0),
        };
        let cluster = sector.saturating_mul(per_cluster);
        if !sector.is_power_of_two()
            || !cluster.is_power_of_two()
            || !(512..=2 << 20).contains(&cluster)
        {
            return Err(Error::Corrupt("the size of clusters"));
        }
        let record = match u8(&head, 64)? {
            few @ ..0x80 => u64::from(few).saturating_mul(cluster),
            power => 1u64.checked_shl(256 - u32::from(power)).unwrap_or(0),
        };
        if !record.is_power_of_two() || !(512..=64 << 10).contains(&record) {
            return Err(Error::Corrupt("the size of records"));
        }
        let start = le64(&head, 48)?.checked_mul(cluster);
        let start = start.ok_or(Error::Corrupt("the table of files is behind the end"))?;
        let mut ntfs = Ntfs {
            table: (Vec::new(), 0),
            journal: Journal::Clean,
            capitals: OnceLock::new(),
            last: Mutex::default(),
            cluster,
            record,
            source,
        };
        // The first record says where the others are; some of these, where the rest is.
        let first = record::read(&*ntfs.source, start, record)?;
        let known = record::attributes(&first)?.into_iter();
        ntfs.table = table(known.filter(|it| it.kind == DATA).map(|it| it.body).next())?;
        let whole = record::file(&ntfs, TABLE)?.attributes.into_iter();
        ntfs.table = table(whole.filter(|it| it.kind == DATA).map(|it| it.body).next())?;
        ntfs.journal = log::state(&ntfs)?;
        Ok(ntfs)
    }

    fn record(&self, number: u64) -> Result<Vec<u8>, Error> {
        const FAR: Error = Error::Corrupt("a record number is too large");
        let at = number.checked_mul(self.record).ok_or(FAR)?;
        let end = at.checked_add(self.record).ok_or(FAR)?;
        if end > self.table.1 {
            return Err(FAR);
        }
        let bytes = runs::read(self, &self.table.0, at, self.record as usize)?;
        record::whole(bytes, b"FILE")
    }

    fn file(&self, node: u64) -> Result<Arc<File>, Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = last.as_ref().filter(|(its, _)| *its == node) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(record::file(self, node)?);
        *last = Some((node, Arc::clone(&file)));
        Ok(file)
    }

    fn capitals(&self) -> Result<&[u8], Error> {
        if let Some(known) = self.capitals.get() {
            return Ok(known);
        }
        let file = record::file(self, CAPITALS)?;
        let data = file.get(DATA, b"");
        let data = data.ok_or(Error::Corrupt("the table of capital letters"))?;
        let bytes = stream::head(self, data, CAPITALS_BYTES)?;
        Ok(self.capitals.get_or_init(|| bytes))
    }

    /// The stream of a file that has no name.
    fn with_data<T>(
        &self,
        node: u64,
        use_it: impl FnOnce(&record::Attribute) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let file = self.file(node)?;
        if file.is_directory {
            return Err(Error::WrongKind);
        }
        if let Some(Reparse::Foreign) = self.reparse(&file)? {
            return Err(Error::Unsupported(
                "a reparse point keeps the file's bytes elsewhere",
            ));
        }
        match file.get(DATA, b"") {
            Some(data) => use_it(data),
            None => Err(Error::Corrupt("a file has no stream")),
        }
    }

    fn reparse(&self, file: &File) -> Result<Option<Reparse>, Error> {
        match file.get(REPARSE, b"") {
            Some(point) => reparse::parse(&stream::head(self, point, 16 << 10)?).map(Some),
            None => Ok(None),
        }
    }

    /// Where a link leads; None for what is none.
    fn link(&self, file: &File) -> Result<Option<Vec<u8>>, Error> {
        if let Some(Reparse::Link(target)) = self.reparse(file)? {
            return Ok(Some(target));
        }
        let standard = file.here(STANDARD).unwrap_or_default();
        match file.get(DATA, b"") {
            Some(data) if le32(standard, 32)? & SYSTEM != 0 && stream::size(data) <= LINK_MAX => {
                // What is encrypted is no link that could be followed.
                Ok(stream::head(self, data, LINK_MAX)
                    .ok()
                    .and_then(|it| reparse::interix(&it)))
            }
            Some(_) | None => Ok(None),
        }
    }
}

/// The runs and the size of the table of records.
fn table(body: Option<Body>) -> Result<(Vec<Run>, u64), Error> {
    match body {
        Some(Body::Elsewhere(Elsewhere { runs, size, .. })) => Ok((runs, size)),
        Some(Body::Here(_)) | None => Err(Error::Corrupt("the table of files")),
    }
}

/// From tenths of microseconds since 1601.
fn time(stamp: u64) -> Time {
    const SECOND: u64 = 10_000_000;
    /// From 1601 to 1970, in seconds.
    const EPOCH: i64 = 11_644_473_600;
    Time {
        // 2^64 of these units are 58,000 years.
        seconds: (stamp / SECOND).cast_signed() - EPOCH,
        nanoseconds: (stamp % SECOND) as u32 * 100,
    }
}

impl Filesystem for Ntfs {
    fn root(&self) -> u64 {
        ROOT
    }

    fn journal(&self) -> Journal {
        self.journal
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Error> {
        let file = self.file(node)?;
        let standard = file.here(STANDARD);
        let standard = standard.ok_or(Error::Corrupt("a file has no attributes"))?;
        let kind = match self.reparse(&file)? {
            Some(Reparse::Special(kind)) => kind,
            Some(Reparse::Link(_) | Reparse::Foreign) | None => match self.link(&file)? {
                Some(_) => FileKind::Symlink,
                None if file.is_directory => FileKind::Directory,
                None => FileKind::File,
            },
        };
        let (size, allocated) = match (kind, file.get(DATA, b"")) {
            (FileKind::Directory, _) => index::size(&file),
            (FileKind::File | FileKind::Symlink, Some(data)) => match &data.body {
                // In units of eight bytes, as records have it.
                Body::Here(bytes) => (bytes.len() as u64, (bytes.len() as u64).next_multiple_of(8)),
                Body::Elsewhere(it) => (it.size, it.allocated),
            },
            _ => (0, 0),
        };
        let is_read_only = kind != FileKind::Directory && le32(standard, 32)? & READ_ONLY != 0;
        let names = file.attributes.iter().filter(|it| match &it.body {
            Body::Here(name) => it.kind == FILE_NAME && name.get(65) != Some(&DOS),
            Body::Elsewhere(_) => false,
        });
        Ok(Attributes {
            kind,
            permissions: match kind {
                FileKind::Symlink => 0o777,
                _ => permissions(is_read_only),
            },
            links: (names.count() as u32).max(1),
            owner: (0, 0),
            size,
            blocks: allocated.div_ceil(512),
            device: (0, 0),
            modified: time(le64(standard, 8)?),
            changed: time(le64(standard, 16)?),
            accessed: time(le64(standard, 24)?),
        })
    }

    fn list(&self, directory: u64, cookie: u64) -> Result<Listing, Error> {
        let file = self.file(directory)?;
        index::list(self, &file, cookie)
    }

    /// What was written last may not be in its place where the log was not closed.
    fn has_index(&self) -> bool {
        self.journal == Journal::Clean
    }

    fn lookup(&self, directory: u64, name: &[u8]) -> Result<u64, Error> {
        // A name that is no UTF-8 is shown for one that is no UTF-16.
        let text = str::from_utf8(name).ok().filter(|_| self.has_index());
        let Some(text) = text.filter(|it| !it.contains(char::REPLACEMENT_CHARACTER)) else {
            return by_listing(self, directory, name);
        };
        if !is_name(name) {
            return Err(Error::NotFound);
        }
        let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let file = self.file(directory)?;
        match index::find(self, &file, &units, self.capitals()?)? {
            Found::Record(number) => Ok(number),
            Found::Nothing => Err(Error::NotFound),
            Found::Doubtful => by_listing(self, directory, name),
        }
    }

    fn target(&self, node: u64) -> Result<Vec<u8>, Error> {
        let file = self.file(node)?;
        self.link(&file)?.ok_or(Error::WrongKind)
    }

    fn extents(&self, node: u64, offset: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        self.with_data(node, |data| stream::extents(self, data, offset, limit))
    }

    fn read(&self, node: u64, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        self.with_data(node, |data| stream::read(self, data, offset, length))
    }

    fn xattrs(&self, node: u64) -> Result<Vec<Xattr>, Error> {
        let file = self.file(node)?;
        let mut all = Vec::new();
        let mut total = 0;
        for named in &file.attributes {
            let size = stream::size(named);
            if named.kind != DATA || named.name.is_empty() || size > XATTR_MAX {
                continue;
            }
            total += size;
            if total > XATTRS_MAX {
                break;
            }
            let name = [&b"user."[..], &utf16(&named.name)].concat();
            if name.len() <= 255 && !name.contains(&0) {
                all.push((name, stream::head(self, named, XATTR_MAX)?));
            }
        }
        Ok(all)
    }
}
