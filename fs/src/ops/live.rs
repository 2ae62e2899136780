//! `mkdir` and `rmdir` in live/: an instant of the running disk that is copied nowhere. QEMU saves the
//! old bytes of what the guest writes from then on in a scratch file (`blockdev-backup sync=none`), and
//! an NBD export of that file's node shows the disk as it was ("fleecing"). Invariants: the scratch has
//! room for all before the instant; an export goes before its job, which goes before its node.

pub(super) mod all;
mod book;
mod dismantle;
mod names;
mod others;
mod server;
mod sweep;

pub(super) use book::Book;
pub(super) use names::{Server, is_digits};
pub(super) use others::refuse as refuse_those_of_other_mounts;
pub(super) use server::{
    NbdServer, socket as server_socket, start as start_server, stop_if_idle as stop_server_if_idle,
    stop_unless_used as stop_server_unless_used, whose as whose_server,
};
pub(super) use sweep::{end_all, sweep};

use super::blocking::blocking;
use super::check;
use super::engine::{DiskGuard, Engine};
use super::quiesce::{Quiesced, Quiescing};
use super::scratch::{self, Scratch};
use crate::errno::{Errno, Failure};
use crate::intent;
use crate::layer_file::{self, Claim};
use crate::model::{Disk, GroupRecord, Live, PointRecord};
use crate::nbd;
use crate::render;
use book::Held;
use names::Names;
use qmpbridge::command::{Backing, BlockExportAdd, ExportKind};
use qmpbridge::{Bridge, NodeName};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The commands of QEMU without which there is no instant of a running disk.
pub(super) const NEEDS: [&str; 4] = [
    "blockdev-backup",
    "block-export-add",
    "nbd-server-start",
    "transaction",
];

/// A server of a QEMU that is gone has gone with it. Called by who has the turn, and has seen what is still served.
pub(super) fn forget_a_server_without_use(engine: &Engine) {
    if engine.lives.all().is_empty() && !engine.served.uses_the_vms_server() {
        engine.lives.server.borrow_mut().take();
    }
}

/// Whether a node belongs to an instant of ours, and is no disk.
pub(super) fn is_scratch(node: &NodeName) -> bool {
    Names::of(node.as_str()).is_some()
}

/// One disk on its way.
struct Part {
    disk: Disk,
    root: NodeName,
    names: Names,
    claim: Claim,
    scratch: Option<Scratch>,
}

/// Makes an instant of one disk.
pub(super) async fn take(engine: &Engine, guard: &DiskGuard, name: &str) -> Result<(), Failure> {
    let disk = engine.observe_disk(guard).await?;
    take_all(engine, vec![disk], name, None).await
}

/// Makes one instant of several disks, all or none. Of all disks that can have one, `missing` are the
/// others and why.
pub(super) async fn take_all(
    engine: &Engine,
    disks: Vec<Disk>,
    name: &str,
    missing: Option<BTreeMap<String, String>>,
) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    if let Some(needs) = NEEDS.into_iter().find(|needs| !bridge.supports(needs)) {
        return Err(qmpbridge::Error::TooOld { needs }.into());
    }
    let _turn = engine.lives.turn().await?;
    // another mkdir may have been faster
    if let Some(disk) = disks.iter().find(|disk| engine.lives.has(&disk.name, name)) {
        return Err(intent::taken_on(disk, name));
    }
    let mut parts = disks
        .into_iter()
        .map(|disk| part(engine, disk))
        .collect::<Result<Vec<_>, _>>()?;
    let group = missing.map(|missing| GroupRecord {
        id: layer_file::random_hex(),
        members: parts
            .iter()
            .map(|part| (part.disk.name.clone(), part.names.digits.clone()))
            .collect(),
        missing,
    });
    let outcome = steps(engine, bridge, &mut parts, name, &group).await;
    let (socket, time, quiesced) = match outcome {
        Ok(made) => made,
        Err(failure) if failure.outcome_known() => {
            undo(engine, parts).await;
            return Err(failure);
        }
        Err(failure) => {
            // a QEMU that has just kept the caller waiting is not asked once more
            parts.into_iter().for_each(|part| leave(engine, part));
            return Err(failure);
        }
    };
    for part in parts {
        if let Some(held) = held(part, (name, &time), &quiesced, group.as_ref(), &socket) {
            engine.lives.keep(held);
        }
    }
    Ok(())
}

fn part(engine: &Engine, disk: Disk) -> Result<Part, Failure> {
    let root = can(&disk)?;
    let names = Names::fresh(server::whose(engine));
    let claim = layer_file::claim_kept(&names.digits)?;
    Ok(Part {
        disk,
        root,
        names,
        claim,
        scratch: None,
    })
}

/// The node of a disk that can have an instant.
fn can(disk: &Disk) -> Result<NodeName, Failure> {
    check::file_of(&disk.active)?;
    check::root_of(disk)
}

