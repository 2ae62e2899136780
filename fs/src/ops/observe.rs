//! From QEMU's graph to disks: which roots are disks, what they are called, which file each layer
//! is, and what we wrote down about it. Reads names, inodes and extended attributes of the layers'
//! files; changes nothing.

use super::carried;
use crate::intent::Verbs;
use crate::layer_file;
use crate::model::{Disk, Format, Internal, Layer, Tuning};
use crate::sys;
use crate::tree::valid_name;
use qmpbridge::graph::RootKind;
use qmpbridge::{BlockGraph, Bridge, Node, Root};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// From where QEMU's file names are seen.
pub(super) struct Sight {
    pid: Option<i32>,
    /// QEMU's working directory: its file names may be relative to it.
    directory: Option<PathBuf>,
    /// Disks of our own storage daemon: their active path and the name to show.
    embedded: Vec<(PathBuf, String)>,
    read_only: bool,
}

impl Sight {
    /// As seen by the process at the other end of the monitor.
    pub(super) fn of(pid: Option<i32>, embedded: &[(PathBuf, String)], read_only: bool) -> Self {
        let directory = pid.and_then(|pid| sys::process_directory(pid).ok());
        Sight {
            pid,
            directory,
            embedded: embedded.to_vec(),
            read_only,
        }
    }

    /// The path under which we see what QEMU calls `path`.
    pub(super) fn resolve(&self, path: &Path) -> Option<PathBuf> {
        if path.is_relative() && self.directory.is_none() {
            return None;
        }
        layer_file::resolve(path, self.directory.as_deref()).ok()
    }
}

/// What can be done with this QEMU.
pub(super) fn capabilities(bridge: &Bridge, verbs: Verbs) -> Vec<String> {
    let needs: [(&str, &[&str]); 3] = [
        (
            "snapshots",
            &[
                "blockdev-snapshot",
                "blockdev-reopen",
                "blockdev-create",
                "transaction",
            ],
        ),
        ("internal", &["blockdev-snapshot-internal-sync"]),
        ("merge", &["block-stream", "block-commit"]),
    ];
    needs
        .iter()
        .filter(|(_, commands)| {
            !verbs.read_only && commands.iter().all(|command| bridge.supports(command))
        })
        .map(|(name, _)| (*name).to_owned())
        .collect()
}

/// The disks of a graph, sorted by name.
pub(super) fn disks(graph: &BlockGraph, sight: &Sight) -> Vec<Disk> {
    let mut by_name: BTreeMap<String, Disk> = BTreeMap::new();
    let mut roots = graph.roots();
    roots.sort_by_key(|root| root.kind == RootKind::Unused);
    let mut seen: Vec<(RootKind, Disk)> = Vec::new();
    for root in &roots {
        let Some(disk) = disk(graph, root, sight) else {
            continue;
        };
        // in the middle of a seal, or after a pivot, a node that nobody uses stands beside the
        // disk it was part of
        let twin = seen
            .iter()
            .position(|(_, other)| other.active_path == disk.active_path)
            .filter(|_| root.kind == RootKind::Unused);
        match twin {
            Some(twin)
                if seen[twin].0 == RootKind::Unused
                    && disk.active.file == sys::file_id(&disk.active_path).ok() =>
            {
                seen[twin].1 = disk;
            }
            Some(_) => {}
            None => seen.push((root.kind, disk)),
        }
    }
    for (_, mut disk) in seen {
        let wanted = disk.name.clone();
        let mut number = 2;
        while by_name.contains_key(&disk.name) {
            disk.name = format!("{wanted}-{number}");
            number += 1;
        }
        by_name.insert(disk.name.clone(), disk);
    }
    by_name.into_values().collect()
}

