//! The tree as the kernel sees it: which names stand where, derived from the [`Model`].
//! Pure: it looks names up in a model and knows no I/O, no QEMU and no fuser.

mod checkpoint;
mod group;
mod ids;
mod inside;
mod list;
mod name;
mod place;

pub use checkpoint::{Checkpoint, checkpoint, checkpoint_link, checkpoint_of, checkpoints, saving};
pub use group::{
    Group, GroupKey, GroupKind, find_group, group_of, group_points, groups, link_target,
};
pub use ids::Ids;
pub use inside::{Inside, has_inside};
pub use list::{children, exists, lookup, parent, path_of, section_entry};
pub use name::{
    disk_path, first_free, fit_name, internal_identity, is_root_file, layer_dir_name,
    layer_identity, name_internals, short_name, valid_name,
};
pub use place::{
    Found, backup_key, external_key, find_in, find_point, internal_key, job_of, layer_key,
    live_key, point_place,
};

use crate::model::BackupKind;

/// One entry of the tree, by meaning. Two entries with the same key are the same inode.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum NodeKey {
    Root,
    RootFile(RootFile),
    /// The points of all disks, of a kind.
    Groups(GroupKind),
    /// One of them
    Group(GroupKey),
    GroupJson(GroupKey),
    /// group, disk
    GroupLink(GroupKey, String),
    /// The files that its disks hold together.
    GroupFiles(GroupKey),
    /// What is to be said of one of their volumes, by its name
    GroupNote(GroupKey, String),
    /// The disks with the RAM.
    Checkpoints,
    /// One of them, by its name
    Checkpoint(String),
    CheckpointJson(String),
    /// checkpoint, disk
    CheckpointLink(String, String),
    Disks,
    /// Of a mount of backups: a VM, and the directory of its disks
    Vm(String),
    VmDisks(String),
    Disk(String),
    DiskFile(String, DiskFile),
    Section(String, Section),
    /// The directory of the kinds of backups, of a disk or of all
    Backups(Option<String>),
    /// disk, name
    Bitmap(String, String),
    Point(PointKey),
    PointFile(PointKey, PointFile),
    /// What depends on the disk's content.
    Inside(PointKey, Inside),
    /// disk, job id
    Job(String, String),
    JobFile(String, String, JobFile),
}

/// The files of the root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum RootFile {
    VmJson,
    Log,
    Events,
    Metrics,
    Readme,
    Rollback,
    Wait,
}

impl RootFile {
    /// All of them, as listed.
    pub const ALL: [RootFile; 7] = [
        RootFile::VmJson,
        RootFile::Log,
        RootFile::Events,
        RootFile::Metrics,
        RootFile::Readme,
        RootFile::Rollback,
        RootFile::Wait,
    ];

    /// Those of a mount of backups.
    pub const OF_BACKUPS: [RootFile; 5] = [
        RootFile::Log,
        RootFile::Events,
        RootFile::Metrics,
        RootFile::Readme,
        RootFile::Wait,
    ];

    /// Its name in the root directory.
    pub fn name(self) -> &'static str {
        match self {
            RootFile::VmJson => "vm.json",
            RootFile::Log => "log",
            RootFile::Events => "events",
            RootFile::Metrics => "metrics",
            RootFile::Readme => "README.txt",
            RootFile::Rollback => "rollback",
            RootFile::Wait => "wait",
        }
    }
}

/// The files of a disk's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum DiskFile {
    Json,
    ChainTxt,
    Rollback,
    ChainSvg,
    Wait,
}

impl DiskFile {
    /// All of them, as listed.
    pub const ALL: [DiskFile; 5] = [
        DiskFile::Json,
        DiskFile::ChainTxt,
        DiskFile::Rollback,
        DiskFile::ChainSvg,
        DiskFile::Wait,
    ];

    /// Its name in the directory.
    pub fn name(self) -> &'static str {
        match self {
            DiskFile::Json => "disk.json",
            DiskFile::ChainTxt => "chain.txt",
            DiskFile::Rollback => "rollback",
            DiskFile::ChainSvg => "chain.svg",
            DiskFile::Wait => "wait",
        }
    }
}

/// The directories of a disk's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Section {
    Layers,
    Snapshots,
    Internal,
    Live,
    Jobs,
    Bitmaps,
    /// Not in the disk's directory itself, but in its `backups`.
    Backup(BackupKind),
}

impl Section {
    /// All of them, as listed.
    pub const ALL: [Section; 10] = [
        Section::Layers,
        Section::Snapshots,
        Section::Internal,
        Section::Live,
        Section::Jobs,
        Section::Bitmaps,
        Section::Backup(BackupKind::ALL[0]),
        Section::Backup(BackupKind::ALL[1]),
        Section::Backup(BackupKind::ALL[2]),
        Section::Backup(BackupKind::ALL[3]),
    ];

    /// The kind of backups it lists; None for a directory of the disk's own.
    pub fn backup(self) -> Option<BackupKind> {
        match self {
            Section::Backup(kind) => Some(kind),
            Section::Layers
            | Section::Snapshots
            | Section::Internal
            | Section::Live
            | Section::Jobs
            | Section::Bitmaps => None,
        }
    }

    /// Its name in the disk's directory.
    pub fn name(self) -> &'static str {
        match self {
            Section::Layers => "layers",
            Section::Snapshots => "snapshots",
            Section::Internal => "internal",
            Section::Live => "live",
            Section::Jobs => "jobs",
            Section::Bitmaps => "bitmaps",
            Section::Backup(kind) => kind.name(),
        }
    }
}

