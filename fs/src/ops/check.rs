//! Checks that several verbs make before they act, and their words: that a file is seen from here,
//! that a disk has its node, that nobody has a point open. Which verb needs which it does not know.

use super::engine::Engine;
use crate::errno::{Errno, Failure};
use crate::leases::{Closed, Holder, LeaseKey};
use crate::model::{Disk, FileId, Internal, Layer};
use qmpbridge::{BlockGraph, NodeName};
use std::collections::{BTreeMap, BTreeSet};

/// The file of a layer, which must be the one that QEMU has open.
pub(super) fn file_of(layer: &Layer) -> Result<FileId, Failure> {
    layer.file.ok_or_else(|| {
        Failure::new(
            Errno::EOPNOTSUPP,
            format!("{} cannot be seen from here", layer.path.display()),
        )
        .next("run qmpfs where QEMU's paths lead to the same files: on its host, in its container")
    })
}

/// Refused where a layer is neither what it was nor what it is to be: a commit into it was begun and has not ended. What
/// says so stands on its file, and what would take that from the chain, or give the file another name, would show
/// mixed bytes for a point.
pub(super) fn refuse_if_mixed<'a>(
    disk: &str,
    layers: impl IntoIterator<Item = &'a Layer>,
) -> Result<(), Failure> {
    let Some(mixed) = layers.into_iter().find(|layer| layer.leaving) else {
        return Ok(());
    };
    let name = mixed.record.as_ref().map(|record| record.name.as_str());
    let name = name.map_or_else(|| mixed.path.display().to_string(), str::to_owned);
    Err(Failure::new(
        Errno::EBUSY,
        format!("the merge of '{name}' was cut short, and is to be ended first"),
    )
    .next(format!(
        "see why: cat disks/{disk}/jobs/*/error; then rmdir that job, or mount again: it is taken up again"
    )))
}

/// Refused where the active layer's name leads to another file than the one that QEMU writes: what is done to names and headers
/// would be done to that, or past it.
pub(super) fn refuse_if_replaced(disk: &Disk) -> Result<(), Failure> {
    match disk.no_snapshots.as_ref().filter(|_| disk.tuning.replaced) {
        Some(why) => Err(Failure::new(Errno::EBUSY, why.clone())),
        None => Ok(()),
    }
}

/// The node that a disk's guest device stands on.
pub(super) fn root_of(disk: &Disk) -> Result<NodeName, Failure> {
    disk.root.clone().ok_or_else(|| {
        Failure::new(Errno::ENOTCONN, "the disk has no node")
            .next("look again: ls disks; another tool may have changed it in this moment")
    })
}

/// Refused where a disk has not the size it was looked at with: what is put in its place would give it that again.
pub(super) fn refuse_if_resized(
    graph: &BlockGraph,
    root: &NodeName,
    size: u64,
) -> Result<(), Failure> {
    match graph.node(root) {
        Some(node) if node.virtual_size != size => Err(Failure::new(
            Errno::EBUSY,
            format!(
                "the disk was resized in this moment, from {size} bytes to {}",
                node.virtual_size
            ),
        )
        .next("do it again")),
        // without a node QEMU refuses it by itself
        Some(_) | None => Ok(()),
    }
}

/// Between two looks, the second of which counts, other disks came to take part.
pub(super) fn changed() -> Failure {
    Failure::new(Errno::EBUSY, "the disks of this VM have just changed").next("try again")
}

/// The own state of a file, as leases know it.
pub(super) fn state_of(file: FileId) -> LeaseKey {
    LeaseKey {
        file,
        internal: None,
    }
}

/// An internal snapshot of the active layer, as leases know it.
pub(super) fn internal_of(disk: &Disk, internal: &Internal) -> Result<LeaseKey, Failure> {
    Ok(LeaseKey {
        file: file_of(&disk.active)?,
        internal: Some(internal.id.clone()),
    })
}

/// Lets nobody open a point between this look and its end; refused while somebody has it open.
pub(super) fn close(engine: &Engine, key: LeaseKey, point: &str) -> Result<Closed, Failure> {
    let closed = engine.leases.close(key);
    closed.map_err(|readers| is_open(&readers, point))
}

/// Refused while somebody has a point open; who opens it later is not kept away.
pub(super) fn refuse_if_read(engine: &Engine, file: FileId, name: &str) -> Result<(), Failure> {
    match &engine.leases.readers(file)[..] {
        [] => Ok(()),
        readers => Err(is_open(readers, &format!("'{name}'"))),
    }
}

/// `point` is read by these.
fn is_open(readers: &[Holder], point: &str) -> Failure {
    let pid = readers.first().map_or(0, |reader| reader.pid);
    let more = match readers.len() {
        0 | 1 => String::new(),
        readers => format!(" and {} more", readers - 1),
    };
    Failure::new(Errno::EBUSY, format!("{point} is open: pid {pid}{more}"))
        .next(format!("close it (ps -p {pid}), then rmdir again"))
}

/// The disks that can take part in what is done to all of them, in the order of their names, and
/// why the others cannot.
pub(super) fn parted<T>(
    disks: Vec<Disk>,
    can: impl Fn(&Disk) -> Result<T, Failure>,
) -> (Vec<Disk>, BTreeMap<String, String>) {
    let mut unable = BTreeMap::new();
    let mut able = Vec::new();
    for disk in disks {
        match can(&disk) {
            Ok(_) => able.push(disk),
            Err(failure) => {
                unable.insert(disk.name, failure.message);
            }
        }
    }
    able.sort_by(|a, b| a.name.cmp(&b.name));
    (able, unable)
}

/// What they are called.
pub(super) fn names(disks: &[Disk]) -> BTreeSet<String> {
    disks.iter().map(|disk| disk.name.clone()).collect()
}
