//! One qcow2 file, or the file as an internal snapshot keeps it.
//!
//! Knows: the header, an L1 table kept since it was opened, and where L2 tables are.
//! Does not know: other layers; `Unallocated` is its word for "look one layer down".
//! Invariant: an old L2 table is never taken for a newer snapshot's: each opening is an owner.

mod lookup;

use std::fmt;
use std::sync::Arc;

use crate::bytes::be64_table;
use crate::compressed::{CompressedCluster, Decompressors};
use crate::error::{CorruptCause, Error, UnsupportedCause, io_at};
use crate::header::{Header, TableRef, check_l1};
use crate::mapping::Mapping;
use crate::read_at::{OpenedFile, ReadAt};
use crate::snapshot_table::{self, InternalSnapshot};
use crate::table::EntryFormat;
use crate::table_cache::{Caches, Owner};
use crate::units::GuestOffset;

/// One qcow2 file, or one of its internal snapshots. Cheap to share, safe to read in parallel.
pub struct Image {
    shared: Arc<Shared>,
    owner: Owner,
    l1: Vec<u64>,
    virtual_size: u64,
}

struct Shared {
    file: OpenedFile,
    data: Option<OpenedFile>,
    header: Header,
    format: EntryFormat,
    caches: Arc<Caches>,
    decompressors: Decompressors,
}

/// What an image may be opened with besides its file.
#[derive(Default)]
pub struct OpenOptions {
    /// The external data file.
    pub data_file: Option<Arc<dyn ReadAt>>,
    /// Caches to share with other images; its own if there are none.
    pub caches: Option<Arc<Caches>>,
}

/// How many bytes of a disk one layer holds, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Bytes in data clusters.
    pub data: u64,
    /// Bytes in compressed clusters, decompressed.
    pub compressed: u64,
    /// Bytes in zero clusters.
    pub zero: u64,
}

