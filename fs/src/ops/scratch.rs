//! The scratch file of an instant: an empty image into which a job of QEMU saves each old cluster before the
//! guest's write to it is done. A save that fails is an error of the guest's own write (measured:
//! docs/decisions), so the file has all the room it can ever need from the beginning.
//! It knows files, room, nodes and the job's end; when the instant is, and who reads it, it does not know.

use crate::errno::{Errno, Failure};
use crate::layer_file;
use crate::model::{Disk, FileId};
use crate::ops::blocking::blocking;
use crate::ops::engine::Engine;
use crate::ops::nodes;
use crate::ops::settle;
use crate::render::human;
use crate::sys;
use crate::view::written_by_someone;
use qmpbridge::command::{
    Backing, BlockdevAdd, BlockdevBackup, BlockdevCreateOptions, BlockdevDel, BlockdevOptions,
    Sync, TransactionAction,
};
use qmpbridge::{Bridge, Cancel, Error, JobId, JobStatus, NodeName};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The part of the clusters that tables take beside them: 8 bytes of L2 table and 2 of refcounts to
/// 64 KiB, twice that to be sure.
const TABLES: u64 = (64 << 10) / 20;
/// Header, L1 table, refcount table, and the tables that are begun.
const FIXED: u64 = 4 << 20;

/// How long a job may take to go: it waits for requests that are on their way.
const GO_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What belongs to a scratch file: on the host's disk, and in QEMU.
pub(super) struct Called {
    pub(super) file: String,
    /// What opens it.
    pub(super) node: NodeName,
    /// What opens its bytes.
    pub(super) file_node: NodeName,
    /// Formats it, and then saves into it.
    pub(super) job: JobId,
}

/// A scratch file that is there.
pub(super) struct Scratch {
    pub(super) path: PathBuf,
    pub(super) file: FileId,
    opened: File,
}

/// The most bytes that the old content of a whole disk can take.
fn room_for(virtual_size: u64) -> u64 {
    let clusters = virtual_size.saturating_add(64 << 10);
    clusters
        .saturating_add(clusters / TABLES)
        .saturating_add(FIXED)
}

/// Where the scratch files of a disk are.
pub(super) fn directory(engine: &Engine, disk: &Disk) -> Result<PathBuf, Failure> {
    if let Some(directory) = &engine.config.live.scratch_dir {
        return Ok(directory.clone());
    }
    let path = &disk.active_path;
    let beside = path.parent().filter(|_| path.is_file());
    beside.map(Path::to_owned).ok_or_else(|| {
        Failure::new(
            Errno::EOPNOTSUPP,
            format!("{} is no file that has room beside it", path.display()),
        )
        .next("name a directory with room for the whole disk: --scratch-dir DIR")
    })
}

/// Makes the file, empty, after seeing that there is room for it.
pub(super) async fn create(
    engine: &Engine,
    disk: &Disk,
    called: &Called,
) -> Result<Scratch, Failure> {
    let directory = directory(engine, disk)?;
    let room = room_for(disk.active.virtual_size);
    if let Some(limit) = engine
        .config
        .live
        .scratch_limit
        .filter(|limit| *limit < room)
    {
        return Err(no_room(
            disk,
            room,
            &format!("scratch_limit allows {}", human(limit)),
        )
        .next("mount with a larger scratch_limit"));
    }
    let free = layer_file::free_bytes(&directory)?;
    if free < room {
        let has = format!("{} has {}", directory.display(), human(free));
        return Err(no_room(disk, room, &has)
            .next("make room there, or name a directory that has it: --scratch-dir DIR"));
    }
    let (path, like) = (directory.join(&called.file), disk.active.path.clone());
    let made = path.clone();
    let opened = blocking(move || {
        let opened = layer_file::create_like(&made, &like)?;
        layer_file::mark_scratch(&made).inspect_err(|_| {
            // what failed is what the user must know
            let _ = std::fs::remove_file(&made);
        })?;
        Ok(opened)
    });
    let opened = opened.await?;
    let file = sys::file_id_of(&opened)
        .map_err(|error| Failure::io(format!("look at {}", path.display()), &error))?;
    Ok(Scratch { path, file, opened })
}

fn no_room(disk: &Disk, room: u64, but: &str) -> Failure {
    Failure::new(
        Errno::ENOSPC,
        format!(
            "an instant of disk '{}' may need {}, and {but}",
            disk.name,
            human(room)
        ),
    )
}

impl Scratch {
    /// Formats it, takes all its room, and opens it in QEMU, on `backing`.
    pub(super) async fn open(
        &self,
        engine: &Engine,
        bridge: &Bridge,
        (called, virtual_size): (&Called, u64),
        backing: Backing,
    ) -> Result<(), Failure> {
        if engine.sight(bridge).resolve(&self.path).is_none() {
            return Err(Failure::new(
                Errno::EOPNOTSUPP,
                format!("QEMU sees another file as {}", self.path.display()),
            )
            .next("name a directory that QEMU sees, too: --scratch-dir DIR"));
        }
        let file = called.file_node.clone();
        let options = BlockdevOptions::file(file.clone(), &self.path);
        bridge.run(BlockdevAdd(options)).await?;
        // without a backing name: nobody but this QEMU is to read it, and it is told what lies below
        let options = BlockdevCreateOptions::qcow2(file.clone(), virtual_size);
        nodes::create(bridge, called.job.clone(), options).await?;
        self.reserve(room_for(virtual_size)).await?;
        let mut options = BlockdevOptions::over("qcow2", called.node.clone(), file);
        options.backing = backing;
        bridge.run(BlockdevAdd(options)).await?;
        Ok(())
    }

