//! `mkdir snapshots/N` and `rmdir snapshots/N`: the verbs of one disk, of all disks at once. It
//! knows who takes part, that all are held, in the order of their names, before anything is done,
//! and that none begins when one is refused. How a disk is sealed or merged it does not know.

use super::Answer;
use super::check;
use super::engine::{DiskGuard, Engine};
use super::merge::plan::METADATA_RESERVE;
use super::merge::{self, Merge, Ready, Which};
use super::snapshot::{self, Of};
use super::watch;
use crate::errno::{Errno, Failure};
use crate::intent;
use crate::layer_file;
use crate::leases::Closed;
use crate::model::Disk;
use crate::tree::{GroupKey, GroupKind, find_group};
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
        return Err(check::changed());
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
    super::serve::seen(engine, &guards.iter().collect::<Vec<_>>(), &outcome).await;
    drop(guards);
    if outcome.is_ok() {
        wanted
            .iter()
            .for_each(|disk| watch::resume_merges_later(engine, disk));
    }
    outcome
}

fn able(disks: &[Disk]) -> BTreeSet<String> {
    let able = disks.iter().filter(|disk| disk.no_seal().is_none());
    able.map(|disk| disk.name.clone()).collect()
}

/// Removes what is left of a snapshot of all disks: each point as its own rmdir would. `answer` is
/// called once QEMU, or the queue of a disk at work, has accepted all jobs, or one of them not.
pub(super) async fn delete(engine: Rc<Engine>, id: &str, answer: Answer<()>) {
    let merges = match check(&engine, id).await {
        Ok(merges) if merges.is_empty() => return answer(Ok(())),
        Ok(merges) => merges,
        Err(failure) => return answer(Err(failure)),
    };
    let parts = parts(merges.len(), answer);
    for (
        Looked {
            guard,
            merge,
            closed,
        },
        part,
    ) in merges.into_iter().zip(parts)
    {
        let accepted = Box::new(move |outcome| {
            drop(closed);
            part(outcome);
        });
        tokio::task::spawn_local(merge::run(Rc::clone(&engine), guard, merge, Some(accepted)));
    }
}

/// A merge that nothing speaks against, and that nobody can speak against any more.
struct Looked {
    guard: DiskGuard,
    merge: Merge,
    /// Its point is not opened until the job was accepted, and not listed from then on.
    closed: Option<Closed>,
}

/// All that can be refused, of all disks, before anything is done to one. Those at work come last:
/// what stands in a queue may have its turn at any moment.
async fn check(engine: &Engine, id: &str) -> Result<Vec<Looked>, Failure> {
    let model = engine.current();
    let key = GroupKey {
        kind: GroupKind::Snapshots,
        id: id.to_owned(),
    };
    let group = find_group(&model, &key)
        .ok_or_else(|| Failure::new(Errno::ENOENT, "the snapshot is gone"))?;
    let mut members: Vec<(&str, Which)> = group
        .members
        .iter()
        .map(|(disk, point)| (disk.name.as_str(), Which::Layer(point.id.clone())))
        .collect();
    members.sort_by_key(|(disk, _)| (engine.is_merging(disk), *disk));
    let mut looked = Vec::new();
    let mut queued = Vec::new();
    let outcome = async {
        for (disk, which) in members {
            match merge::ready(engine, disk, &which).await {
                Ok(Ready::Now(guard, merge)) => looked.push(Looked {
                    guard,
                    merge: *merge,
                    closed: None,
                }),
                Ok(Ready::Queued(job)) => queued.push((disk, job)),
                Err(failure) => return Err(failure.of_disk(disk)),
            }
        }
        room(&looked)?;
        close(engine, &mut looked)
    };
    if let Err(failure) = outcome.await {
        for (disk, job) in queued {
            if engine.is_queued(disk, job.as_str()) {
                engine.drop_queued(disk, job.as_str());
            }
        }
        return Err(failure);
    }
    Ok(looked)
}

/// Closes all points, or none: a reader who came while another disk was looked at refuses all.
fn close(engine: &Engine, looked: &mut [Looked]) -> Result<(), Failure> {
    for Looked {
        guard,
        merge,
        closed,
    } in looked
    {
        let Some(file) = merge.here().file else {
            continue;
        };
        let point = format!("'{}'", merge.journal.point.name);
        let shut = check::close(engine, check::state_of(file), &point);
        *closed = Some(shut.map_err(|failure| failure.of_disk(guard.name()))?);
    }
    Ok(())
}

/// Each has found room for itself; on one filesystem there must be room for all.
fn room(looked: &[Looked]) -> Result<(), Failure> {
    let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
    for Looked { merge, .. } in looked {
        let target = merge.target();
        let Some(file) = target.file else { continue };
        let sum = wanted.entry(file.dev).or_default();
        *sum = sum
            .saturating_add(merge.copy)
            .saturating_add(METADATA_RESERVE);
        let directory = target.path.parent().unwrap_or(Path::new("/"));
        let free = layer_file::free_bytes(directory)?;
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
