//! From QEMU's graph to disks: which roots are disks, what they are called, which file each layer
//! is, and what we wrote down about it. Reads names, inodes and extended attributes of the layers'
//! files; changes nothing.

use super::command_line::CommandLine;
use super::sight::Sight;
use super::{backup, carried, live, served};
use crate::backups;
use crate::layer_file;
use crate::model::{
    Bitmap, Disk, FileId, Format, Internal, Job, Layer, Manager, Role, StatePart, Tuning,
};
use crate::sys;
use crate::tree::{first_free, fit_name, name_internals};
use qmpbridge::graph::RootKind;
use qmpbridge::{BlockGraph, JobId, JobInfo, Node, NodeName, Root};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The devices of `-drive if=pflash` and `-machine pflash0=`.
const FLASH: &str = "/machine/system.flash";
/// The disks of a graph, sorted by name.
pub(super) fn disks(graph: &BlockGraph, sight: &Sight) -> Vec<Disk> {
    let line = CommandLine::of(sight.pid);
    let mut by_name: BTreeMap<String, Disk> = BTreeMap::new();
    let mut roots = graph.roots();
    roots.sort_by_key(|root| root.kind == RootKind::Unused);
    let mut seen: Vec<(RootKind, Disk)> = Vec::new();
    for (place, root) in roots.iter().enumerate() {
        let Some(mut disk) = disk(graph, root, sight, line.as_ref()) else {
            continue;
        };
        disk.state_part.place = place;
        // in the middle of a seal, or after a pivot, a node that nobody uses stands beside the
        // disk it was part of
        let twin = seen
            .iter()
            .position(|(_, other)| other.active_path == disk.active_path)
            .filter(|_| root.kind == RootKind::Unused);
        match twin {
            Some(twin)
                if seen[twin].0 == RootKind::Unused
                    && fit_of_active(graph, &disk) > fit_of_active(graph, &seen[twin].1) =>
            {
                seen[twin].1 = disk;
            }
            Some(_) => {}
            None => seen.push((root.kind, disk)),
        }
    }
    for (_, mut disk) in seen {
        disk.name = first_free(&disk.name, '-', |name| by_name.contains_key(name));
        by_name.insert(disk.name.clone(), disk);
    }
    by_name.into_values().collect()
}

/// How well a node that nobody uses fits what the VM would boot, of several on names of one disk: what QEMU opened under a
/// hidden name is what D became last; a node that was opened as D before that has another file by now. An overlay that does
/// not stand on anything yet is no disk before it does.
fn fit_of_active(graph: &BlockGraph, disk: &Disk) -> u8 {
    let top = disk.root.as_ref().and_then(|root| graph.skip_filters(root));
    if top.is_some_and(|top| top.backing_filename.is_some()) && disk.layers.is_empty() {
        return 0;
    }
    let boots = sys::file_id(&disk.active_path).ok();
    match disk.active.file.is_some() && disk.active.file == boots {
        true if disk.active.path != disk.active_path => 3,
        true => 2,
        false => 1,
    }
}