impl Image {
    /// Opens a qcow2 file that has no external data file.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Image, Error> {
        Image::open_with(file, OpenOptions::default())
    }

    /// Opens a qcow2 file whose guest data lies in `data`.
    pub fn open_with_data_file(
        file: Arc<dyn ReadAt>,
        data: Arc<dyn ReadAt>,
    ) -> Result<Image, Error> {
        Image::open_with(
            file,
            OpenOptions {
                data_file: Some(data),
                ..OpenOptions::default()
            },
        )
    }

    /// Opens a qcow2 file: its header area in one read, then its L1 table.
    pub fn open_with(file: Arc<dyn ReadAt>, options: OpenOptions) -> Result<Image, Error> {
        let header = Header::read(&*file)?;
        Image::open_with_header(file, header, options)
    }

    /// The same of a file whose header was read already.
    pub fn open_with_header(
        file: Arc<dyn ReadAt>,
        header: Header,
        options: OpenOptions,
    ) -> Result<Image, Error> {
        match (&options.data_file, header.features.data_file()) {
            (None, true) => return Err(UnsupportedCause::DataFileMissing.into()),
            (Some(_), false) => return Err(UnsupportedCause::DataFileUnexpected.into()),
            _ => {}
        }
        let shared = Shared {
            format: EntryFormat::new(header.version, header.cluster_bits, &header.features),
            decompressors: Decompressors::new(header.compression),
            caches: options.caches.unwrap_or_default(),
            data: match options.data_file {
                Some(data) => Some(OpenedFile::new(data).map_err(io_at("data file", 0))?),
                None => None,
            },
            file: OpenedFile::new(file).map_err(io_at("image", 0))?,
            header,
        };
        let virtual_size = shared.header.virtual_size;
        let l1 = shared.read_l1(shared.header.l1, virtual_size)?;
        Ok(Image {
            shared: Arc::new(shared),
            owner: Owner::new(),
            l1,
            virtual_size,
        })
    }

    /// The header, as it was when the file was opened.
    pub fn header(&self) -> &Header {
        &self.shared.header
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    pub(crate) fn unit_bits(&self) -> u32 {
        self.shared.format.unit_bits()
    }

    pub(crate) fn caches(&self) -> &Caches {
        &self.shared.caches
    }

    /// The internal snapshots, as they are in the file now.
    pub fn snapshots(&self) -> Result<Vec<InternalSnapshot>, Error> {
        let header = &self.shared.header;
        snapshot_table::read(
            &**self.shared.file.inner(),
            header.cluster_bits,
            header.virtual_size,
        )
    }

    /// The same file as an internal snapshot keeps it, with the snapshot's own size.
    ///
    /// The snapshot must still be in the table after its L1 table was read.
    pub fn at_snapshot(&self, snapshot: &InternalSnapshot) -> Result<Image, Error> {
        check_l1(
            "snapshot L1 table",
            snapshot.l1(),
            self.shared.header.cluster_bits,
        )?;
        let virtual_size = snapshot.virtual_size;
        let l1 = self.shared.read_l1(snapshot.l1(), virtual_size)?;
        if !self.snapshots()?.contains(snapshot) {
            return Err(CorruptCause::SnapshotGone.into());
        }
        Ok(Image {
            shared: Arc::clone(&self.shared),
            owner: Owner::new(),
            l1,
            virtual_size,
        })
    }

    /// The file that holds the guest's data: the external data file, or the image itself.
    pub fn data_file(&self) -> &Arc<dyn ReadAt> {
        self.shared.guest_data().inner()
    }

    /// Fills `buf` with what `mapping` says; the mapping's run must be at least as long.
    /// What this layer does not hold is zeros.
    pub fn read_mapped(&self, mapping: Mapping, buf: &mut [u8]) -> Result<(), Error> {
        match mapping {
            Mapping::Zero | Mapping::Unallocated => {
                buf.fill(0);
                Ok(())
            }
            Mapping::Data { host } => self
                .shared
                .guest_data()
                .read(buf, host.0)
                .map_err(io_at("data cluster", host.0)),
            Mapping::Compressed { cluster, within } => self.read_compressed(cluster, within, buf),
        }
    }

    fn read_compressed(
        &self,
        cluster: CompressedCluster,
        within: u32,
        buf: &mut [u8],
    ) -> Result<(), Error> {
        let whole = self.decompressed(cluster)?;
        let rest = whole.get(within as usize..).unwrap_or(&[]);
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        buf[len..].fill(0);
        Ok(())
    }

    /// A whole cluster. Whoever asks for one that another thread is at work on waits for that.
    pub fn decompressed(&self, cluster: CompressedCluster) -> Result<Arc<[u8]>, Error> {
        let size = self.shared.format.cluster_bits().bytes();
        let key = (self.owner, cluster.host, cluster.len);
        let clusters = &self.shared.caches.clusters;
        let known = clusters.get_or_insert(key, size, Arc::default);
        let mut error = None;
        let whole =
            known.get_or_init(|| self.decompress(cluster).map_err(|e| error = Some(e)).ok());
        match (whole, error) {
            (Some(whole), _) => Ok(Arc::clone(whole)),
            (None, error) => {
                // A file that could not be read now may be read the next time.
                clusters.remove(key);
                match error {
                    Some(error) => Err(error),
                    None => self.decompress(cluster),
                }
            }
        }
    }

    /// Whether a cluster is decompressed, or somebody is at work on it.
    pub fn is_decompressed(&self, cluster: CompressedCluster) -> bool {
        self.shared
            .caches
            .clusters
            .contains((self.owner, cluster.host, cluster.len))
    }

    fn decompress(&self, cluster: CompressedCluster) -> Result<Arc<[u8]>, Error> {
        let mut whole: Arc<[u8]> =
            std::iter::repeat_n(0, self.shared.format.cluster_bits().bytes()).collect();
        // Nobody else has it yet.
        let buf = Arc::get_mut(&mut whole).unwrap_or(&mut []);
        let mut stream = vec![0; cluster.len as usize];
        self.shared
            .file
            .read(&mut stream, cluster.host.0)
            .map_err(io_at("compressed cluster", cluster.host.0))?;
        self.shared
            .decompressors
            .decompress(&stream, buf)
            .map_err(|_| CorruptCause::CompressedStream { host: cluster.host })?;
        Ok(whole)
    }

    /// How many bytes of the disk this layer holds, by kind. Walks every table.
    pub fn allocation(&self) -> Result<Allocation, Error> {
        let mut sum = Allocation::default();
        let mut at = GuestOffset(0);
        while at.0 < self.virtual_size {
            let run = self.map(at, u64::MAX)?;
            match run.what {
                Mapping::Data { .. } => sum.data = sum.data.saturating_add(run.len),
                Mapping::Compressed { .. } => {
                    sum.compressed = sum.compressed.saturating_add(run.len);
                }
                Mapping::Zero => sum.zero = sum.zero.saturating_add(run.len),
                Mapping::Unallocated => {}
            }
            at = GuestOffset(at.0.saturating_add(run.len));
        }
        Ok(sum)
    }

    /// Bytes of the disk that are data or compressed in this layer.
    pub fn allocated_bytes(&self) -> Result<u64, Error> {
        self.allocation()
            .map(|sum| sum.data.saturating_add(sum.compressed))
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("virtual_size", &self.virtual_size)
            .field("header", &self.shared.header)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn guest_data(&self) -> &OpenedFile {
        self.data.as_ref().unwrap_or(&self.file)
    }

    /// The part of an L1 table that maps the disk and lies in the file; the rest is no entries.
    fn read_l1(&self, l1: TableRef, virtual_size: u64) -> Result<Vec<u64>, Error> {
        let failed = || io_at("L1 table", l1.offset.0);
        let in_file = self
            .file
            .inner()
            .size()
            .map_err(failed())?
            .saturating_sub(l1.offset.0)
            >> 3;
        // The last entry may be cut by the file's end: it is read padded.
        let entries = u64::from(l1.entries)
            .min(self.format.l1_entries(virtual_size))
            .min(in_file.saturating_add(1));
        let bytes = usize::try_from(entries.saturating_mul(8)).unwrap_or(0);
        let mut raw = vec![0; bytes];
        self.file.read(&mut raw, l1.offset.0).map_err(failed())?;
        Ok(be64_table(&raw).collect())
    }
}
