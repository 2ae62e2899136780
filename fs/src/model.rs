//! What exists at one moment: the VM, its disks, their chains, points and jobs, as plain data.
//! Built by `ops::refresh` from QEMU's graph (or by `offline` from image headers), replaced
//! whole, never changed in place. It knows no I/O, no FUSE and no QMP command.

mod live;
mod state;

pub use live::Live;
pub use state::{Role, StateJob, StatePart, StateVerb};
mod backup;

pub use backup::{Backup, BackupKind, BackupStage, Bitmap, Copied, Finished, Manifest, Previous};

use qmpbridge::NodeName;
use std::collections::BTreeMap;
use std::path::PathBuf;
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

/// What vm.json says.
#[derive(Debug, Clone, Default)]
pub struct Vm {
    /// The guest's name, or the source's when it has none.
    pub name: String,
    /// Its disks are image files that nobody but we have open: there is no guest to be disturbed.
    pub switched_off: bool,
    /// QEMU's run state ("running", "paused"); None for a storage daemon or a switched-off VM.
    pub run_state: Option<String>,
    /// "10.0.2"; empty without a QEMU.
    pub qemu_version: String,
    /// What was mounted, as the user named it.
    pub source: String,
    /// Whether QEMU answers.
    pub connection: ConnectionState,
    /// What can be done here: "snapshots", "internal", ...
    pub capabilities: Vec<String>,
    /// Which verb removes points.
    pub merge: MergePolicy,
    /// Whether the guest's filesystems are frozen for the instant of a point.
    pub quiesce: Quiesce,
    /// The guest agent, where one was named.
    pub agent: Option<Agent>,
    /// Who else believes to know the VM's disks.
    pub manager: Option<Manager>,
    /// A checkpoint is being made, loaded or removed.
    pub state_job: Option<StateJob>,
}

/// `-o quiesce=`: what a point asks of the guest agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quiesce {
    /// Nothing.
    #[default]
    Off,
    /// To freeze the guest's filesystems; if that fails the point is made without.
    Try,
    /// The same; if that fails no point is made.
    Require,
}

/// The guest agent, as it was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its socket.
    pub address: String,
    /// Whether it answered.
    pub state: AgentState,
}

/// How the guest agent was when it was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AgentState {
    /// It has not been asked yet.
    #[default]
    Unknown,
    /// It answered, and can freeze.
    Answers {
        /// Its own version.
        version: String,
    },
    /// It did not, or cannot freeze, with the reason.
    Silent(String),
}

/// A program that keeps books of its own about a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Its nodes are called `libvirt-N-format`, `libvirt-N-storage`.
    Libvirt,
}

impl Manager {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Manager::Libvirt => "libvirt",
        }
    }
}

/// `-o merge=`: which verb a user prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MergePolicy {
    /// Whichever copies less.
    #[default]
    Auto,
    /// Only block-stream.
    Stream,
    /// Only block-commit.
    Commit,
}

/// Whether there is a QEMU behind the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ConnectionState {
    /// It answers.
    #[default]
    Up,
    /// It went away, with the reason.
    Down(String),
    /// There is none: images read as they are.
    Offline,
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
}

impl Disk {
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
    /// The point's name.
    pub fn name(&self) -> &str {
        self.layer.record.as_ref().map_or("", |record| &record.name)
    }
}

/// What is kept in the extended attribute of a sealed file.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PointRecord {
    /// Random, for ever: the point's identity.
    pub id: String,
    /// The name the user gave.
    pub name: String,
    /// The instant, RFC 3339 UTC.
    pub time: String,
    /// "crash": as after a power cut; "filesystem": the guest's filesystems were frozen.
    pub consistency: String,
    /// How long they were, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<u64>,
    /// Why they were not, though that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce_error: Option<String>,
    /// The inode it was written for; a copy of the file has another and is not ours.
    pub inode: u64,
    /// The snapshot of all disks that it was taken with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupRecord>,
}

/// What a snapshot of all disks writes down on each of its points.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GroupRecord {
    /// Random, for ever: the group's identity.
    pub id: String,
    /// Its points: what the disk was called then, and the id of the point's record.
    pub members: BTreeMap<String, String>,
    /// The disks that could not take part, and why.
    pub missing: BTreeMap<String, String>,
}