fn disk(
    graph: &BlockGraph,
    root: &Root,
    sight: &Sight,
    line: Option<&CommandLine>,
) -> Option<Disk> {
    let exports = &root.export_ids;
    let is_view =
        matches!(root.kind, RootKind::Export) && exports.iter().all(|id| served::is_view(id));
    let is_of_backups = backup::is_end_mark_node(&root.node) || backup::is_fleece_node(&root.node);
    if live::is_scratch(&root.node) || is_of_backups || is_view {
        return None;
    }
    let chain = graph.chain(&root.node);
    let top = *chain.first()?;
    let active = layer(graph, top, sight);
    let active_path =
        layer_file::active_of_alias(&active.path).unwrap_or_else(|| active.path.clone());
    let name = disk_name(root, top, &active_path, sight)?;
    let mut layers: Vec<Layer> = chain
        .iter()
        .skip(1)
        .rev()
        .map(|node| layer(graph, node, sight))
        .collect();
    unsee_twins(&mut layers, active.file);
    layer_file::name_foreign(&active_path, &mut layers);
    let mut internals = Vec::new();
    for (index, node) in chain.iter().rev().enumerate() {
        let layer = (index + 1 < chain.len()).then_some(index);
        if node.snapshots.is_empty() {
            continue;
        }
        let records = layer_file::read_internals(&layers.get(index).unwrap_or(&active).path);
        internals.extend(
            node.snapshots
                .iter()
                .map(|snapshot| internal(snapshot, node.virtual_size, layer).with_record(&records)),
        );
    }
    name_internals(&mut internals);
    let protocol = top.file.as_ref().and_then(|file| graph.node(file));
    let mut disk = Disk {
        name,
        root: Some(root.node.clone()),
        no_snapshots: no_snapshots(root, top, &active, sight),
        active_path,
        active,
        layers,
        internals,
        lives: Vec::new(),
        backups: Vec::new(),
        bitmaps: bitmaps(top),
        jobs: Vec::new(),
        tuning: Tuning {
            direct: top.cache.direct,
            no_flush: top.cache.no_flush,
            file_direct: protocol.is_some_and(|node| node.cache.direct),
            file_no_flush: protocol.is_some_and(|node| node.cache.no_flush),
            filtered: !root.filters_above.is_empty(),
            detect_zeroes: Some(top.detect_zeroes.clone()).filter(|mode| mode != "off"),
            exported: matches!(root.kind, RootKind::Export),
            unplugged: matches!(root.kind, RootKind::Unused) && sight.embedded.is_empty(),
            replaced: false,
        },
        branches: Vec::new(),
        no_overlay: None,
        assumed: Vec::new(),
        state_part: state_part(root, top),
    };
    disk.assumed = carried::for_disk(&disk, line).1;
    if disk.no_snapshots.is_none() && is_replaced(&disk, sight) {
        disk.tuning.replaced = true;
        disk.no_snapshots = Some(format!(
            "{} is not the file that QEMU has open: somebody renamed or replaced it, and a restart would boot what is there now; give the open one its name back before the VM is switched off (ls -l /proc/{}/fd)",
            disk.active.path.display(),
            sight.pid.unwrap_or_default()
        ));
    }
    if disk.no_snapshots.is_none() && line.is_some_and(|line| carried::copies_on_read(&disk, line))
    {
        disk.no_snapshots = Some("the drive has copy-on-read=on, which keeps QEMU from sealing it; start the VM without that".into());
    }
    if line.is_some_and(|line| carried::names_its_backing(&disk, line)) {
        disk.no_overlay = Some(format!(
            "the VM's command line says what {} stands on (backing=), and after a restart that would be so again, past the snapshot; start the VM without that: the header says it",
            disk.active_path.display()
        ));
    }
    if disk.no_snapshots.is_none() {
        disk.no_snapshots = chain
            .iter()
            .find_map(|node| named_beside_a_link(node, sight));
    }
    disk.branches = crate::offline::branches(&disk);
    Some(disk)
}

/// Whether the name by which QEMU has opened the active layer leads to another file by now.
fn is_replaced(disk: &Disk, sight: &Sight) -> bool {
    let file = disk.active.file;
    file.and_then(|file| sight.has_open(file)) == Some(false)
}

/// What the disk is to a checkpoint; its place is not known here.
fn state_part(root: &Root, top: &Node) -> StatePart {
    let of_the_board = |qdev: &str| qdev.starts_with(FLASH);
    let role = match (
        root.qdev.as_deref().is_some_and(of_the_board),
        root.writable,
    ) {
        (true, _) => Role::Firmware,
        (false, false) if top.read_only => Role::ReadOnly,
        (false, _) => Role::Written,
    };
    StatePart { place: 0, role }
}

/// The jobs that are at work on a disk, by the nodes that lie below its root.
pub(super) fn jobs_on<'a>(graph: &'a BlockGraph, disk: &Disk) -> BTreeSet<&'a JobId> {
    let mut nodes = BTreeSet::new();
    let tops = graph.roots();
    let tops = tops
        .iter()
        .filter(|root| disk.root.as_ref() == Some(&root.node));
    for node in tops.flat_map(|root| graph.walk(root.top())) {
        nodes.insert(&node.name);
        nodes.extend(node.file.as_ref());
    }
    let on_each = nodes.into_iter().flat_map(|node| graph.jobs_on(node));
    on_each.collect()
}

/// Those that other monitors have at work on it.
pub(super) fn jobs_of_others(graph: &BlockGraph, disk: &Disk, jobs: &[JobInfo]) -> Vec<Job> {
    let at_work = jobs_on(graph, disk);
    let others = jobs
        .iter()
        .filter(|job| !job.id.is_ours() && at_work.contains(&job.id));
    others
        .map(|job| Job {
            id: job.id.to_string(),
            verb: job.kind.clone(),
            point: String::new(),
            state: job.status.word().to_owned(),
            progress: (job.current_progress, job.total_progress),
            rate: None,
            limit: job.speed.filter(|speed| *speed > 0),
            error: job.error.clone(),
        })
        .collect()
}

