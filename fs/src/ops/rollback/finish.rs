//! From the transaction on: the overlay on its point, the old layers out of the graph, D the
//! overlay, the guest reset. Every step looks whether it was done, so that a later daemon can begin
//! anywhere. Also what that daemon looks for first ([`settle`]).

use super::names;
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, GuestDebt, RollbackJournal};
use crate::model::{Disk, Layer};
use crate::ops::blocking::blocking;
use crate::ops::check;
use crate::ops::engine::Engine;
use crate::ops::nodes::{self, Role};
use crate::ops::settle as files;
use crate::sys;
use qmpbridge::command::{QueryStatus, SystemReset};
use qmpbridge::{Bridge, NodeName};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a reset may take; it is a matter of milliseconds, but for devices with much to do.
const RESET_DEADLINE: Duration = Duration::from_secs(10);
/// How often is looked whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Everything that is left to do when the overlay is the root of the disk.
pub(super) async fn finish(
    engine: &Engine,
    bridge: &Bridge,
    disk: &str,
    journal: &RollbackJournal,
) -> Result<(), Failure> {
    let disk = engine.observe_again(disk).await?;
    let dropped = rearrange(engine, bridge, &disk, journal).await?;
    if sys::file_id(&journal.active).ok() != disk.active.file {
        let journal = journal.clone();
        blocking(move || layer_file::replace(&journal.overlay, &journal.active)).await?;
    }
    pay(engine, bridge, &journal.sealed).await?;
    // a node that QEMU still has under the old name keeps it (I1)
    dropped?;
    let journal = journal.clone();
    blocking(move || {
        remove_old_alias(&journal)?;
        layer_file::clear_rollback(&journal.sealed)
    })
    .await
}

/// The overlay gets its point below it. The inner result tells whether QEMU let go of the old layers.
async fn rearrange(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
    journal: &RollbackJournal,
) -> Result<Result<(), Failure>, Failure> {
    let onto = sys::file_id(&journal.onto)
        .map_err(|error| Failure::io(format!("look at {}", journal.onto.display()), &error))?;
    if disk.layers.last().is_some_and(|top| top.file == Some(onto)) {
        return Ok(Ok(()));
    }
    let in_chain = disk
        .layers
        .iter()
        .position(|layer| layer.file == Some(onto))
        .map(|index| disk.layers[..=index].iter().collect());
    let beside = || {
        let mut branches = disk.branches.iter();
        let branch = branches.find(|branch| branch.layer.file == Some(onto))?;
        Some(branch.chain().collect())
    };
    let target: Vec<&Layer> =
        in_chain.or_else(beside).ok_or_else(|| {
            Failure::new(
            Errno::EIO,
            format!("{} is no layer of this disk any more", journal.onto.display()),
        )
        .next("put that file back, and the VM goes on by itself; until then neither continue nor restart it")
        })?;
    let root = check::root_of(disk)?;
    let carried = engine.carried(disk);
    let graph = bridge.graph().await?;
    let mut made: Vec<NodeName> = Vec::new();
    let mut below = None;
    for layer in &target {
        below = match &layer.node {
            Some(node) => Some(node.clone()),
            None => {
                let added =
                    nodes::add_sealed(bridge, &layer.path, layer.format.name(), below, &carried);
                match added.await {
                    Ok(node) => {
                        made.push(node.clone());
                        Some(node)
                    }
                    Err(failure) => {
                        nodes::undo_made(bridge, &made).await;
                        return Err(failure);
                    }
                }
            }
        };
    }
    if let Err(failure) =
        nodes::set_backing(bridge, &graph, &root, below, Role::Active, &carried).await
    {
        nodes::undo_made(bridge, &made).await;
        return Err(failure);
    }
    let kept: Vec<&NodeName> = target
        .iter()
        .filter_map(|layer| layer.node.as_ref())
        .collect();
    let old = disk
        .layers
        .iter()
        .rev()
        .filter_map(|layer| layer.node.as_ref());
    for node in old.filter(|node| !kept.contains(node)) {
        if let Err(failure) = nodes::drop_layer(bridge, &graph, node).await {
            return Ok(Err(failure));
        }
    }
    Ok(Ok(()))
}

