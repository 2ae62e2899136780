//! Instants that other mounts of the same VM hold. QEMU needs the layers of their disks as they are, and would refuse
//! late what is refused here before anything is done.

use super::names::Names;
use crate::errno::{Errno, Failure};
use crate::ops::engine::Engine;
use crate::ops::observe;
use qmpbridge::{Bridge, JobId, JobInfo};
use std::collections::BTreeSet;

/// Refuses to change disks that have one.
pub(in crate::ops) async fn refuse(
    engine: &Engine,
    bridge: &Bridge,
    wanted: &BTreeSet<String>,
    jobs: &[JobInfo],
) -> Result<(), Failure> {
    let own: BTreeSet<Names> = engine.lives.all().into_iter().map(|own| own.0).collect();
    let is_of_others = |id: &&JobId| Names::of(id.as_str()).is_some_and(|it| !own.contains(&it));
    let others: BTreeSet<&JobId> = jobs
        .iter()
        .map(|job| &job.id)
        .filter(is_of_others)
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let graph = bridge.graph().await?;
    let disks = observe::disks(&graph, &engine.sight(bridge));
    let has_one = disks.iter().find(|disk| {
        wanted.contains(&disk.name) && !observe::jobs_on(&graph, disk).is_disjoint(&others)
    });
    match has_one {
        None => Ok(()),
        Some(disk) => Err(Failure::new(
            Errno::EBUSY,
            format!(
                "disk '{}' has a live instant of another mount, which needs its layers as they are",
                disk.name
            ),
        )
        .next("rmdir it there first; if that mount was killed: mount this VM there again")),
    }
}
