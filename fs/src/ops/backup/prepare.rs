//! What a backup needs before its instant: its plan, its journal, its file and nodes, and room. One
//! disk; a failure leaves nothing behind.

use super::fleece::{self, Fleece};
use super::plan::{self, Beneath, Now, Plan};
use super::room::Room;
use super::target::Source;
use super::{Asked, Making, NEEDS, below, end_mark, mirror, target, undo};
use crate::backups::Unfinished;
use crate::backups::{self, Journal};
use crate::errno::{Errno, Failure};
use crate::model::{BackupKind, Copied, Disk, Format, Layer, Manifest, Previous};
use crate::ops::blocking::blocking;
use crate::ops::check;
use crate::ops::engine::{DiskGuard, Engine};
use crate::ops::shelf;
use qmpbridge::{Bridge, JobId, Node, NodeName};

/// What is ready for its instant.
pub(super) struct Prepared {
    pub(super) disk: Disk,
    pub(super) root: NodeName,
    pub(super) target: NodeName,
    pub(super) plan: Plan,
    pub(super) fleece: Option<Fleece>,
    /// Whether the bitmap can be stored in the image; None where there is none.
    pub(super) bitmap: Option<Persistence>,
    /// The node whose bitmap marks the disk's end.
    pub(super) end_mark: Option<NodeName>,
    pub(super) making: Making,
}

/// Whether a dirty bitmap outlives QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    Stored,
    InMemory,
}

/// What kind of job it is.
pub(super) fn job_word(kind: BackupKind) -> &'static str {
    match kind {
        BackupKind::Full | BackupKind::Incremental | BackupKind::Top => "backup",
        BackupKind::Mirror => "mirror",
    }
}

/// The job that makes a backup.
pub(super) fn job_id(kind: BackupKind, id: &str) -> Result<JobId, Failure> {
    Ok(JobId::new(format!("qmpfs-{}-{id}", job_word(kind)))?)
}

/// All that can be done before the instant. A failure leaves nothing behind.
pub(super) async fn prepare(
    engine: &Engine,
    bridge: &Bridge,
    guard: DiskGuard,
    asked: &Asked<'_>,
    id: String,
) -> Result<Prepared, Failure> {
    let Asked { kind, name, .. } = *asked;
    let more: &[&str] = match kind {
        BackupKind::Full | BackupKind::Incremental | BackupKind::Top => &[],
        BackupKind::Mirror => &mirror::NEEDS,
    };
    for needs in NEEDS.iter().chain(more) {
        if !bridge.supports(needs) {
            return Err(qmpbridge::Error::TooOld { needs }.into());
        }
    }
    if kind == BackupKind::Mirror {
        mirror::suits(engine.config.quiesce)?;
    }
    let disk = engine.observe_disk(&guard).await?;
    let root = check::root_of(&disk)?;
    let bitmap = match kind {
        BackupKind::Full | BackupKind::Incremental | BackupKind::Top => {
            persistence(bridge, &root).await?
        }
        // nothing begins at its instant
        BackupKind::Mirror => None,
    };
    let place = engine.place_of(guard.name()).await?;
    let claim = shelf::claim(engine, &place).await?;
    let size = disk.active.virtual_size;
    let (looked_at, like, wanted) = (place.clone(), disk.active_path.clone(), name.to_owned());
    let unnamed = engine.unnamed().await?;
    let listing = blocking(move || {
        looked_at.make(&like)?;
        if let Some(unnamed) = unnamed {
            unnamed.take_name()?;
        }
        if !looked_at.is_free(&wanted)? {
            return Err(Failure::new(
                Errno::EEXIST,
                format!(
                    "{} exists, is on its way, or something still stands on one of that name",
                    looked_at.file(&wanted).display()
                ),
            )
            .next("choose another name"));
        }
        Ok(backups::list(&looked_at))
    })
    .await?;
    let bitmaps_below = bitmaps_below(bridge, &disk).await?;
    let beneath = match kind {
        BackupKind::Top => below::beneath(&disk).await?,
        // they stand on no layer, and its headers need not be read
        BackupKind::Full | BackupKind::Incremental | BackupKind::Mirror => Beneath::Nothing,
    };
    let now = Now {
        bitmaps: &disk.bitmaps,
        below: &bitmaps_below,
        virtual_size: size,
        beneath: &beneath,
    };
    let plan = plan::choose(kind, &listing.backups, &now);
    let tag = bitmap.map(|_| plan::bitmap_name(&id));
    let job = job_id(kind, &id)?;
    let manifest = Manifest {
        version: 1,
        kind,
        name: name.to_owned(),
        vm: engine.vm_name().await?,
        disk: disk.name.clone(),
        time: crate::render::now(),
        copied: plan.copied,
        why_full: plan.why_full.clone(),
        previous: plan.previous.clone(),
        layers: Vec::new(),
        end_mark: tag.as_deref().map(plan::end_mark_name),
        bitmap: tag,
        virtual_size: size,
        file: None,
        digest: None,
        consistency: "crash".into(),
        frozen_ms: None,
        quiesce_error: None,
        group: asked.group.clone(),
        qemu_version: bridge.version().to_string(),
        qmpfs_version: env!("CARGO_PKG_VERSION").into(),
        id,
    };
    let mut journal = Journal::new(job.as_str(), manifest);
    if let Some(scratch) = fleece::scratch(engine, kind, &disk, &journal.manifest.id)? {
        journal.set_scratch(scratch);
    }
    let kept = fleece::claim(&journal)?;
    if let (Copied::Top, None, Beneath::Layers(layers)) = (plan.copied, &plan.previous, beneath) {
        let below = below::manifest(&journal.manifest, &place, &disk, layers).await?;
        journal.manifest.previous = Some(Previous::of(&below));
        journal.below = Some(below);
    }
    let mut making = Making {
        guard,
        journal,
        place,
        job,
        room: None,
        below_room: None,
        _claim: claim,
        _kept: kept,
    };
    let made = make(engine, bridge, &mut making, (&disk, &root), &plan).await;
    match made {
        Ok((target, end_mark, fleece)) => Ok(Prepared {
            disk,
            root,
            target,
            plan,
            fleece,
            bitmap,
            end_mark,
            making,
        }),
        Err(failure) => {
            if failure.outcome_known() {
                undo(engine, bridge, &making).await;
            } else {
                engine.settle_later(making.guard.name());
            }
            Err(failure)
        }
    }
}