/// Longest group in a record, as JSON. On ext4 the attributes of a file have 4 KiB together, and
/// while a merge runs another record stands beside the file's own.
const GROUP_MAX: usize = 640;

impl GroupRecord {
    /// The same, short enough for a record: of a crowd of disks the reasons are left out first, then
    /// the names of the missing, then of members (which are found by their own records; that one of
    /// them is gone cannot be told then).
    pub fn fitted(mut self) -> Self {
        let too_long =
            |group: &Self| serde_json::to_string(group).map_or(0, |text| text.len()) > GROUP_MAX;
        if too_long(&self) {
            self.missing.values_mut().for_each(String::clear);
        }
        while too_long(&self)
            && self
                .missing
                .pop_last()
                .or_else(|| self.members.pop_last())
                .is_some()
        {}
        self
    }
}

/// What is kept about an internal snapshot beside the image's own table.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InternalRecord {
    /// Its id in the table.
    pub id: String,
    /// Its time in the table, in nanoseconds since 1970: another one of that id has another.
    pub time: u64,
    /// As in [`PointRecord`].
    pub consistency: String,
    /// As in [`PointRecord`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<u64>,
    /// As in [`PointRecord`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce_error: Option<String>,
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

/// A job as jobs/ID shows it.
#[derive(Debug, Clone)]
pub struct Job {
    /// QEMU's job id, the directory's name.
    pub id: String,
    /// "stream", "commit" or "backup"; of others' jobs whatever QEMU calls it.
    pub verb: String,
    /// The point it makes or removes; empty for others' jobs.
    pub point: String,
    /// QEMU's words: created, running, ready, concluded...; or queued, before QEMU knows of it.
    pub state: String,
    /// Bytes done and to do.
    pub progress: (u64, u64),
    /// Bytes a second, over the last seconds.
    pub rate: Option<u64>,
    /// Bytes a second that a person allows.
    pub limit: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Job {
    /// Whether another monitor began it: it is shown, and never touched.
    pub fn by_others(&self) -> bool {
        !qmpbridge::JobId::new(self.id.as_str()).is_ok_and(|id| id.is_ours())
    }

    /// Whether its end leaves everything as it was. A commit has changed what it writes to.
    pub fn can_be_cancelled(&self) -> bool {
        matches!(self.verb.as_str(), "stream" | "backup")
    }

    /// Whether work is still to come.
    pub fn ended(&self) -> bool {
        self.state == "concluded" || self.state == "failed"
    }
}

#[cfg(test)]
mod tests {
    use super::{GROUP_MAX, GroupRecord};

    fn group(members: usize, missing: usize) -> GroupRecord {
        GroupRecord {
            id: "0123456789ab".into(),
            members: (0..members)
                .map(|n| (format!("disk{n}"), format!("{n:012x}")))
                .collect(),
            missing: (0..missing)
                .map(|n| (format!("raw{n}"), "it is raw ".repeat(20)))
                .collect(),
        }
    }

    #[test]
    fn a_crowd_of_disks_fits_into_an_attribute() {
        assert_eq!(group(3, 1).fitted(), group(3, 1));
        let short = group(3, 5).fitted();
        assert_eq!(short.missing.len(), 5);
        assert!(short.missing.values().all(String::is_empty));
        for crowd in [group(20, 200), group(200, 200), group(3, 1000)] {
            let fitted = crowd.clone().fitted();
            let text = serde_json::to_string(&fitted).expect("it has string keys");
            assert!(text.len() <= GROUP_MAX, "{}", text.len());
            assert_eq!(fitted.id, crowd.id);
            assert!(!fitted.members.is_empty());
        }
    }

    #[test]
    fn records_without_a_group_are_read() {
        let old = r#"{"id":"1","name":"a","time":"","consistency":"crash","inode":7,"version":1}"#;
        let record: super::PointRecord = serde_json::from_str(old).expect("as it was written");
        assert_eq!(record.group, None);
        let text = serde_json::to_string(&record).expect("it has string keys");
        assert!(!text.contains("group"), "{text}");
    }
}
