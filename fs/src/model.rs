//! What exists at one moment: the VM, its disks, their chains, points and jobs, as plain data.
//! Built by `ops::refresh` from QEMU's graph (or by `offline` from image headers), replaced
//! whole, never changed in place. It knows no I/O, no FUSE and no QMP command.

mod backup;
mod job;
mod live;
mod record;
mod state;
mod vm;

pub use backup::{
    Backup, BackupKind, BackupStage, Bitmap, Copied, Finished, LayerState, Manifest, Previous,
};
pub use job::Job;
pub use live::Live;
pub use record::{GroupRecord, InternalRecord, PointRecord};
pub use state::{Role, StateJob, StatePart, StateVerb};
pub use vm::{Agent, AgentState, ConnectionState, Contents, Manager, MergePolicy, Quiesce, Vm};

use qmpbridge::NodeName;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Everything the tree shows, as of one look at QEMU.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The virtual machine as a whole.
    pub vm: Vm,
    /// Its disks, sorted by name; names are unique.
    pub disks: Vec<Disk>,
}

impl Model {
    /// The disk of that name.
    pub fn disk(&self, name: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.name == name)
    }
}

/// What the guest sees as one disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Its directory's name.
    pub name: String,
    /// QEMU's root node of the chain (below any filter); None when offline.
    pub root: Option<NodeName>,
    /// The path the VM boots from; it never changes.
    pub active_path: PathBuf,
    /// The layer that is written.
    pub active: Layer,
    /// Sealed layers, base first.
    pub layers: Vec<Layer>,
    /// Points of ours that a rollback took out of the chain.
    pub branches: Vec<Branch>,
    /// Internal snapshots of the active layer and of sealed layers.
    pub internals: Vec<Internal>,
    /// Instants of the running disk, made by this mount.
    pub lives: Vec<Live>,
    /// What lies in the backup directory, and what is on its way there.
    pub backups: Vec<Backup>,
    /// Dirty bitmaps of the active layer.
    pub bitmaps: Vec<Bitmap>,
    /// Jobs at work on this disk, and failed ones nobody has dismissed.
    pub jobs: Vec<Job>,
    /// Why snapshots cannot be made here ("raw"); None when they can.
    pub no_snapshots: Option<String>,
    /// Why none can be made that puts a layer above this one, where others can.
    pub no_overlay: Option<String>,
    /// How QEMU caches the active layer.
    pub tuning: Tuning,
    /// What was assumed where QEMU does not tell (`discard`, `aio`).
    pub assumed: Vec<String>,
    /// What it is to a checkpoint.
    pub state_part: StatePart,
}

/// Options of the active layer that QEMU tells of; layers in its place get the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuning {
    /// `cache.direct`
    pub direct: bool,
    /// `cache.no-flush`
    pub no_flush: bool,
    /// The same two of the node below, which opens the file.
    pub file_direct: bool,
    /// See `file_direct`.
    pub file_no_flush: bool,
    /// A filter stands between the guest and the active layer.
    pub filtered: bool,
    /// `detect-zeroes`, unless it is off.
    pub detect_zeroes: Option<String>,
    /// It is written by clients of an export alone, whom nobody can stop.
    pub exported: bool,
    /// Nobody uses it, neither a device nor an export: it was unplugged. Not of disks whose VM is off.
    pub unplugged: bool,
    /// Its name leads to another file than the one that QEMU has open.
    pub replaced: bool,
}

impl Disk {
    /// Why the active layer cannot become a point.
    pub fn no_seal(&self) -> Option<&String> {
        self.no_snapshots.as_ref().or(self.no_overlay.as_ref())
    }

    /// All its layers, bottom first, with the active one.
    pub fn chain(&self) -> impl DoubleEndedIterator<Item = &Layer> + Clone {
        self.layers.iter().chain([&self.active])
    }

    /// The files of its chain, of those that can be seen.
    pub fn files(&self) -> impl Iterator<Item = FileId> {
        self.chain().filter_map(|layer| layer.file)
    }

    /// Whether a file is in its chain, in that of a point beside it, or in a backup.
    pub fn has(&self, file: FileId) -> bool {
        let branches = self.branches.iter();
        let beside = branches.flat_map(Branch::chain);
        let backups = self.backups.iter().flat_map(|backup| &backup.layers);
        let mut all = self.chain().chain(beside).chain(backups);
        all.any(|layer| layer.file == Some(file))
    }

    /// The layer that holds external snapshot `name`.
    pub fn external(&self, name: &str) -> Option<&Layer> {
        self.layers
            .iter()
            .find(|layer| layer.shown() && layer.point_name() == Some(name))
    }

    /// Whether a layer is sealed under that name, by us or by others, also one that is leaving: it keeps it to the end.
    pub fn has_point_called(&self, name: &str) -> bool {
        let beside = self.branches.iter().map(|branch| &branch.layer);
        let layers = self.layers.iter().chain(beside);
        let mut names = layers.filter_map(Layer::point_name);
        names.any(|taken| taken == name)
    }