/// Who else believes to know the disks, by how he calls their nodes.
pub(super) fn manager(graph: &BlockGraph) -> Option<Manager> {
    let mut nodes = graph.nodes();
    nodes
        .any(|node| is_libvirts(&node.name))
        .then_some(Manager::Libvirt)
}

/// Whether libvirt has given a node its name.
pub(super) fn is_libvirts(node: &NodeName) -> bool {
    node.as_str().starts_with("libvirt-")
}

/// QEMU takes a relative backing name against the name it was given, also when that is a link to
/// elsewhere. A sealed layer lies beside the file itself, and a merge writes the file's own path
/// into the header above: there the same name must lead to the same file, or the disk starts from
/// another one next time.
fn named_beside_a_link(node: &Node, sight: &Sight) -> Option<String> {
    let name = node.backing_filename.as_ref()?;
    let file = sight.resolve(node.path.as_ref()?)?;
    let beside_the_link = sight.resolve(Path::new(node.full_backing_filename.as_ref()?))?;
    let beside_the_file = file.with_file_name(name);
    if sys::file_id(&beside_the_link).ok() == sys::file_id(&beside_the_file).ok() {
        return None;
    }
    Some(format!(
        "QEMU opened {0} through a link, and {name}, the name of what it stands on, means another file beside {0} itself; with the VM off: qemu-img rebase -u with the absolute name",
        file.display()
    ))
}

/// No file is two layers of one chain: where two names lead to one file, a name has changed hands
/// under QEMU, and what it has open cannot be told.
fn unsee_twins(layers: &mut [Layer], active: Option<FileId>) {
    let files: Vec<Option<FileId>> = layers.iter().map(|layer| layer.file).collect();
    for layer in layers {
        let again = files
            .iter()
            .chain([&active])
            .filter(|file| **file == layer.file);
        if layer.file.is_some() && again.count() > 1 {
            layer.file = None;
            layer.record = None;
        }
    }
}

fn disk_name(root: &Root, top: &Node, active: &Path, sight: &Sight) -> Option<String> {
    let stem = || {
        active
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
    };
    let name = match root.kind {
        RootKind::Device => root
            .device_id()
            .map(str::to_owned)
            .or_else(|| root.drive.clone().filter(|drive| !drive.is_empty())),
        RootKind::Export => {
            let mut exports = root.export_ids.iter();
            exports.find(|id| !served::is_view(id)).cloned()
        }
        RootKind::Unused => {
            // our daemon's disks have no user; in a foreign one such a node is a disk. In neither is a
            // sealed layer of ours that is on its way out
            let leaves = root.node.is_ours() && top.read_only;
            return match sight.embedded.iter().find(|(path, _)| path == active) {
                _ if leaves => None,
                Some((_, name)) => Some(name.clone()),
                None if !sight.embedded.is_empty() || root.node.is_generated() => None,
                None if backups::is_unfinished(active) => None,
                None => stem().map(|stem| fit_name(&stem)),
            };
        }
    };
    name.or_else(stem).map(|name| fit_name(&name))
}

fn layer(graph: &BlockGraph, node: &Node, sight: &Sight) -> Layer {
    let protocol = node.file.as_ref().and_then(|file| graph.node(file));
    let said = node
        .path
        .clone()
        .unwrap_or_else(|| PathBuf::from(&node.filename));
    let path = sight.resolve(&said);
    let file = path.as_ref().and_then(|path| sys::file_id(path).ok());
    let metadata = path.as_ref().and_then(|path| path.metadata().ok());
    let record = path
        .as_ref()
        .filter(|_| file.is_some())
        .and_then(|path| layer_file::read_point(path).ok().flatten());
    let journal = path
        .as_ref()
        .filter(|_| file.is_some())
        .and_then(|path| layer_file::read_merge(path).ok().flatten());
    let known = protocol.is_none_or(Node::is_local_protocol);
    let is_slice = protocol.is_some_and(|below| shows_a_part(node, below));
    let data_is_ours = data_is_beside(graph, node, path.as_deref(), sight);
    Layer {
        node: Some(node.name.clone()),
        path: path.unwrap_or(said),
        file,
        format: match node.driver.as_str() {
            "qcow2" if !data_is_ours => Format::Other("qcow2 with another data file".into()),
            "qcow2" if node.encrypted => Format::Other("encrypted qcow2".into()),
            "qcow2" if known => Format::Qcow2,
            "raw" if is_slice => Format::Other("raw slice".into()),
            "raw" | "file" | "host_device" if known => Format::Raw,
            other => Format::Other(other.to_owned()),
        },
        virtual_size: node.virtual_size,
        allocated_size: node.actual_size.unwrap_or(0),
        modified: metadata.and_then(|metadata| metadata.modified().ok()),
        record,
        foreign_name: None,
        // a commit into it was begun: its bytes are neither the old state nor the new
        leaving: journal.is_some_and(|journal| super::merge::mixes(&journal.verb)),
    }
}