/// All files, nodes and room.
async fn make(
    engine: &Engine,
    bridge: &Bridge,
    making: &mut Making,
    (disk, root): (&Disk, &NodeName),
    plan: &Plan,
) -> Result<(NodeName, Option<NodeName>, Option<Fleece>), Failure> {
    let target = make_target(bridge, making, disk, plan).await?;
    let end_mark = mark_end(engine, bridge, making).await?;
    let fleece = fleece::prepare(engine, bridge, (disk, root), &making.journal).await?;
    Ok((target, end_mark, fleece))
}

/// The data that layers may hold together.
pub(super) fn data_in<'a>(layers: impl Iterator<Item = &'a Layer>) -> u64 {
    layers.fold(0, |sum, layer| {
        sum.saturating_add(match layer.format {
            Format::Qcow2 | Format::Raw => layer.allocated_size,
            Format::Other(_) => layer.virtual_size,
        })
    })
}

/// The names of dirty bitmaps that layers below the active one have.
async fn bitmaps_below(bridge: &Bridge, disk: &Disk) -> Result<Vec<String>, Failure> {
    let graph = bridge.graph().await?;
    let nodes = disk.layers.iter().filter_map(|layer| layer.node.as_ref());
    let bitmaps = nodes
        .filter_map(|node| graph.node(node))
        .flat_map(|node| &node.dirty_bitmaps);
    Ok(bitmaps.filter_map(|bitmap| bitmap.name.clone()).collect())
}

/// What the end mark is taken from. A QEMU that cannot make it (a build without its drivers) makes none: then a disk that was
/// smaller in between is not noticed.
async fn mark_end(
    engine: &Engine,
    bridge: &Bridge,
    making: &mut Making,
) -> Result<Option<NodeName>, Failure> {
    let Manifest {
        id, virtual_size, ..
    } = making.journal.manifest.clone();
    if making.journal.manifest.end_mark.is_none() {
        return Ok(None);
    }
    match end_mark::make(bridge, &id, virtual_size).await {
        Ok(node) => Ok(Some(node)),
        Err(failure) if failure.outcome_known() => {
            engine.report_once(&format!(
                "backups of this QEMU do not notice that a disk was made smaller and larger again: {failure}"
            ));
            end_mark::clear(bridge, &bridge.graph().await?, &id).await?;
            making.journal.manifest.end_mark = None;
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// Whether a bitmap of that node can be stored; None where there can be none.
async fn persistence(bridge: &Bridge, root: &NodeName) -> Result<Option<Persistence>, Failure> {
    let graph = bridge.graph().await?;
    let node = graph.node(root).filter(|node| !node.read_only);
    Ok(node.map(persistence_of))
}

pub(super) fn persistence_of(node: &Node) -> Persistence {
    let compat = node.format_specific.get("compat");
    match compat.and_then(serde_json::Value::as_str) {
        Some("1.1") if node.driver == "qcow2" => Persistence::Stored,
        Some(_) | None => Persistence::InMemory,
    }
}

/// The journal, the file, its nodes, and room for what is expected.
async fn make_target(
    bridge: &Bridge,
    making: &mut Making,
    disk: &Disk,
    plan: &Plan,
) -> Result<NodeName, Failure> {
    let Unfinished { id, path } = making.journal.own(&making.place);
    let (journal, place, like) = (
        making.journal.clone(),
        making.place.clone(),
        disk.active_path.clone(),
    );
    let made = path.clone();
    blocking(move || {
        journal.write(&place)?;
        place.create(&made, &like).map(drop)
    })
    .await?;
    let size = disk.active.virtual_size;
    let previous = making.journal.manifest.previous.as_ref();
    let source = match making.journal.scratch {
        Some(_) => Source::Instant,
        None => Source::Disk,
    };
    let target = target::open(bridge, &path, &id, size, previous, source).await?;
    let expected = match plan.copied {
        Copied::Changes => plan.marked,
        Copied::Top => disk.active.allocated_size,
        Copied::Full => data_in(disk.chain()),
    };
    making.room = Some(blocking(move || Room::take(&path, expected, size)).await?);
    making.below_room = below::prepare(bridge, making, disk).await?;
    Ok(target)
}