    /// The point of that name beside the chain.
    pub fn branch(&self, name: &str) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.name() == name)
    }

    /// What to do first about an image that stands on one of its layers, if that is a point of its own.
    pub fn goes_first(&self, image: &Path) -> Option<String> {
        let mut branches = self.branches.iter();
        let branch = branches.find(|branch| branch.layer.path == image)?;
        Some(format!(
            "rmdir disks/{}/snapshots/{} first: what was rolled back past goes from its end",
            self.name,
            branch.name()
        ))
    }

    /// The instant of that name.
    pub fn live(&self, name: &str) -> Option<&Live> {
        self.lives.iter().find(|live| live.record.name == name)
    }

    /// The backup of that name, of whatever kind.
    pub fn backup(&self, name: &str) -> Option<&Backup> {
        self.backups
            .iter()
            .find(|backup| backup.manifest.name == name)
    }

    /// The internal snapshot of that name.
    pub fn internal(&self, name: &str) -> Option<&Internal> {
        self.internals.iter().find(|internal| internal.name == name)
    }
}

/// A file on a filesystem, whatever its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// st_dev.
    pub dev: u64,
    /// st_ino.
    pub ino: u64,
}

/// How a layer's bytes are laid out, as QEMU or the overlay says it (never probed).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// qcow2.
    Qcow2,
    /// The bytes themselves.
    Raw,
    /// Anything else that QEMU reads and we do not, by QEMU's name for it.
    Other(String),
}

impl Format {
    /// Whether our own reader reads it.
    pub fn is_read_here(&self) -> bool {
        match self {
            Format::Qcow2 | Format::Raw => true,
            Format::Other(_) => false,
        }
    }

    /// The driver's name in QEMU.
    pub fn name(&self) -> &str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
            Format::Other(name) => name,
        }
    }
}

/// One file of a chain.
#[derive(Debug, Clone)]
pub struct Layer {
    /// QEMU's node; None when offline.
    pub node: Option<NodeName>,
    /// The name under which it is to be opened (the active layer: maybe its alias).
    pub path: PathBuf,
    /// Which file that was when we looked; None when it cannot be seen from here.
    pub file: Option<FileId>,
    /// Its format.
    pub format: Format,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes on the host's disk.
    pub allocated_size: u64,
    /// When the file was last written; stands in for an instant nobody recorded.
    pub modified: Option<SystemTime>,
    /// What we wrote down when we sealed it; None for a file that is not ours.
    pub record: Option<PointRecord>,
    /// What others called the state in it; see `layer_file::name_foreign`. None for a file of ours.
    pub foreign_name: Option<String>,
    /// A merge is at work on it and its own state is not to be shown.
    pub leaving: bool,
}

impl Layer {
    /// Whether it is listed as a point.
    pub fn shown(&self) -> bool {
        !self.leaving
    }

    /// The name under which snapshots/ lists it: ours, or what others called it.
    pub fn point_name(&self) -> Option<&str> {
        let ours = self.record.as_ref().map(|record| record.name.as_str());
        ours.or(self.foreign_name.as_deref())
    }
}

/// A sealed layer of ours that the active layer does not stand on: what was above a point when the
/// disk was rolled back to it.
#[derive(Debug, Clone)]
pub struct Branch {
    /// The layer; no node of QEMU's, and always with a record.
    pub layer: Layer,
    /// What it stands on, base first.
    pub below: Vec<Layer>,
}

impl Branch {
    /// What it is read through, base first, with its own layer.
    pub fn chain(&self) -> impl Iterator<Item = &Layer> {
        self.below.iter().chain([&self.layer])
    }

    /// The point's name.
    pub fn name(&self) -> &str {
        self.layer.record.as_ref().map_or("", |record| &record.name)
    }
}

/// An internal snapshot of one layer's file.
#[derive(Debug, Clone)]
pub struct Internal {
    /// QEMU's id within the file.
    pub id: String,
    /// Its name, made fit for a directory entry.
    pub name: String,
    /// Its name in the image's snapshot table.
    pub tag: String,
    /// When it was taken.
    pub time: SystemTime,
    /// Bytes the guest saw, or sees now where only the image could say what it was then.
    pub virtual_size: u64,
    /// Bytes of RAM saved with it.
    pub vm_state_size: u64,
    /// Index in `layers` of the file that holds it; None: the active layer.
    pub layer: Option<usize>,
    /// What we wrote down when we made it.
    pub record: Option<InternalRecord>,
}

impl Internal {
    /// Finds its record among those of its file.
    pub fn with_record(mut self, records: &[InternalRecord]) -> Self {
        let time = self.nanos();
        let mine = |record: &&InternalRecord| record.id == self.id && Some(record.time) == time;
        self.record = records.iter().find(mine).cloned();
        self
    }

    /// Its time, as a record has it.
    pub fn nanos(&self) -> Option<u64> {
        let since = self.time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_nanos()).ok()
    }
}
