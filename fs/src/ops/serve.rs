//! What the engine does with a request: one verb to its room, one disk held, and the new model
//! published before the caller has its answer.

use super::embedded::StorageDaemon;
use super::engine::{self, DiskGuard, Engine, Work};
use super::published::Published;
use super::{Answer, EngineConfig, Request, Source, WaitScope};
use super::{
    backup, branch, checkpoint, control, digest, group, internal, live, merge, open, rollback,
    served, shelf, snapshot, unplug, watch,
};
use crate::errno::{Errno, Failure};
use crate::intent::{self, Intent};
use crate::model::Job;
use crate::view::LayerCache;
use qmpbridge::Bridge;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// A listing is at most this old.
const FRESH: Duration = Duration::from_millis(50);
/// How long a listing waits for QEMU.
const REFRESH_DEADLINE: Duration = Duration::from_secs(1);
/// How long the reader of a job's files waits for QEMU.
const PROGRESS_DEADLINE: Duration = Duration::from_millis(300);
/// How long the end of a close is waited for; it is a matter of milliseconds, but on a busy machine.
const CLOSE_DEADLINE: Duration = Duration::from_millis(250);
/// How long who dismisses a failed merge waits until it is at work again.
const TAKE_UP_DEADLINE: Duration = Duration::from_secs(2);
/// How often is looked whether it has come.
const CLOSE_LOOK: Duration = Duration::from_millis(5);
/// How long a waiting read stays in the kernel before a signal can be seen.
const WAIT_SLICE: Duration = Duration::from_millis(500);

