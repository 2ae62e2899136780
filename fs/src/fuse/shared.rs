//! What all workers share: the engine's handle, the tables, and how a node's attributes come to
//! be. It decides nothing: names come from `tree`, texts from `render`, sizes from `sizes`.

use super::attr::Owner;
use super::handles::{Entry, Handles};
use super::kept::{KEPT, Kept};
use super::pages::Pages;
use super::passthrough::Passthrough;
use super::sizes::SizeCache;
use super::storage::Storage;
use super::sweeps::Sweeps;
use super::{NO_TTL, caller, inside};
use crate::errno::{Errno, Failure};
use crate::guest::{Guests, note, note_of_partly};
use crate::intent::Verbs;
use crate::model::Model;
use crate::ops::EngineHandle;
use crate::render::{Extra, estimated_sizes, instant, parse_rfc3339, text};
use crate::report::{Log, Stream};
use crate::tree::{
    Ids, Inside, NodeKey, PointFile, RootFile, checkpoint, checkpoint_link, children, exists,
    find_group, find_point, group_of, group_points, link_target, parent, path_of,
};
use fuser::{FileAttr, FileType, INodeNo};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// A view's attributes never change, but its first sizes may be an estimate.
pub(super) const VIEW_TTL: Duration = Duration::from_secs(1);

/// Whether a file's lines can be followed: then it has no text of its own.
pub(super) fn stream_of(key: &NodeKey) -> Option<Stream> {
    match key {
        NodeKey::RootFile(RootFile::Log) => Some(Stream::Log),
        NodeKey::RootFile(RootFile::Events) => Some(Stream::Events),
        _ => None,
    }
}

/// Attributes and how long the kernel may keep them.
pub(super) type Attributes = Option<(FileAttr, Duration)>;

/// The state of a mount, as the workers see it.
pub(super) struct Shared {
    pub(super) engine: EngineHandle,
    pub(super) log: Arc<Log>,
    pub(super) verbs: Verbs,
    pub(super) owner: Owner,
    pub(super) mountpoint: PathBuf,
    pub(super) mounted_at: SystemTime,
    pub(super) ids: Ids,
    pub(super) kept: Arc<Kept>,
    pub(super) handles: Handles,
    pub(super) guests: Guests,
    pub(super) sizes: SizeCache,
    pub(super) storage: Storage,
    pub(super) sweeps: Sweeps,
    pub(super) pages: Pages,
    pub(super) passthrough: Option<Passthrough>,
    /// The kernel's end of the mount, for answers that fuser cannot write; set before any worker.
    pub(super) device: OnceLock<File>,
}

impl Shared {
    /// The descriptor that all requests are read from.
    pub(super) fn device(&self) -> &File {
        self.device
            .get()
            .expect("it is set before the first worker starts")
    }

    /// What the inode stands for. One that we never gave out is a kernel's mistake or ours.
    pub(super) fn key(&self, ino: INodeNo) -> Result<NodeKey, Failure> {
        self.ids
            .key(ino.0)
            .ok_or_else(|| Failure::new(Errno::ESTALE, "no such inode"))
    }

    /// The text of a file, now.
    pub(super) fn text(&self, model: &Model, key: &NodeKey) -> Option<String> {
        match key {
            NodeKey::Inside(point, Inside::Note(number)) => {
                let survey = self.guests.known(point)?;
                let path = self.whole_path(model, &NodeKey::Point(point.clone()));
                let trouble = |number| self.guests.trouble(point, number);
                return note(&survey, *number, &path, trouble);
            }
            NodeKey::Inside(point, Inside::VolumeNote(name)) => {
                let survey = self.guests.known(point)?;
                let partly = survey.partly.iter().find(|it| it.name == *name)?;
                let group = group_of(model, &find_point(model, point)?).map(|group| group.key());
                let whole = group.filter(|group| !group_points(model, group).is_empty());
                let whole = whole.map(|group| self.whole_path(model, &NodeKey::Group(group)));
                return Some(note_of_partly(partly, &self.mountpoint, whole.as_deref()));
            }
            NodeKey::GroupNote(group, name) => {
                let whole = self.guests.known_whole(&self.guests.home(group)?)?;
                let partly = whole.partly.iter().find(|it| it.name == *name)?;
                return Some(note_of_partly(partly, &self.mountpoint, None));
            }
            _ => {}
        }
        let sizes = key.point().and_then(|point| {
            let found = find_point(model, point)?;
            self.sizes.known(point, estimated_sizes(&found))
        });
        let filesystems = match key {
            NodeKey::GroupJson(group) => self.guests.described_together(group),
            key => key.point().and_then(|point| self.guests.described(point)),
        };
        let plan = |point: &_| self.engine.plan_text(point);
        let extra = Extra {
            log: &self.log,
            mountpoint: &self.mountpoint,
            verbs: self.verbs,
            plan: &plan,
            sizes,
            filesystems,
            caches: self.engine.cache_sizes(),
        };
        text(model, key, &extra)
    }

    /// The path of what is in the tree, from the host's root on.
    fn whole_path(&self, model: &Model, key: &NodeKey) -> PathBuf {
        self.mountpoint
            .join(path_of(model, key).trim_start_matches('/'))
    }

