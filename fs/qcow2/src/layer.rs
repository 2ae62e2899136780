//! One layer of a chain: a qcow2 image or a raw file.
//!
//! Knows: how both answer `map` and reads in the same words.
//! Does not know: its neighbours in the chain.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, io_at};
use crate::image::Image;
use crate::mapping::{Mapping, Run};
use crate::read_at::{OpenedFile, ReadAt};
use crate::table_cache::Caches;
use crate::units::{GuestOffset, HostOffset};

/// QEMU counts raw files in whole sectors, the last one filled up with zeros.
const SECTOR: u64 = 512;

/// One layer of a chain.
#[derive(Debug)]
pub enum Layer {
    /// A qcow2 image, or one of its internal snapshots.
    Qcow2(Image),
    /// A raw file.
    Raw(RawLayer),
}

/// A raw file, its size fixed when it was opened.
pub struct RawLayer {
    file: OpenedFile,
    virtual_size: u64,
}

impl fmt::Debug for RawLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("RawLayer");
        debug
            .field("virtual_size", &self.virtual_size)
            .finish_non_exhaustive()
    }
}

impl RawLayer {
    /// Takes the file's size as it is now, rounded up to whole sectors.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<RawLayer, Error> {
        let file = OpenedFile::new(file).map_err(io_at("raw file", 0))?;
        let virtual_size = file
            .size()
            .checked_next_multiple_of(SECTOR)
            .unwrap_or(file.size());
        Ok(RawLayer { file, virtual_size })
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// The file.
    pub fn file(&self) -> &Arc<dyn ReadAt> {
        self.file.inner()
    }
}

impl Layer {
    /// Size of the disk in bytes, as this layer has it.
    pub fn virtual_size(&self) -> u64 {
        match self {
            Layer::Qcow2(image) => image.virtual_size(),
            Layer::Raw(raw) => raw.virtual_size,
        }
    }

    /// The smallest stretch with an answer of its own, as an exponent of two; a raw file has none.
    pub(crate) fn unit_bits(&self) -> Option<u32> {
        match self {
            Layer::Qcow2(image) => Some(image.unit_bits()),
            Layer::Raw(_) => None,
        }
    }

    /// The caches that this layer uses, if it needs any.
    pub(crate) fn caches(&self) -> Option<&Caches> {
        match self {
            Layer::Qcow2(image) => Some(image.caches()),
            Layer::Raw(_) => None,
        }
    }

    /// The run that starts at `offset`; see [`Image::map`].
    pub fn map(&self, offset: GuestOffset, max_len: u64) -> Result<Run, Error> {
        match self {
            Layer::Qcow2(image) => image.map(offset, max_len),
            Layer::Raw(raw) => {
                let len = raw.virtual_size.saturating_sub(offset.0).min(max_len);
                Ok(Run {
                    len,
                    what: Mapping::Data {
                        host: HostOffset(offset.0),
                    },
                })
            }
        }
    }

    /// Fills `buf` with what `mapping` says; see [`Image::read_mapped`].
    pub fn read_mapped(&self, mapping: Mapping, buf: &mut [u8]) -> Result<(), Error> {
        match (self, mapping) {
            (Layer::Qcow2(image), _) => image.read_mapped(mapping, buf),
            (Layer::Raw(raw), Mapping::Data { host }) => raw
                .file
                .read(buf, host.0)
                .map_err(io_at("raw file", host.0)),
            (Layer::Raw(_), _) => {
                buf.fill(0);
                Ok(())
            }
        }
    }
}