fn disk(graph: &BlockGraph, root: &Root, sight: &Sight) -> Option<Disk> {
    let chain = graph.chain(&root.node);
    let top = *chain.first()?;
    let active = layer(graph, top, sight);
    let active_path =
        layer_file::active_of_alias(&active.path).unwrap_or_else(|| active.path.clone());
    let name = disk_name(root, top, &active_path, sight)?;
    let layers: Vec<Layer> = chain
        .iter()
        .skip(1)
        .rev()
        .map(|node| layer(graph, node, sight))
        .collect();
    let mut internals = Vec::new();
    for (index, node) in chain.iter().rev().enumerate() {
        let layer = (index + 1 < chain.len()).then_some(index);
        internals.extend(
            node.snapshots
                .iter()
                .map(|snapshot| internal(snapshot, node.virtual_size, layer)),
        );
    }
    name_internals(&mut internals);
    let mut disk = Disk {
        name,
        root: Some(root.node.clone()),
        no_snapshots: no_snapshots(root, top, &active, sight),
        active_path,
        active,
        layers,
        internals,
        jobs: Vec::new(),
        tuning: Tuning {
            direct: top.cache.direct,
            no_flush: top.cache.no_flush,
            detect_zeroes: Some(top.detect_zeroes.clone()).filter(|mode| mode != "off"),
        },
        assumed: Vec::new(),
    };
    disk.assumed = carried::for_disk(&disk, sight.pid).1;
    Some(disk)
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
        RootKind::Export => root.export_ids.first().cloned(),
        RootKind::Unused => {
            // our daemon's disks have no user; in a foreign one such a node is a disk, but not a
            // sealed layer of ours that is on its way out
            return match sight.embedded.iter().find(|(path, _)| path == active) {
                Some((_, name)) => Some(name.clone()),
                None if !sight.embedded.is_empty() || root.node.is_generated() => None,
                None if root.node.is_ours() && top.read_only => None,
                None => stem().map(|stem| fit(&stem)),
            };
        }
    };
    name.or_else(stem).map(|name| fit(&name))
}

/// A name that can stand in a directory and be typed.
pub fn fit(name: &str) -> String {
    let mut fit: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .take(128)
        .collect();
    if !valid_name(&fit) {
        fit = format!("d{fit}").chars().take(128).collect();
    }
    fit
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
    Layer {
        node: Some(node.name.clone()),
        path: path.unwrap_or(said),
        file,
        format: match node.driver.as_str() {
            "qcow2" if known && !node.encrypted => Format::Qcow2,
            "raw" | "file" | "host_device" if known => Format::Raw,
            other => Format::Other(other.to_owned()),
        },
        virtual_size: node.virtual_size,
        allocated_size: node.actual_size.unwrap_or(0),
        modified: metadata.and_then(|metadata| metadata.modified().ok()),
        record,
        // a commit into it was begun: its bytes are neither the old state nor the new
        leaving: journal.is_some_and(|journal| super::merge::mixes(&journal.verb)),
    }
}

fn no_snapshots(root: &Root, top: &Node, active: &Layer, sight: &Sight) -> Option<String> {
    let path = active.path.display();
    if sight.read_only {
        Some("mounted with -o ro".into())
    } else if active.format == Format::Raw {
        Some(format!(
            "{path} is raw, and a raw disk cannot become qcow2 under its own name; with the VM off: qemu-img convert -O qcow2"
        ))
    } else if active.format != Format::Qcow2 {
        Some(format!(
            "the active layer is {}, snapshots are made of qcow2",
            active.format.name()
        ))
    } else if !root.writable && top.read_only {
        Some("the disk is read-only".into())
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
        name: fit(&snapshot.name),
        tag: snapshot.name.clone(),
        time: SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos),
        virtual_size,
        vm_state_size: snapshot.vm_state_size,
        layer,
    }
}

/// Two snapshots whose names look the same as directory entries are told apart by their id.
fn name_internals(internals: &mut [Internal]) {
    for index in 1..internals.len() {
        let name = internals[index].name.clone();
        if internals[..index].iter().any(|other| other.name == name) {
            internals[index].name = fit(&format!("{name}.{}", internals[index].id));
        }
    }
}