/// What the guest is owed: a reset, for the disk it remembers is another one, and to go on.
async fn pay(engine: &Engine, bridge: &Bridge, sealed: &Path) -> Result<(), Failure> {
    let Some(mut journal) = layer_file::read_rollback(sealed)? else {
        return Ok(());
    };
    if matches!(journal.guest, GuestDebt::Reset | GuestDebt::ResetAndGo) {
        bridge.run(SystemReset).await?;
        // the reset is done by and by, and what runs before it still has the other disk in its head
        let began = Instant::now();
        while bridge.run(QueryStatus).await?.status != "prelaunch" {
            if began.elapsed() > RESET_DEADLINE {
                return Err(Failure::new(Errno::ETIMEDOUT, "QEMU does not reset the VM")
                    .next("the disk is rolled back; reset the VM (system_reset) before you continue it"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        journal.guest = match journal.guest {
            GuestDebt::ResetAndGo => GuestDebt::Go,
            GuestDebt::Reset | GuestDebt::Go | GuestDebt::Nothing => GuestDebt::Nothing,
        };
        let (path, journal) = (sealed.to_owned(), journal.clone());
        blocking(move || layer_file::write_rollback(&path, &journal)).await?;
    }
    match journal.guest {
        GuestDebt::Go => {}
        GuestDebt::Nothing | GuestDebt::Reset | GuestDebt::ResetAndGo => return Ok(()),
    }
    if !engine.running().await? {
        engine.resume_guest().await?;
    }
    // who stops it from now on means it
    journal.guest = GuestDebt::Nothing;
    let path = sealed.to_owned();
    blocking(move || layer_file::write_rollback(&path, &journal)).await
}

/// The hidden name by which QEMU had the old active layer open.
fn remove_old_alias(journal: &RollbackJournal) -> Result<(), Failure> {
    let file = sys::file_id(&journal.sealed).ok();
    for (alias, found) in layer_file::strays(&journal.active)? {
        if Some(found) == file {
            files::remove_name(&alias)?;
        }
    }
    Ok(())
}

/// What a rollback left that was cut short: finished when QEMU has made the overlay the root,
/// else taken back.
pub(in crate::ops) async fn settle(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
) -> Result<(), Failure> {
    let Some(file) = disk.active.file else {
        return Ok(());
    };
    if let Some(journal) = layer_file::read_rollback(&disk.active.path)? {
        let _alone = engine.alone().await?;
        return take_back(engine, disk, &journal).await;
    }
    for journal in names::journals(&disk.active_path)? {
        let is_root = disk.active.path == journal.overlay
            && sys::file_id(&journal.overlay).ok() == Some(file);
        engine.log.note(&format!(
            "disk '{}': finishing the rollback to {}",
            disk.name,
            journal.onto.display()
        ));
        if is_root {
            let _alone = engine.alone().await?;
            // the nodes that were on their way out may have been left by a daemon that died
            crate::ops::recover::idle_nodes(
                engine,
                bridge,
                disk,
                crate::ops::recover::Whose::Anybodys,
            )
            .await?;
            finish(engine, bridge, &disk.name, &journal).await?;
        } else {
            // the VM was started again since: from D, as it is
            let sealed = journal.sealed.clone();
            blocking(move || layer_file::clear_rollback(&sealed)).await?;
        }
    }
    Ok(())
}

async fn take_back(engine: &Engine, disk: &Disk, journal: &RollbackJournal) -> Result<(), Failure> {
    let Some(file) = disk.active.file else {
        return Ok(());
    };
    engine.log.note(&format!(
        "disk '{}': taking back an unfinished rollback",
        disk.name
    ));
    if journal.guest == GuestDebt::ResetAndGo && engine.paused().await? {
        engine
            .log
            .note("the VM was left stopped in the middle of a rollback; it goes on");
        engine.resume_guest().await?;
    }
    let journal = journal.clone();
    let overlay = journal.overlay.clone();
    // a storage daemon may have written there before it died and came back without it
    let written = blocking(move || Ok(files::holds_data(&overlay).ok())).await?;
    if written == Some(true) {
        engine.log.note(&format!(
            "disk '{}': QEMU ended in the middle of a rollback: what was written after it is in {} and LOST to the disk (next: check its filesystems before you trust it)",
            disk.name,
            journal.overlay.display()
        ));
    }
    blocking(move || {
        let overlay = (written == Some(false)).then_some(journal.overlay.as_path());
        names::undo(&journal, overlay, file)
    })
    .await
}