/// The files of a point's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum PointFile {
    DiskRaw,
    PointJson,
    Plan,
    State,
    Progress,
    Error,
    Wait,
}

impl PointFile {
    /// All of them.
    pub const ALL: [PointFile; 7] = [
        PointFile::DiskRaw,
        PointFile::PointJson,
        PointFile::Plan,
        PointFile::State,
        PointFile::Progress,
        PointFile::Error,
        PointFile::Wait,
    ];

    /// Whether a point has it: one that is still made has the files of its job and no disk.
    pub fn is_in(self, found: &Found<'_>) -> bool {
        let (made, readable) = match found {
            Found::Backup { backup, .. } => (backup.job().is_none(), backup.is_complete()),
            Found::Layer { .. }
            | Found::Branch { .. }
            | Found::Internal { .. }
            | Found::Live { .. } => (true, true),
        };
        match self {
            PointFile::DiskRaw => readable,
            PointFile::PointJson | PointFile::Plan => true,
            PointFile::State | PointFile::Progress | PointFile::Error | PointFile::Wait => !made,
        }
    }

    /// Its name in the point's directory.
    pub fn name(self) -> &'static str {
        match self {
            PointFile::DiskRaw => "disk.raw",
            PointFile::PointJson => "point.json",
            PointFile::Plan => "plan",
            PointFile::State => "state",
            PointFile::Progress => "progress",
            PointFile::Error => "error",
            PointFile::Wait => "wait",
        }
    }
}

/// The files of a job's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum JobFile {
    State,
    Progress,
    Error,
    Ctl,
    Wait,
}

impl JobFile {
    /// All of them, as listed.
    pub const ALL: [JobFile; 5] = [
        JobFile::State,
        JobFile::Progress,
        JobFile::Error,
        JobFile::Ctl,
        JobFile::Wait,
    ];

    /// Its name in the job's directory.
    pub fn name(self) -> &'static str {
        match self {
            JobFile::State => "state",
            JobFile::Progress => "progress",
            JobFile::Error => "error",
            JobFile::Ctl => "ctl",
            JobFile::Wait => "wait",
        }
    }
}

/// One instant of one disk, by identity and not by name: a point that was deleted and made again
/// under the same name is another point, with another inode and another page cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PointKey {
    /// The disk's name.
    pub disk: String,
    /// Where it is listed.
    pub kind: PointKind,
    /// What makes it this point: the record's id, or the file, snapshot id and time.
    pub identity: String,
}

/// What takes lines that are verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control<'a> {
    /// `rollback`
    Checkpoint,
    /// `disks/DISK/rollback`
    Rollback {
        /// The disk's name.
        disk: &'a str,
    },
    /// `disks/DISK/jobs/ID/ctl`
    Job {
        /// The disk's name.
        disk: &'a str,
        /// QEMU's job id.
        id: &'a str,
    },
}

/// The section a point is listed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum PointKind {
    Layer,
    External,
    Internal,
    Live,
    Backup(BackupKind),
}

impl NodeKey {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        match self {
            NodeKey::Root
            | NodeKey::Groups(_)
            | NodeKey::Group(_)
            | NodeKey::GroupFiles(_)
            | NodeKey::Checkpoints
            | NodeKey::Checkpoint(_)
            | NodeKey::Disks
            | NodeKey::Vm(_)
            | NodeKey::VmDisks(_)
            | NodeKey::Disk(_)
            | NodeKey::Section(..)
            | NodeKey::Backups(_)
            | NodeKey::Point(_)
            | NodeKey::Job(..) => true,
            NodeKey::Inside(_, inside) => inside.is_dir(),
            NodeKey::RootFile(_)
            | NodeKey::GroupJson(_)
            | NodeKey::GroupLink(..)
            | NodeKey::GroupNote(..)
            | NodeKey::CheckpointJson(_)
            | NodeKey::CheckpointLink(..)
            | NodeKey::DiskFile(..)
            | NodeKey::Bitmap(..)
            | NodeKey::PointFile(..)
            | NodeKey::JobFile(..) => false,
        }
    }

    /// What a line written to it is said to. None for a file that is only read, and for directories.
    pub fn control(&self) -> Option<Control<'_>> {
        match self {
            NodeKey::RootFile(RootFile::Rollback) => Some(Control::Checkpoint),
            NodeKey::DiskFile(disk, DiskFile::Rollback) => Some(Control::Rollback { disk }),
            NodeKey::JobFile(disk, id, JobFile::Ctl) => Some(Control::Job { disk, id }),
            _ => None,
        }
    }

    /// The point it is or belongs to.
    pub fn point(&self) -> Option<&PointKey> {
        match self {
            NodeKey::Point(point) | NodeKey::PointFile(point, _) | NodeKey::Inside(point, _) => {
                Some(point)
            }
            _ => None,
        }
    }
}

impl PointKind {
    /// The section that lists it.
    pub fn section(self) -> Section {
        match self {
            PointKind::Layer => Section::Layers,
            PointKind::External => Section::Snapshots,
            PointKind::Internal => Section::Internal,
            PointKind::Live => Section::Live,
            PointKind::Backup(kind) => Section::Backup(kind),
        }
    }
}

#[cfg(test)]
pub(crate) mod sample;