/// Begins, says so or why not, and serves until it is stopped.
pub(super) async fn serve(
    mut config: EngineConfig,
    shared: (Arc<Published>, Arc<LayerCache>),
    mut queue: mpsc::Receiver<Request>,
    mut stopped: oneshot::Receiver<()>,
    ready: std::sync::mpsc::SyncSender<Result<(), Failure>>,
) {
    let (engine, daemon) = match begin(&mut config, shared).await {
        Ok(begun) => begun,
        Err(failure) => {
            let _ = ready.send(Err(failure));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let keepers = [
        tokio::task::spawn_local(served::keep(Rc::clone(&engine))),
        tokio::task::spawn_local(watch::keep(Rc::clone(&engine))),
        tokio::task::spawn_local(watch::report_events(Rc::clone(&engine))),
        tokio::task::spawn_local(engine::keep_settling(Rc::clone(&engine))),
        tokio::task::spawn_local(digest::keep(Rc::clone(&engine))),
    ];
    watch::look_at_agent(&engine);
    loop {
        tokio::select! {
            request = queue.recv() => match request {
                Some(request) => { tokio::task::spawn_local(serve_one(Rc::clone(&engine), request)); }
                None => break,
            },
            _ = &mut stopped => break,
        }
    }
    let _nobody_stands_still = engine.last_standstill().await;
    // what goes from here on is meant to go
    keepers.iter().for_each(|keeper| keeper.abort());
    if let Some(agent) = engine.agent() {
        agent.idle().await;
    }
    engine.digests.stop_all().await;
    live::end_all(&engine).await;
    served::end(&engine).await;
    if let Some(daemon) = daemon {
        daemon.stop().await;
    }
}

async fn begin(
    config: &mut EngineConfig,
    (published, cache): (Arc<Published>, Arc<LayerCache>),
) -> Result<(Rc<Engine>, Option<StorageDaemon>), Failure> {
    let mut daemon = None;
    let bridge = match &config.source {
        Source::Qmp(address) => Some(Bridge::connect(address.clone()).await?),
        Source::Images { paths, format } if config.verbs.read_only => {
            let mut offline = crate::offline::model(paths, format.clone(), &config.source_text)?;
            offline.vm.name.clone_from(&published.current().vm.name);
            published.replace(offline);
            None
        }
        Source::Backups(_) => None,
        Source::Images { paths, format } => {
            let started = StorageDaemon::start(paths, format.clone()).await?;
            config.embedded_disks = started.disks().to_vec();
            let bridge = started.bridge().clone();
            daemon = Some(started);
            Some(bridge)
        }
    };
    if let Some(bridge) = &bridge {
        for needed in ["query-named-block-nodes", "x-debug-query-block-graph"] {
            if !bridge.supports(needed) {
                return Err(qmpbridge::Error::TooOld { needs: needed }.into());
            }
        }
    }
    let engine = Rc::new(Engine::new(bridge, config.clone(), published, cache));
    if engine.bridge().is_ok() {
        shelf::refuse_anothers(&engine).await?;
        watch::recover_all(&engine).await;
        // a QEMU that cannot be looked at is told here, on the terminal
        engine.refresh(&[]).await?;
    } else if shelf::root(&engine).is_some() {
        engine.refresh(&[]).await?;
        backup::settle_shelf(&engine).await;
    }
    Ok((engine, daemon))
}

async fn serve_one(engine: Rc<Engine>, request: Request) {
    match request {
        Request::Do {
            intent,
            pid,
            answer,
        } => verb(engine, intent, pid, answer).await,
        Request::Refresh { answer } => {
            // what is known is better than an `ls` that hangs
            let looked =
                tokio::time::timeout(REFRESH_DEADLINE, engine.refresh_if_older(FRESH)).await;
            if !matches!(looked, Ok(Ok(()))) {
                tracing::debug!("answering with the last look");
            }
            answer(Ok(engine.current()));
        }
        Request::Progress { disk, id, answer } => {
            let look = engine.show_progress_if_older(&disk, &id);
            if tokio::time::timeout(PROGRESS_DEADLINE, look).await.is_err() {
                tracing::debug!("answering with the last look");
            }
            answer(Ok(engine.current()));
        }
        Request::Open { point, pid, answer } => answer(open::open(&engine, &point, pid).await),
        Request::Wait { scope, answer } => wait(&engine, &scope, answer).await,
    }
}

async fn verb(engine: Rc<Engine>, intent: Intent, pid: u32, answer: Answer<()>) {
    let started = Instant::now();
    let (word, path) = intent.describe();
    let log = Arc::clone(&engine.log);
    log.begun(word, &path, pid);
    let logged: Answer<()> = Box::new(move |outcome| {
        log.record(word, &path, pid, &outcome, started.elapsed());
        answer(outcome);
    });
    if let Err(failure) = intent::suits_the_manager(&engine.current(), engine.config.verbs, &intent)
    {
        return logged(Err(failure));
    }
    // asked now, it would answer when it is done, and the caller's directory would freeze until then
    if let Err(failure) = engine.qemu_is_free() {
        return logged(Err(failure));
    }
    if intent.takes_a_point_away() {
        wait_for_closers(&engine, pid).await;
    }
    match intent {
        Intent::TakeCheckpoint { name } => checkpoint::take(engine, &name, logged).await,
        Intent::LoadCheckpoint { name } => checkpoint::load(engine, &name, logged).await,
        Intent::DeleteCheckpoint { name } => checkpoint::delete(engine, &name, logged).await,
        Intent::TakeGroup { name } => logged(group::take(&engine, &name).await),
        Intent::DeleteGroup { id, .. } => group::delete(engine, &id, logged).await,
        Intent::TakeExternal { disk, name } => {
            let take =
                async |guard: &DiskGuard| snapshot::take_external(&engine, guard, &name).await;
            let outcome = held(&engine, engine.hold(&disk), take).await;
            if outcome.is_ok() {
                watch::resume_merges_later(&engine, &disk);
            }
            logged(outcome);
        }
        Intent::TakeInternal { disk, name } => {
            let take = async |guard: &DiskGuard| internal::take(&engine, guard, &name).await;
            logged(held(&engine, engine.hold(&disk), take).await);
        }
        Intent::DeleteInternal { disk, name } => {
            let delete = async |guard: &DiskGuard| internal::delete(&engine, guard, &name).await;
            logged(held(&engine, engine.hold(&disk), delete).await);
        }
        Intent::TakeLives { name } => logged(live::all::take(&engine, &name).await),
        Intent::DeleteLives { id, .. } => logged(live::all::delete(&engine, &id).await),
        // the disk may have other instants, or a job of another monitor, at the same time
        Intent::TakeLive { disk, name } => {
            let take = async |guard: &DiskGuard| live::take(&engine, guard, &name).await;
            logged(held(&engine, engine.hold_to_settle(&disk), take).await);
        }
        Intent::DeleteLive { disk, id, .. } => {
            let delete = async |_: &DiskGuard| live::delete(&engine, &id).await;
            logged(held(&engine, engine.hold_to_settle(&disk), delete).await);
        }
        Intent::Rollback { disk, point, .. } => {
            let back = async |guard: &DiskGuard| rollback::to(&engine, guard, &point).await;
            logged(held(&engine, engine.hold(&disk), back).await);
        }
        Intent::DeleteBranch { disk, name } => {
            let delete = async |guard: &DiskGuard| branch::delete(&engine, guard, &name).await;
            logged(held(&engine, engine.hold(&disk), delete).await);
        }
        Intent::TakeBackup { disk, kind, name } => {
            backup::take(engine, &disk, kind, &name, logged).await;
        }
        Intent::TakeBackups { kind, name } => {
            backup::all::take(engine, kind, &name, logged).await;
        }
        Intent::DeleteBackups { kind, id, .. } => {
            logged(backup::all::delete(&engine, kind, &id).await);
        }
        Intent::DeleteBackup { disk, id, .. } => {
            backup::delete(engine, &disk, &id, logged).await;
        }
        Intent::DeleteBitmap { disk, name } => {
            let delete =
                async |guard: &DiskGuard| backup::delete_bitmap(&engine, guard, &name).await;
            logged(held(&engine, engine.hold(&disk), delete).await);
        }
        Intent::DeleteExternal { disk, name } => {
            merge::remove(engine, &disk, merge::Which::Point(name), logged).await;
        }
        Intent::ReleaseLayer { disk, identity, .. } => {
            merge::remove(engine, &disk, merge::Which::Layer(identity), logged).await;
        }
        Intent::CloseDisk { disk } => {
            let close = async |guard: &DiskGuard| unplug::close(&engine, guard).await;
            logged(held(&engine, engine.hold(&disk), close).await);
        }
        Intent::CancelJob { disk, id } => {
            logged(end_job(engine, disk, &id).await);
        }
        Intent::ControlJob { disk, id, command } => {
            logged(control::job(&engine, &disk, &id, command).await);
        }
    }
}

/// Cancels a job. One that has failed is forgotten, and what only its end makes right is taken up again.
async fn end_job(engine: Rc<Engine>, disk: String, id: &str) -> Result<(), Failure> {
    let failed = engine.job(&disk, id).filter(|job| job.ended());
    let cut_short = |job: &Job| engine.is_cut_short(&disk, &job.point);
    let cut_short = failed.as_ref().is_some_and(cut_short);
    if cut_short && engine.is_merging(&disk) {
        // dismissed now, nobody would take it up
        return Err(engine::at_work(&disk));
    }
    control::cancel(&engine, &disk, id).await?;
    if failed.is_some() {
        // who waits for the disk then finds it at work; the directory of backups may hang
        let again = tokio::task::spawn_local(async move {
            match cut_short {
                true => watch::resume_merges(&engine, &disk).await,
                false => backup::go_on_with_a_merge(&engine, &disk).await,
            }
        });
        let _late = timeout(TAKE_UP_DEADLINE, again).await;
    }
    Ok(())
}

/// The kernel tells of a close(2) after that has returned: who has just closed a point, or has ended, may hold it still when
/// `rmdir` of it comes.
async fn wait_for_closers(engine: &Engine, pid: u32) {
    let deadline = Instant::now() + CLOSE_DEADLINE;
    let may_have_closed =
        |holder: u32| holder == pid || !Path::new(&format!("/proc/{holder}")).exists();
    while engine.leases.any_by(may_have_closed) && Instant::now() < deadline {
        tokio::time::sleep(CLOSE_LOOK).await;
    }
}

/// Does one thing to a disk while nobody else does anything to it, and looks at what came of it.
async fn held(
    engine: &Engine,
    hold: impl Future<Output = Result<DiskGuard, Failure>>,
    op: impl AsyncFnOnce(&DiskGuard) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let guard = hold.await?;
    let outcome = op(&guard).await;
    seen(engine, &[&guard], &outcome).await;
    outcome
}

/// The new model is published before the call returns: the name is there, or gone, at once.
/// A QEMU that has just kept us waiting is not waited for once more: the caller's directory is
/// locked until it gets its answer.
pub(super) async fn seen(engine: &Engine, guards: &[&DiskGuard], outcome: &Result<(), Failure>) {
    if matches!(outcome, Err(failure) if failure.errno == Errno::ETIMEDOUT && !failure.outcome_known())
    {
        return;
    }
    if let Err(failure) = engine.refresh(guards).await {
        tracing::debug!(%failure, "refresh after a verb");
    }
}

async fn wait(engine: &Engine, scope: &WaitScope, answer: Answer<String>) {
    let (disk, job) = match scope {
        WaitScope::Mount => (None, None),
        WaitScope::Disk(disk) => (Some(disk.as_str()), None),
        WaitScope::Job(disk, job) => (Some(disk.as_str()), Some(job.as_str())),
    };
    let mut changes = engine.work_changes();
    let deadline = tokio::time::Instant::now() + WAIT_SLICE;
    loop {
        match engine.work_in(disk, job) {
            Work::Done => return answer(Ok("done\n".into())),
            Work::Failed(error) => return answer(Err(Failure::new(Errno::EIO, error))),
            Work::UnderWay => {}
        }
        if !matches!(
            tokio::time::timeout_at(deadline, changes.changed()).await,
            Ok(Ok(()))
        ) {
            return answer(Err(Failure::new(Errno::EINTR, "still at work")));
        }
    }
}