    /// Finds out the attributes of `key` and hands them to `done`, at once or, for a view that
    /// was never measured, a little later and from another thread.
    pub(super) fn attributes(
        self: &Arc<Self>,
        model: &Model,
        key: &NodeKey,
        done: impl FnOnce(Attributes) + Send + 'static,
    ) {
        if let NodeKey::Inside(point, Inside::Partition(number)) = key {
            return inside::partition(self, point, *number, done);
        }
        let NodeKey::PointFile(point, PointFile::DiskRaw) = key else {
            let attr = self.plain_attributes(model, key);
            let ttl = attr.map_or(NO_TTL, |attr| self.keeps(model, key, attr.ino.0));
            return done(attr.map(|attr| (attr, ttl)));
        };
        let Some(found) = find_point(model, point) else {
            return done(None);
        };
        let time = instant(&found).unwrap_or(self.mounted_at);
        let (ino, owner) = (self.ids.number(key), self.owner);
        let answer = Box::new(move |sizes| done(Some((owner.view(ino, sizes, time), VIEW_TTL))));
        self.sizes.ask(point, estimated_sizes(&found), answer);
    }

    /// How long the kernel may keep the attributes that `key` has in `model`.
    fn keeps(&self, model: &Model, key: &NodeKey, ino: u64) -> Duration {
        if !key.is_dir() {
            return NO_TTL;
        }
        self.kept.tell(ino);
        // a model that was published in between has made the kernel ask again already, but not for this one
        let is_current = std::ptr::eq(Arc::as_ptr(&self.engine.model()), model);
        if is_current { KEPT } else { NO_TTL }
    }

    /// When what is shown under a key came to be, as well as it is known.
    pub(super) fn time_of(&self, model: &Model, key: &NodeKey) -> SystemTime {
        let time = match key {
            NodeKey::RootFile(RootFile::Log) => self.log.lines().modified(),
            NodeKey::RootFile(RootFile::Events) => self.log.events().lines().modified(),
            // Each read of it is a new one.
            NodeKey::RootFile(RootFile::Metrics) => Some(SystemTime::now()),
            NodeKey::Point(point) | NodeKey::PointFile(point, _) | NodeKey::Inside(point, _) => {
                find_point(model, point).as_ref().and_then(instant)
            }
            NodeKey::Group(id)
            | NodeKey::GroupJson(id)
            | NodeKey::GroupLink(id, _)
            | NodeKey::GroupFiles(id)
            | NodeKey::GroupNote(id, _) => {
                find_group(model, id).and_then(|group| parse_rfc3339(&group.point.time))
            }
            NodeKey::Checkpoint(name)
            | NodeKey::CheckpointJson(name)
            | NodeKey::CheckpointLink(name, _) => checkpoint(model, name).map(|found| found.time),
            NodeKey::Root
            | NodeKey::Groups(_)
            | NodeKey::Checkpoints
            | NodeKey::RootFile(
                RootFile::VmJson | RootFile::Readme | RootFile::Rollback | RootFile::Wait,
            )
            | NodeKey::Disks
            | NodeKey::Vm(_)
            | NodeKey::VmDisks(_)
            | NodeKey::Disk(_)
            | NodeKey::DiskFile(..)
            | NodeKey::Section(..)
            | NodeKey::Backups(_)
            | NodeKey::Bitmap(..)
            | NodeKey::Job(..)
            | NodeKey::JobFile(..) => None,
        };
        time.unwrap_or(self.mounted_at)
    }

    /// The attributes of anything but a view.
    fn plain_attributes(&self, model: &Model, key: &NodeKey) -> Option<FileAttr> {
        if !exists(model, key) {
            return None;
        }
        let ino = self.ids.number(key);
        let time = self.time_of(model, key);
        if key.is_dir() {
            let subdirectories = children(model, key)
                .iter()
                .filter(|(_, _, is_dir)| *is_dir)
                .count();
            return Some(self.owner.directory(ino, subdirectories, time));
        }
        let target = match key {
            NodeKey::GroupLink(group, disk) => Some(link_target(model, group, disk)?),
            NodeKey::CheckpointLink(name, disk) => Some(checkpoint_link(model, name, disk)?),
            _ => None,
        };
        if let Some(target) = target {
            return Some(self.owner.link(ino, target.len(), time));
        }
        // A `wait` file has no text before it is read.
        let length = match stream_of(key) {
            Some(stream) => self.log.stream(stream).length(),
            None => self.text(model, key).map_or(0, |text| text.len() as u64),
        };
        Some(if key.control().is_some() && !self.verbs.read_only {
            self.owner.control(ino, length, time)
        } else {
            self.owner.text(ino, length, time)
        })
    }

    /// The names of a directory, `.` and `..` first.
    pub(super) fn entries(&self, model: &Model, directory: &NodeKey) -> Vec<Entry> {
        let entry = |name: String, key: &NodeKey| {
            let kind = match key {
                NodeKey::GroupLink(..) | NodeKey::CheckpointLink(..) => FileType::Symlink,
                key if key.is_dir() => FileType::Directory,
                _ => FileType::RegularFile,
            };
            Entry {
                ino: self.ids.number(key),
                kind,
                name: name.into(),
            }
        };
        self.ids.tidy(|key| exists(model, key));
        let dots = [
            entry(".".to_owned(), directory),
            entry("..".to_owned(), &parent(directory)),
        ];
        let names = children(model, directory)
            .into_iter()
            .map(|(name, key, _)| entry(name, &key));
        dots.into_iter().chain(names).collect()
    }

    /// Writes a refused verb down.
    pub(super) fn refused(&self, verb: &str, path: &str, pid: u32, failure: Failure) -> Failure {
        self.log.record(
            verb,
            path,
            caller::process_of(pid),
            &Err(failure.clone()),
            Duration::ZERO,
        );
        failure
    }

    /// The path of `name` in `directory`, for the log.
    pub(super) fn path(&self, model: &Model, directory: &NodeKey, name: &str) -> String {
        match directory {
            NodeKey::Root => format!("/{name}"),
            other => format!("{}/{name}", path_of(model, other)),
        }
    }
}