/// Everything up to the exports: where they are served, when the instant was, and how quiet.
async fn steps(
    engine: &Engine,
    bridge: &Bridge,
    parts: &mut [Part],
    name: &str,
    group: &Option<GroupRecord>,
) -> Result<(PathBuf, String, Quiesced), Failure> {
    let mut quiescing = Quiescing::begin(engine).await?;
    for part in parts.iter_mut() {
        let called = part.names.called();
        let scratch = scratch::create(engine, &part.disk, &called).await?;
        let scratch = part.scratch.insert(scratch);
        let of = (&called, part.disk.active.virtual_size);
        let below = Backing::Node(part.root.clone());
        scratch.open(engine, bridge, of, below).await?;
    }
    let socket = server::socket(engine).await?;
    let files = parts.iter().map(|part| part.disk.active.path.clone());
    quiescing.freeze(files.collect()).await?;
    let backups = parts
        .iter()
        .map(|part| part.names.called().save(part.root.clone()));
    let taken = bridge.transaction(backups.collect()).await;
    let time = render::now();
    let what = match (group, &*parts) {
        (None, [part]) => format!("disks/{}/live/{name}", part.disk.name),
        _ => format!("live/{name}"),
    };
    let quiesced = quiescing.thaw(engine, &what).await;
    taken?;
    for part in parts.iter() {
        let export = BlockExportAdd {
            r#type: ExportKind::Nbd,
            id: part.names.to_string(),
            node_name: part.names.node(),
            name: Some(part.names.to_string()),
            writable: None,
            bitmaps: None,
        };
        bridge.run(export).await?;
    }
    // what cannot be read is no instant
    for part in parts.iter() {
        let size = part.disk.active.virtual_size;
        let served = served(socket.clone(), &part.names, size).await;
        served.map_err(|failure| not_served(engine, failure))?;
    }
    Ok((socket, time, quiesced))
}

/// What the export of an instant shows.
async fn served(socket: PathBuf, names: &Names, size: u64) -> Result<nbd::Disk, Failure> {
    let export = names.to_string();
    let disk = blocking(move || nbd::Disk::open(&socket, &export)).await?;
    if disk.size() != size {
        return Err(Failure::new(
            Errno::EIO,
            format!(
                "the export has {} bytes, and the disk had {size}",
                disk.size()
            ),
        ));
    }
    Ok(disk)
}

fn not_served(engine: &Engine, failure: Failure) -> Failure {
    let told = Failure {
        message: format!("the instant cannot be read: {}", failure.message),
        ..failure
    };
    match &engine.config.live.nbd_server {
        Some(_) => {
            told.next("name the unix socket of this VM's own NBD server: -o nbd_server=SOCKET")
        }
        None => told,
    }
}

fn held(
    part: Part,
    (name, time): (&str, &str),
    quiesced: &Quiesced,
    group: Option<&GroupRecord>,
    socket: &std::path::Path,
) -> Option<Held> {
    let scratch = part.scratch?;
    let mut record = PointRecord {
        id: part.names.digits.clone(),
        name: name.to_owned(),
        time: time.to_owned(),
        inode: scratch.file.ino,
        group: group.cloned(),
        ..PointRecord::default()
    };
    quiesced.tell(&mut record);
    Some(Held {
        disk: part.disk.name,
        live: Live {
            record,
            virtual_size: part.disk.active.virtual_size,
            scratch: scratch.path,
            file: scratch.file,
            broken: None,
        },
        names: part.names,
        socket: socket.to_owned(),
        open: std::sync::Weak::new(),
        _claim: part.claim,
    })
}

/// Takes back what was begun. Where QEMU does not say whether it was, the next look finds it.
async fn undo(engine: &Engine, parts: Vec<Part>) {
    for part in parts {
        let scratch = part.scratch.as_ref().map(|it| (it.path.clone(), it.file));
        let undone = dismantle::dismantle(engine, &part.names, scratch).await;
        if let Err(failure) = undone {
            tracing::warn!(%failure, names = %part.names, "an instant could not be taken back yet");
            leave(engine, part);
        }
    }
}

/// What nobody claims is left over, and is swept as soon as QEMU answers.
fn leave(engine: &Engine, part: Part) {
    drop(part.claim);
    engine.settle_later(&part.disk.name);
}

/// Removes an instant.
pub(super) async fn delete(engine: &Engine, id: &str) -> Result<(), Failure> {
    let _turn = engine.lives.turn().await?;
    let (names, live) = engine.lives.find(id).ok_or_else(gone)?;
    // nobody opens it between this look and its end
    let _closed = close(engine, &live)?;
    end(engine, &names, &live).await
}

/// Lets nobody in any more, unless somebody is.
fn close(engine: &Engine, live: &Live) -> Result<crate::leases::Closed, Failure> {
    let point = format!("'{}'", live.record.name);
    check::close(engine, check::state_of(live.file), &point)
}

async fn end(engine: &Engine, names: &Names, live: &Live) -> Result<(), Failure> {
    engine.lives.break_off(names, "its removal was begun");
    let scratch = Some((live.scratch.clone(), live.file));
    dismantle::dismantle(engine, names, scratch).await?;
    engine.lives.forget(names);
    Ok(())
}

fn gone() -> Failure {
    Failure::new(Errno::ESTALE, "this instant is gone")
        .next("see which there are: ls the directory again")
}

/// Opens what an instant shows, for `pid`.
pub(super) async fn open(
    engine: &Engine,
    live: &Live,
    pid: u32,
) -> Result<Arc<crate::view::View>, Failure> {
    if let Some(why) = &live.broken {
        return Err(
            Failure::new(Errno::EIO, why.clone()).next("rmdir this instant and make another")
        );
    }
    let (names, live) = engine.lives.find(&live.record.id).ok_or_else(gone)?;
    let lease = engine
        .leases
        .hold(check::state_of(live.file), pid)
        .ok_or_else(gone)?;
    let (socket, shared) = engine.lives.place(&names).ok_or_else(gone)?;
    let disk = match shared {
        Some(disk) => disk,
        None => Arc::new(served(socket, &names, live.virtual_size).await?),
    };
    if !engine.lives.opened(&names, &disk) {
        return Err(gone());
    }
    Ok(Arc::new(crate::view::View::served(
        disk,
        &live.record.id,
        lease,
    )))
}
