//! `mkdir` and `rmdir` in live/ at the top of the mount: one instant of all disks that can have one.
//! It knows who takes part, and that none is removed while one is read.

use super::{close, end, scratch, take_all};
use crate::errno::Failure;
use crate::intent;
use crate::model::Disk;
use crate::ops::check;
use crate::ops::engine::Engine;
use crate::ops::serve::seen;
use crate::tree::{GroupKey, GroupKind, find_group};

/// Makes an instant of all disks.
pub(in crate::ops) async fn take(engine: &Engine, name: &str) -> Result<(), Failure> {
    let can = |disk: &Disk| super::can(disk).and_then(|_| scratch::directory(engine, disk));
    let (able, _) = check::parted(engine.observe().await?, can);
    let wanted = check::names(&able);
    let guards = engine.hold_all_to_settle(&wanted).await?;
    let (able, unable) = check::parted(engine.observe().await?, can);
    if check::names(&able) != wanted {
        return Err(check::changed());
    }
    if able.is_empty() {
        return Err(intent::none_can(&unable));
    }
    let outcome = take_all(engine, able, name, Some(unable)).await;
    seen(engine, &guards.iter().collect::<Vec<_>>(), &outcome).await;
    outcome
}

/// Removes what is left of an instant of all disks; nothing of it while one disk's is read.
pub(in crate::ops) async fn delete(engine: &Engine, id: &str) -> Result<(), Failure> {
    let model = engine.current();
    let key = GroupKey {
        kind: GroupKind::Live,
        id: id.to_owned(),
    };
    let group = find_group(&model, &key).ok_or_else(super::gone)?;
    let disks = group.members.iter().map(|(disk, _)| disk.name.clone());
    let guards = engine.hold_all_to_settle(&disks.collect()).await?;
    let outcome = delete_members(engine, id).await;
    seen(engine, &guards.iter().collect::<Vec<_>>(), &outcome).await;
    outcome
}

async fn delete_members(engine: &Engine, id: &str) -> Result<(), Failure> {
    let _turn = engine.lives.turn().await?;
    let mut members = engine.lives.all();
    members.retain(|(_, _, live)| {
        live.record
            .group
            .as_ref()
            .is_some_and(|group| group.id == id)
    });
    let mut closed = Vec::new();
    for (_, disk, live) in &members {
        closed.push(close(engine, live).map_err(|failure| failure.of_disk(disk))?);
    }
    for (names, disk, live) in &members {
        let ended = end(engine, names, live).await;
        ended.map_err(|failure| failure.of_disk(disk))?;
    }
    drop(closed);
    Ok(())
}