    async fn reserve(&self, room: u64) -> Result<(), Failure> {
        let (path, opened) = (self.path.clone(), self.opened.try_clone());
        blocking(move || {
            let reserved = opened.and_then(|file| sys::reserve(&file, room));
            reserved.map_err(|error| {
                Failure::io(format!("take room for {}", path.display()), &error)
                    .next("name a directory on a filesystem that can promise room (ext4, xfs, btrfs, tmpfs): --scratch-dir DIR")
            })
        })
        .await
    }
}

impl Called {
    /// From the instant on, what is written over is saved.
    pub(super) fn save(&self, root: NodeName) -> TransactionAction {
        let (job, node) = (self.job.clone(), self.node.clone());
        TransactionAction::BlockdevBackup(BlockdevBackup::new(job, root, node, Sync::None))
    }

    /// Nothing is saved any more, and QEMU lets go of the file. Who reads the instant has ended. Doing it twice changes nothing.
    pub(super) async fn let_go(&self, bridge: &Bridge) -> Result<(), Failure> {
        end_job(bridge, &self.job).await?;
        close(bridge, [&self.node, &self.file_node]).await
    }
}

async fn end_job(bridge: &Bridge, id: &JobId) -> Result<(), Failure> {
    let began = Instant::now();
    let mut asked = false;
    loop {
        let jobs = bridge.jobs().await?;
        let Some(job) = jobs.into_iter().find(|job| job.id == *id) else {
            return Ok(());
        };
        if job.status == JobStatus::Concluded {
            bridge.dismiss_job(&job.id).await?;
            return Ok(());
        }
        if !asked {
            match bridge.cancel_job(&job.id, Cancel::Force).await {
                // it may be one that cannot be cancelled and ends by itself
                Ok(()) | Err(Error::Refused { .. }) => asked = true,
                Err(error) => return Err(error.into()),
            }
        }
        patience(began, "its job does not end").await?;
    }
}

/// Removes scratch files that no QEMU has open and no mount claims: those in whose names `digits_of` finds digits, and
/// which are marked.
pub(super) async fn sweep(
    engine: &Engine,
    digits_of: fn(&str) -> Option<&str>,
) -> Result<(), Failure> {
    let disks = engine.observe().await?;
    let directories = disks.iter().flat_map(|disk| directory(engine, disk));
    let directories: BTreeSet<PathBuf> = directories.collect();
    blocking(move || {
        let listed = directories.iter().flat_map(std::fs::read_dir);
        for entry in listed.flatten().flatten() {
            let name = entry.file_name();
            if let Some(digits) = name.to_str().and_then(digits_of)
                && let Ok(_claim) = layer_file::claim_kept(digits)
                && is_ours(&entry.path())
            {
                remove_unused(&entry.path());
            }
        }
        Ok(())
    })
    .await
}

fn is_ours(path: &Path) -> bool {
    let is_file = path.symlink_metadata().is_ok_and(|it| it.is_file());
    is_file && is_marked(path)
}

fn is_marked(path: &Path) -> bool {
    let marked = layer_file::is_scratch(path);
    if matches!(marked, Ok(false)) {
        tracing::warn!(path = %path.display(), "called as a scratch file, and not marked as one: it stays");
    }
    marked.unwrap_or_else(|failure| {
        tracing::warn!(%failure, path = %path.display(), "a file called as a scratch file stays");
        false
    })
}

/// Removes one whose QEMU is done with it. One that cannot be removed is told in the log.
pub(super) fn remove_unused(path: &Path) {
    let Ok(file) = sys::file_id(path) else { return };
    // another QEMU may have it: the mount of that one takes it down
    if !matches!(written_by_someone(path), Ok(false)) {
        return;
    }
    match settle::remove_file(path, file) {
        Ok(()) => tracing::debug!(path = %path.display(), "a scratch file goes"),
        Err(failure) => tracing::warn!(%failure, "a scratch file stays behind"),
    }
}

/// Closes those nodes that are there, in this order.
pub(super) async fn close(
    bridge: &Bridge,
    nodes: impl IntoIterator<Item = &NodeName>,
) -> Result<(), Failure> {
    let graph = bridge.graph().await?;
    for node_name in nodes {
        if graph.node(node_name).is_some() {
            let node_name = node_name.clone();
            bridge.run(BlockdevDel { node_name }).await?;
        }
    }
    Ok(())
}

/// A moment until the next look, unless too many have passed since `began`.
pub(super) async fn patience(began: Instant, what: &str) -> Result<(), Failure> {
    if began.elapsed() > GO_DEADLINE {
        return Err(Failure::new(Errno::ETIMEDOUT, what)
            .next("look whether QEMU hangs, and remove it again"));
    }
    tokio::time::sleep(LOOK_EVERY).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::room_for;

    #[test]
    fn there_is_room_for_every_cluster_and_its_tables() {
        for size in [0u64, 1, 512, 64 << 10, 40 << 20, 10 << 30, 8 << 40] {
            let clusters = size / (64 << 10) + 1;
            let tables = clusters.div_ceil(8192) * 2 + clusters.div_ceil(32768) * 2;
            assert!(
                room_for(size) >= (clusters + tables + 4) * (64 << 10),
                "{size}"
            );
        }
        assert!(room_for(u64::MAX) > 0);
    }
}