/// Whether a raw node is told of a stretch of what it stands on (`offset`, `size`). QEMU tells neither; it rounds the
/// sizes of both nodes up to sectors alike.
fn shows_a_part(node: &Node, below: &Node) -> bool {
    node.driver == "raw" && node.virtual_size != below.virtual_size
}

/// Whether what a node shows is its file, byte for byte.
fn is_as_its_file(graph: &BlockGraph, node: &Node) -> bool {
    let protocol = node.file.as_ref().and_then(|file| graph.node(file));
    match protocol {
        None => node.is_local_protocol(),
        Some(below) => {
            node.driver == "raw" && below.is_local_protocol() && !shows_a_part(node, below)
        }
    }
}

/// Whether the external data file that QEMU uses, if there is one, is the one that a reader of the
/// image finds, and all of it: QEMU takes a relative name against the directory it was started in, and
/// one on its command line comes before the header's.
fn data_is_beside(graph: &BlockGraph, node: &Node, path: Option<&Path>, sight: &Sight) -> bool {
    let Some(child) = node.children.iter().find(|child| child.edge == "data-file") else {
        return true;
    };
    let theirs = graph.skip_filters(&child.node);
    let theirs = theirs.filter(|data| is_as_its_file(graph, data));
    let theirs = theirs.and_then(|data| data.path.as_ref());
    let theirs = theirs.and_then(|theirs| sight.resolve(theirs));
    let ours = path.zip(node.data_file.as_ref());
    let ours = ours.map(|(path, name)| path.with_file_name(name));
    let ids = theirs
        .zip(ours)
        .map(|(theirs, ours)| (sys::file_id(&theirs), sys::file_id(&ours)));
    ids.is_some_and(|(theirs, ours)| {
        theirs.is_ok_and(|theirs| ours.is_ok_and(|ours| theirs == ours))
    })
}

fn no_snapshots(root: &Root, top: &Node, active: &Layer, sight: &Sight) -> Option<String> {
    let path = active.path.display();
    if sight.read_only {
        Some("mounted with -o ro".into())
    } else if !root.writable && top.read_only {
        Some("the disk is read-only".into())
    } else if active.format == Format::Raw {
        Some(format!(
            "{path} is raw, and a raw disk cannot become qcow2 under its own name; with the VM off: qemu-img convert -O qcow2"
        ))
    } else if active.format != Format::Qcow2 {
        Some(format!(
            "the active layer is {}, snapshots are made of qcow2",
            active.format.name()
        ))
    } else if active.file.is_none() {
        Some(format!(
            "{path}, the file QEMU has open, cannot be seen from here"
        ))
    } else if !active
        .path
        .metadata()
        .is_ok_and(|metadata| metadata.is_file())
    {
        Some(format!(
            "{path} is a block device; there is no room for a layer beside it"
        ))
    } else {
        None
    }
}

/// QEMU does not say how large the disk was then; that it is as large as now is the best guess
/// until its view has been measured.
fn internal(
    snapshot: &qmpbridge::graph::InternalSnapshotInfo,
    virtual_size: u64,
    layer: Option<usize>,
) -> Internal {
    let seconds = u64::try_from(snapshot.date_sec).unwrap_or(0);
    let nanos = u32::try_from(snapshot.date_nsec)
        .unwrap_or(0)
        .min(999_999_999);
    Internal {
        id: snapshot.id.clone(),
        name: fit_name(&snapshot.name),
        tag: snapshot.name.clone(),
        time: SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos),
        virtual_size,
        vm_state_size: snapshot.vm_state_size,
        layer,
        record: None,
    }
}

/// The dirty bitmaps of a node; a job's own have no name.
fn bitmaps(node: &Node) -> Vec<Bitmap> {
    let mut found: Vec<Bitmap> = Vec::new();
    for bitmap in &node.dirty_bitmaps {
        let Some(tag) = bitmap.name.clone().filter(|tag| !tag.is_empty()) else {
            continue;
        };
        let taken = |name: &str| found.iter().any(|other| other.name == name);
        let name = first_free(&fit_name(&tag), '.', taken);
        found.push(Bitmap {
            name,
            tag,
            granularity: bitmap.granularity,
            count: bitmap.count,
            recording: bitmap.recording,
            persistent: bitmap.persistent,
            busy: bitmap.busy,
            inconsistent: bitmap.inconsistent,
            end_mark: None,
        });
    }
    backup::with_end_marks(found)
}
