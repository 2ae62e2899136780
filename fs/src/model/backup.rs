//! Backups as plain data: the manifest that lies beside each file, and what of it can be shown.
//! It knows no directory, no QEMU and no job's end.

use super::{GroupRecord, Layer, PointRecord};

/// What a person asked for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// A file that stands alone.
    Full,
    /// What was written since the backup before it.
    Incremental,
    /// What the active layer holds, on a copy of the layer that it stands on.
    Top,
    /// A file that stands alone, of the moment in which somebody says so.
    Mirror,
}

impl BackupKind {
    /// All of them, as listed.
    pub const ALL: [BackupKind; 4] = [
        BackupKind::Full,
        BackupKind::Incremental,
        BackupKind::Top,
        BackupKind::Mirror,
    ];

    /// The directory that lists them.
    pub fn name(self) -> &'static str {
        match self {
            BackupKind::Full => "full",
            BackupKind::Incremental => "incremental",
            BackupKind::Top => "top",
            BackupKind::Mirror => "mirror",
        }
    }
}

/// What is in a backup's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Copied {
    /// The whole disk.
    Full,
    /// What was written since the instant of the one before.
    Changes,
    /// What the active layer held.
    Top,
}

/// The backup that another one stands on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Previous {
    /// Its identity.
    pub id: String,
    /// Its name, and so its file's.
    pub name: String,
}

impl Previous {
    /// As others name it.
    pub fn of(manifest: &Manifest) -> Previous {
        Previous {
            id: manifest.id.clone(),
            name: manifest.name.clone(),
        }
    }
}

/// A file as it was when a backup was complete, whatever its inode: a copy that kept its time is the same.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Finished {
    /// Bytes.
    pub length: u64,
    /// When it was last written, in nanoseconds since 1970.
    pub modified: u64,
}

/// A layer below the active one as it was when it was copied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LayerState {
    /// Of the point that is in it; empty where it is not ours.
    pub point: String,
    /// Its inode.
    pub inode: u64,
    /// Its file; None where that does not tell whether it was written (a block device, an external data file).
    pub file: Option<Finished>,
}

/// What is written down beside a backup's file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Manifest {
    /// The layout; always 1.
    pub version: u32,
    /// Random, for ever: the backup's identity.
    pub id: String,
    /// What was asked for.
    pub kind: BackupKind,
    /// The name the user gave.
    pub name: String,
    /// The VM's name at that time.
    pub vm: String,
    /// The disk's name at that time.
    pub disk: String,
    /// The instant, RFC 3339 UTC.
    pub time: String,
    /// What is in the file.
    pub copied: Copied,
    /// Why it holds the whole disk, though less was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_full: Option<String>,
    /// What the file stands on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
    /// Where it is the copy of a layer, and not of the disk as the guest had it: that one, and those below it that are not
    /// ours and that nobody writes. While all of them are the same, so is what they show.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerState>,
    /// The dirty bitmap that marks what was written since this instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bitmap: Option<String>,
    /// The bitmap that marks the disk's end as long as nobody makes the disk smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_mark: Option<String>,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// The file, once it was complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<Finished>,
    /// Of the disk's content at that instant (`digest::measure`), once it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// As in a point's record.
    pub consistency: String,
    /// As in a point's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<u64>,
    /// As in a point's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce_error: Option<String>,
    /// The backup of all disks that it was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupRecord>,
    /// "10.0.2"
    pub qemu_version: String,
    /// The version of qmpfs that made it.
    pub qmpfs_version: String,
}

impl Manifest {
    /// What stands in the record of any point.
    fn point(&self) -> PointRecord {
        PointRecord {
            id: self.id.clone(),
            name: self.name.clone(),
            time: self.time.clone(),
            consistency: self.consistency.clone(),
            frozen_ms: self.frozen_ms,
            quiesce_error: self.quiesce_error.clone(),
            // it is found by its manifest, whatever its inode
            inode: 0,
            group: self.group.clone(),
        }
    }
}

/// How far a backup is.
#[derive(Debug, Clone)]
pub enum BackupStage {
    /// A job is at work on it, or has failed; it is shown in jobs/ under this id.
    Job(String),
    /// It is there, and can be read.
    Complete,
    /// Its manifest is there, but it cannot be read.
    Broken(String),
}

/// A backup, complete or not.
#[derive(Debug, Clone)]
pub struct Backup {
    /// What is written down.
    pub manifest: Manifest,
    /// The same, as a point says it.
    pub record: PointRecord,
    /// How far it is.
    pub stage: BackupStage,
    /// The files it is made of, base first, its own the last; none before it is complete.
    pub layers: Vec<Layer>,
    /// Why no further backup may stand on it: somebody has changed a file.
    pub doubt: Option<String>,
}

impl Backup {
    /// With nothing to read.
    pub fn new(manifest: Manifest, stage: BackupStage) -> Self {
        Backup {
            record: manifest.point(),
            manifest,
            stage,
            layers: Vec::new(),
            doubt: None,
        }
    }

    /// Whether there is something to read.
    pub fn is_complete(&self) -> bool {
        match self.stage {
            BackupStage::Complete => true,
            BackupStage::Job(_) | BackupStage::Broken(_) => false,
        }
    }

    /// The job that makes it, or failed to.
    pub fn job(&self) -> Option<&str> {
        match &self.stage {
            BackupStage::Job(id) => Some(id),
            BackupStage::Complete | BackupStage::Broken(_) => None,
        }
    }
}

/// A dirty bitmap of the active layer, as QEMU tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name, made fit for a directory entry.
    pub name: String,
    /// Its name in QEMU.
    pub tag: String,
    /// Bytes a bit stands for.
    pub granularity: u64,
    /// Bytes that are marked.
    pub count: u64,
    /// Whether it marks writes.
    pub recording: bool,
    /// Whether it is stored in the image when QEMU ends.
    pub persistent: bool,
    /// Whether a job has it.
    pub busy: bool,
    /// It was not stored at QEMU's last end, and can only be removed.
    pub inconsistent: bool,
    /// Of one of ours that has an end mark beside it: the bytes that one marks.
    pub end_mark: Option<u64>,
}
