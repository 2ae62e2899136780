//! One layer's file, opened: the right file, locked, in the right format.
//! It knows what may be opened and how; it does not know the layers beside it.

use super::failure_of;
use super::lock::Locked;
use super::mappings::{Mapping, Mappings};
use super::served::{self, ServedLayer};
use crate::errno::{Errno, Failure};
use crate::model::{FileId, Format, Layer as ModelLayer};
use crate::nbd;
use crate::sys::{self, MappedFile};
use qmpfs_qcow2::{Caches, Header, Image, Layer, OpenOptions, RawLayer, ReadAt};
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::hash::Hash;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Which file is a layer, and in which format, as QEMU or the overlay says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSpec {
    /// A name to open it under.
    pub path: PathBuf,
    /// Which file that must be; None where nobody knows.
    pub file: Option<FileId>,
    /// Its format.
    pub format: Format,
}

impl From<&ModelLayer> for LayerSpec {
    fn from(layer: &ModelLayer) -> Self {
        LayerSpec {
            path: layer.path.clone(),
            file: layer.file,
            format: layer.format.clone(),
        }
    }
}

/// How far the names in a header are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Plain backing names, and data files beside their image: a header may be a guest's word.
    #[default]
    Guarded,
    /// Every name of a local file: the user trusts the images.
    Trusting,
}

/// A layer's file while it is read, and its lock, which goes with this and not with the file.
pub struct OpenLayer {
    id: FileId,
    locked: Locked,
    layer: Arc<Layer>,
    stamp: Stamp,
    /// Where the guest's bytes are: the file itself, or the external data file.
    data: Arc<File>,
    /// The same in our address space.
    mapping: Arc<Mapping>,
    data_file: Option<DataFile>,
    /// Who reads it, where that is not us.
    served: Option<ServedLayer>,
}

/// Whether a file is as it was: a merge that is not ours changes both its time and its maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Stamp {
            length: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }

    /// Whether the file was last written longer ago than this.
    pub(super) fn settled(&self, age: Duration) -> bool {
        self.modified
            .and_then(|modified| modified.elapsed().ok())
            .is_some_and(|elapsed| elapsed >= age)
    }
}

/// An external data file, and what it was when it was opened. Writing to it through its image
/// need not change the image.
struct DataFile {
    path: PathBuf,
    file: Arc<File>,
    id: FileId,
    stamp: Stamp,
}

impl DataFile {
    fn unchanged(&self) -> bool {
        look(&self.path).is_ok_and(|now| now == (self.id, self.stamp))
    }
}

/// What the layers of a mount have in common.
pub(super) struct Opener {
    /// Memory for their tables and clusters.
    pub(super) caches: Arc<Caches>,
    /// Their files in our address space.
    pub(super) mappings: Arc<Mappings>,
    /// How far names in their headers are followed.
    pub(super) reach: Reach,
}

impl Opener {
    /// Opens and locks a layer.
    pub(super) fn open(&self, spec: &LayerSpec) -> Result<OpenLayer, Failure> {
        self.open_with(spec, Locked::new)
    }

    /// Opens a layer that our own running job is committing.
    pub(super) fn open_unlocked(&self, spec: &LayerSpec) -> Result<OpenLayer, Failure> {
        self.open_with(spec, |path, file| Ok(Locked::waived(path, file)))
    }

    fn open_with(
        &self,
        spec: &LayerSpec,
        lock: impl FnOnce(&Path, Arc<File>) -> Result<Locked, Failure>,
    ) -> Result<OpenLayer, Failure> {
        let path = &spec.path;
        let (file, metadata) = open_file(path)?;
        let io = |error| Failure::io(format_args!("look at {}", path.display()), &error);
        let id = sys::file_id_of(&file).map_err(io)?;
        if spec.file.is_some_and(|wanted| wanted != id) {
            return Err(replaced(path));
        }
        let lock = || lock(path, Arc::new(file));
        let (locked, layer, data_file) = match &spec.format {
            Format::Qcow2 => {
                let locked = lock()?;
                let (image, data_file) = self.open_qcow2(path, locked.file())?;
                (locked, Layer::Qcow2(image), data_file)
            }
            Format::Raw => {
                let locked = lock()?;
                let raw = RawLayer::open(locked.file().clone())
                    .map_err(|error| failure_of(path, &error))?;
                (locked, Layer::Raw(raw), None)
            }
            Format::Other(format) => {
                return Err(Failure::new(
                    Errno::EOPNOTSUPP,
                    format!("{} is {format}, which is not read", path.display()),
                )
                .next("qemu-img convert -O qcow2 makes an image that is"));
            }
        };
        let data = match &data_file {
            Some(data_file) => data_file.file.clone(),
            None => locked.file().clone(),
        };
        // As long as it is now: bytes beyond are the reader's business.
        let length = data.size().map_err(io)?;
        Ok(OpenLayer {
            id,
            locked,
            layer: Arc::new(layer),
            stamp: Stamp::of(&metadata),
            mapping: self.mappings.enter(data.clone(), length),
            data,
            data_file,
            served: None,
        })
    }

    /// A layer that is read by a server; its file is only looked at. QEMU guards it.
    pub(super) fn open_served(
        &self,
        path: &Path,
        wanted: Option<FileId>,
        disk: Arc<nbd::Disk>,
    ) -> Result<OpenLayer, Failure> {
        let (file, metadata) = open_file(path)?;
        let io = |error| Failure::io(format_args!("look at {}", path.display()), &error);
        let id = sys::file_id_of(&file).map_err(io)?;
        if wanted.is_some_and(|wanted| wanted != id) {
            return Err(replaced(path));
        }
        let file = Arc::new(file);
        let served = ServedLayer::start(disk)?;
        Ok(OpenLayer {
            id,
            locked: Locked::waived(path, file.clone()),
            layer: Arc::new(served::raw(&served)?),
            stamp: Stamp::of(&metadata),
            // what lies in the file are not the guest's bytes
            mapping: self.mappings.enter(file.clone(), 0),
            data: file,
            data_file: None,
            served: Some(served),
        })
    }

