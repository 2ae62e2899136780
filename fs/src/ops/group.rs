//! `mkdir snapshots/N` and `rmdir snapshots/N`: the verbs of one disk, of all disks at once. It
//! knows who takes part, that all are held, in the order of their names, before anything is done,
//! and that none begins when one is refused; how a disk is sealed or merged `snapshot` and `merge`
//! know.

use super::Answer;
use super::engine::{DiskGuard, Engine};
use super::merge::plan::METADATA_RESERVE;
use super::merge::{self, Merge, Which};
use super::snapshot::{self, Of};
use super::watch;
use crate::errno::{Errno, Failure};
use crate::intent;
use crate::model::Disk;
use crate::sys;
use crate::tree::find_group;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

/// Takes a snapshot of all disks that can be sealed.
pub(super) async fn take(engine: &Rc<Engine>, name: &str) -> Result<(), Failure> {
    let wanted = able(&engine.observe().await?);
    let guards = engine.hold_all(&wanted).await?;
    let disks = engine.observe().await?;
    if able(&disks) != wanted {
        return Err(changed());
    }
    if let Some(disk) = disks.iter().find(|disk| disk.has_point_called(name)) {
        return Err(intent::taken_on(disk, name));
    }
    let unable = intent::unable(&disks);
    if wanted.is_empty() {
        return Err(intent::none_can(&unable));
    }
    let disks = disks.into_iter().filter(|disk| wanted.contains(&disk.name));
    let outcome = snapshot::take_all(engine, disks.collect(), name, Of::AllDisks(unable)).await;
    super::seen(engine, &guards.iter().collect::<Vec<_>>(), &outcome).await;
    drop(guards);
    if outcome.is_ok() {
        wanted
            .iter()
            .for_each(|disk| watch::resume_merges(engine, disk));
    }
    outcome
}

fn able(disks: &[Disk]) -> BTreeSet<String> {
    let able = disks.iter().filter(|disk| disk.no_snapshots.is_none());
    able.map(|disk| disk.name.clone()).collect()
}

fn changed() -> Failure {
    Failure::new(Errno::EBUSY, "the disks of this VM have just changed").next("try again")
}

/// Removes what is left of a snapshot of all disks: each point as its own rmdir would. `answer` is
/// called once QEMU has accepted all jobs, or one of them not.
pub(super) async fn delete(engine: Rc<Engine>, id: &str, answer: Answer<()>) {
    let merges = match check(&engine, id).await {
        Ok(merges) => merges,
        Err(failure) => return answer(Err(failure)),
    };
    let parts = parts(merges.len(), answer);
    for ((guard, merge), part) in merges.into_iter().zip(parts) {
        let engine = Rc::clone(&engine);
        tokio::task::spawn_local(merge::run(engine, guard, merge, Some(part)));
    }
}

/// All that can be refused, of all disks, before anything is done to one.
async fn check(engine: &Engine, id: &str) -> Result<Vec<(DiskGuard, Merge)>, Failure> {
    let model = engine.current();
    let group = find_group(&model, id)
        .ok_or_else(|| Failure::new(Errno::ENOENT, "the snapshot is gone"))?;
    let disks = group.members.iter().map(|(disk, _)| disk.name.clone());
    let mut merges = Vec::new();
    for guard in engine.hold_all(&disks.collect()).await? {
        let merge = merge::begin(
            engine,
            &guard,
            &Which::Point(group.point.name.clone()),
            None,
        )
        .await
        .map_err(|failure| failure.of_disk(guard.name()))?;
        let point = merge.here().record.as_ref();
        if point
            .and_then(|point| Some(&point.group.as_ref()?.id))
            .map(String::as_str)
            != Some(id)
        {
            return Err(changed());
        }
        merges.push((guard, merge));
    }
    room(&merges)?;
    Ok(merges)
}

/// Each has found room for itself; on one filesystem there must be room for all.
fn room(merges: &[(DiskGuard, Merge)]) -> Result<(), Failure> {
    let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
    for (_, merge) in merges {
        let target = merge.target();
        let Some(file) = target.file else { continue };
        let sum = wanted.entry(file.dev).or_default();
        *sum = sum
            .saturating_add(merge.copy)
            .saturating_add(METADATA_RESERVE);
        let directory = target.path.parent().unwrap_or(Path::new("/"));
        let free = sys::free_bytes(directory)
            .map_err(|error| Failure::io(format!("look at {}", directory.display()), &error))?;
        if *sum > free {
            return Err(Failure::new(
                Errno::ENOSPC,
                format!(
                    "the merges of all disks may need {sum} bytes in {}, and {free} are free",
                    directory.display()
                ),
            )
            .next(
                "make room, or remove the points one after the other: rmdir disks/*/snapshots/NAME",
            ));
        }
    }
    Ok(())
}

/// One answer for several: given when all have answered, the first refusal or that all is well.
fn parts(count: usize, answer: Answer<()>) -> Vec<Answer<()>> {
    struct Waiting {
        left: usize,
        outcome: Result<(), Failure>,
        answer: Option<Answer<()>>,
    }
    let waiting = Arc::new(Mutex::new(Waiting {
        left: count,
        outcome: Ok(()),
        answer: Some(answer),
    }));
    let part = || -> Answer<()> {
        let waiting = Arc::clone(&waiting);
        Box::new(move |outcome| {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.left -= 1;
            if waiting.outcome.is_ok() {
                waiting.outcome = outcome;
            }
            if waiting.left == 0
                && let Some(answer) = waiting.answer.take()
            {
                answer(waiting.outcome.clone());
            }
        })
    };
    (0..count).map(|_| part()).collect()
}

#[cfg(test)]
mod tests {
    use super::parts;
    use crate::errno::{Errno, Failure};
    use std::sync::mpsc;

    #[test]
    fn the_first_refusal_is_told_when_all_have_answered() {
        let (told, heard) = mpsc::channel();
        let mut parts = parts(
            3,
            Box::new(move |outcome| told.send(outcome).expect("a test waits")),
        );
        let last = parts.pop().expect("three");
        parts.pop().expect("three")(Err(Failure::new(Errno::EIO, "one")));
        parts.pop().expect("three")(Err(Failure::new(Errno::EBUSY, "two")));
        assert!(heard.try_recv().is_err());
        last(Ok(()));
        let told = heard.try_recv().expect("all have answered");
        assert_eq!(told.expect_err("one was refused").errno, Errno::EIO);
    }
}