    fn open_qcow2(
        &self,
        path: &Path,
        file: &Arc<File>,
    ) -> Result<(Image, Option<DataFile>), Failure> {
        let header = Header::read(&**file).map_err(|error| failure_of(path, &error))?;
        let mut options = OpenOptions {
            caches: Some(self.caches.clone()),
            ..OpenOptions::default()
        };
        let mut data_file = None;
        if header.features.data_file() {
            let opened = open_data_file(path, header.data_file.as_deref(), self.reach)?;
            options.data_file = Some(data_file.insert(opened).file.clone());
        }
        let image = Image::open_with_header(file.clone(), header, options);
        let image = image.map_err(|error| failure_of(path, &error))?;
        Ok((image, data_file))
    }
}

impl OpenLayer {
    /// Which file it is.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// The reader's side of it.
    pub fn layer(&self) -> &Arc<Layer> {
        &self.layer
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        self.locked.file()
    }

    /// Which file has the guest's bytes.
    pub(super) fn data_id(&self) -> FileId {
        self.data_file.as_ref().map_or(self.id, |data| data.id)
    }

    /// Who reads it, where that is not us.
    pub(super) fn served(&self) -> Option<&ServedLayer> {
        self.served.as_ref()
    }

    /// Its file with the guest's bytes, if the kernel can copy these from where they lie.
    pub(super) fn mapped(&self, host: u64, length: usize) -> Option<Arc<MappedFile>> {
        if self.served.is_some() {
            return None;
        }
        self.mapping.of(host, length)
    }

    /// The file of a raw layer of this size, if it is no longer and no shorter than that.
    pub(super) fn as_file(&self, size: u64) -> Option<&File> {
        match &*self.layer {
            Layer::Raw(_) if self.served.is_none() && self.stamp.length == size => Some(&self.data),
            Layer::Raw(_) | Layer::Qcow2(_) => None,
        }
    }

    /// How long the file with the guest's bytes is by now, or "endless" for a device.
    pub(super) fn data_length(&self) -> Result<u64, Failure> {
        match self.data.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
            Ok(_) => Ok(u64::MAX),
            Err(error) => Err(Failure::io("look at a layer's file", &error)),
        }
    }

    /// Gives the lock back; the layer can still be read.
    pub(super) fn unlock(&self) {
        self.locked.unlock();
    }

    /// Whether nobody has written the file since it was opened.
    pub(super) fn unchanged(&self) -> bool {
        let file = self.locked.file().metadata();
        file.is_ok_and(|metadata| Stamp::of(&metadata) == self.stamp)
            && self.data_file.as_ref().is_none_or(DataFile::unchanged)
    }

    /// Of the file itself.
    pub(super) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Of all files that hold the layer.
    pub(super) fn stamps(&self) -> impl Eq + Hash {
        let data = self.data_file.as_ref().map(|data| (data.id, data.stamp));
        (self.id, self.stamp, data)
    }
}

fn replaced(path: &Path) -> Failure {
    Failure::new(
        Errno::ESTALE,
        format!("{} is another file by now", path.display()),
    )
    .next("open it again")
}

/// Which file a path is now, and whether it is as it was.
pub(super) fn look(path: &Path) -> Result<(FileId, Stamp), Failure> {
    let io = |error| Failure::io(format_args!("look at {}", path.display()), &error);
    let metadata = std::fs::metadata(path).map_err(io)?;
    Ok((sys::file_id(path).map_err(io)?, Stamp::of(&metadata)))
}

fn open_file(path: &Path) -> Result<(File, Metadata), Failure> {
    let io = |error| Failure::io(format_args!("open {}", path.display()), &error);
    let file = sys::open_for_reading(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!(
                "{} is neither a regular file nor a block device",
                path.display()
            ),
        )
        .next("name an image file"));
    }
    Ok((file, metadata))
}

/// The data file of an image, by its name in the header. That is the guest's word: it leads to no file outside the
/// image's own directory, unless the user trusts it.
pub fn find_data_file(image: &Path, name: Option<&[u8]>, reach: Reach) -> Result<PathBuf, Failure> {
    let Some(name) = name.map(OsStr::from_bytes) else {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!(
                "{} needs an external data file and names none",
                image.display()
            ),
        )
        .next("mend it with the VM off: qemu-img amend -o data_file=NAME"));
    };
    let real = |path: &Path| {
        path.canonicalize()
            .map_err(|error| Failure::io(format_args!("find {}", path.display()), &error))
    };
    let image_directory = real(image)?.parent().unwrap_or(Path::new("/")).to_owned();
    let data = real(&image_directory.join(name))?;
    if reach == Reach::Guarded && data.parent() != Some(&image_directory) {
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!(
                "{} keeps its data in {}, outside its own directory",
                image.display(),
                data.display()
            ),
        )
        .next("keep the image and its data file in one directory"));
    }
    Ok(data)
}

/// It is not locked: QEMU takes the image's own lock whenever it uses both.
fn open_data_file(image: &Path, name: Option<&[u8]>, reach: Reach) -> Result<DataFile, Failure> {
    let data = find_data_file(image, name, reach)?;
    let (file, metadata) = open_file(&data)?;
    let id = sys::file_id_of(&file)
        .map_err(|error| Failure::io(format_args!("look at {}", data.display()), &error))?;
    Ok(DataFile {
        path: data,
        file: Arc::new(file),
        id,
        stamp: Stamp::of(&metadata),
    })
}
