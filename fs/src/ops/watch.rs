//! Events and reconnects: when something may have changed, look again. Events are hints and may
//! be lost; the graph is the truth. A burst of them costs one look.

use super::backup;
use super::engine::Engine;
use super::live;
use super::quiesce;
use super::recover;
use crate::errno::Errno;
use crate::model::{ConnectionState, Disk};
use qmpbridge::{Connection, Event, EventKind, JobStatus};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::broadcast::error::RecvError;

/// A job's end comes as a handful of events within this time.
const COALESCE: Duration = Duration::from_millis(50);
/// A flood of events costs one part in so many of the engine's time: the next look waits so many
/// times as long as the last one took.
const LOOK_SHARE: u32 = 10;
/// But not longer than a person would wait for the tree to follow.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Events that come in floods, or often, and say nothing of the block graph or the run state.
const NOT_OF_THE_GRAPH: [&str; 9] = [
    "BALLOON_CHANGE",
    "BLOCK_IO_ERROR",
    "BLOCK_IMAGE_CORRUPTED",
    "BLOCK_WRITE_THRESHOLD",
    "MEMORY_FAILURE",
    "NIC_RX_FILTER_CHANGED",
    "RTC_CHANGE",
    "VSERPORT_CHANGE",
    "WATCHDOG",
];

/// Runs for the life of the mount.
pub(super) async fn keep(engine: Rc<Engine>) {
    let Ok(bridge) = engine.bridge() else { return };
    let mut events = bridge.events();
    let mut connection = bridge.connection();
    connection.mark_unchanged();
    let mut next_look = Instant::now();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
                    if changes_the_graph(&event) {
                        let pause = next_look.saturating_duration_since(Instant::now());
                        tokio::time::sleep(COALESCE.max(pause)).await;
                        while events.try_recv().is_ok() {}
                        let began = Instant::now();
                        look(&engine).await;
                        let pause = (began.elapsed() * LOOK_SHARE).min(LOOK_PAUSE_MAX);
                        next_look = Instant::now() + pause;
                    }
                }
                Err(RecvError::Lagged(_)) => look(&engine).await,
                Err(RecvError::Closed) => return,
            },
            changed = connection.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = connection.borrow_and_update().clone();
                match now {
                    Connection::Up { .. } => {
                        engine.log.counters().reconnected();
                        recover_all(&engine).await;
                        look_at_agent(&engine);
                        engine.log.note("QEMU is connected");
                    }
                    Connection::Down { reason, .. } => {
                        engine.log.note(&format!("QEMU is gone: {reason}; sealed points stay readable"));
                        engine.publish_connection(ConnectionState::Down(reason));
                    }
                }
            }
        }
    }
}

/// Writes QEMU's events down for `events`, beside whatever the engine does.
pub(super) async fn report_events(engine: Rc<Engine>) {
    let Ok(bridge) = engine.bridge() else { return };
    let mut received = bridge.events();
    let events = engine.log.events();
    loop {
        match received.recv().await {
            Ok(event) => {
                engine.lives.heard(&event);
                events.qemu(&event.name, &event.data, event.seconds, event.microseconds);
            }
            Err(RecvError::Lagged(count)) => events.missed(count),
            Err(RecvError::Closed) => return,
        }
    }
}

fn changes_the_graph(event: &Event) -> bool {
    match event.kind() {
        EventKind::BlockJob { .. }
        | EventKind::BlockExportDeleted { .. }
        | EventKind::Stop
        | EventKind::Resume
        | EventKind::Reset
        | EventKind::Shutdown { .. } => true,
        // ours are followed by who began them; of others' the states that are no flapping
        EventKind::JobStatusChange { id, status } => {
            !id.is_ours()
                && matches!(
                    status,
                    JobStatus::Created
                        | JobStatus::Pending
                        | JobStatus::Aborting
                        | JobStatus::Concluded
                        | JobStatus::Null
                )
        }
        EventKind::BlockJobError { .. } => false,
        EventKind::Other => !NOT_OF_THE_GRAPH.contains(&event.name.as_str()),
    }
}

async fn look(engine: &Engine) {
    match engine.refresh(&[]).await {
        Ok(()) => {}
        // QEMU answers, and still the disks cannot be seen: then the tree stays as it was.
        Err(failure) if failure.errno == Errno::EIO => {
            engine.report_once(&format!("the tree does not follow the VM now: {failure}"));
        }
        Err(failure) => tracing::debug!(%failure, "refresh"),
    }
}

/// Asks the guest agent how it is, beside everything else: a dead one takes its time.
pub(super) fn look_at_agent(engine: &Rc<Engine>) {
    let engine = Rc::clone(engine);
    tokio::task::spawn_local(async move { quiesce::look(&engine).await });
}

/// Finishes or undoes what was left unfinished on every disk, and then shows what there is.
pub(super) async fn recover_all(engine: &Rc<Engine>) {
    // first: no layer can be put right below an instant that a killed mount left
    if let Err(failure) = live::sweep(engine).await {
        engine.report_once(&format!("live instants are not settled yet: {failure}"));
    }
    match engine.observe().await {
        Ok(disks) => {
            let backups = engine.config.backup.directory.is_some();
            for disk in &disks {
                tell_if_replaced(engine, disk);
                match disk.no_snapshots {
                    _ if engine.config.verbs.read_only => {}
                    None => recover_one(engine, &disk.name).await,
                    // a backup half made, it may have
                    Some(_) if backups => recover_one(engine, &disk.name).await,
                    // frozen for a live instant, it may be
                    Some(_) => quiesce::thaw_leftover(engine, disk).await,
                }
            }
        }
        Err(failure) => tracing::debug!(%failure, "no look at the disks"),
    }
    if let Err(failure) = backup::sweep(engine).await {
        engine.report_once(&format!(
            "what was saved for backups is not settled yet: {failure}"
        ));
    }
    engine.settled();
    look(engine).await;
}

fn tell_if_replaced(engine: &Engine, disk: &Disk) {
    if let Some(why) = disk.no_snapshots.as_ref().filter(|_| disk.tuning.replaced) {
        engine.report_once(&format!("disk '{}': {why}", disk.name));
    }
}

/// A merge that was cut short may be able to go on, now that the root node is ours, or what it failed for is mended.
pub(super) async fn resume_merges(engine: &Rc<Engine>, disk: &str) {
    let model = engine.current();
    let waiting = model
        .disk(disk)
        .is_some_and(|disk| disk.layers.iter().any(|layer| layer.leaving));
    if waiting && !engine.is_merging(disk) {
        recover_one(engine, disk).await;
    }
}

/// The same, and nobody waits for it.
pub(super) fn resume_merges_later(engine: &Rc<Engine>, disk: &str) {
    let (engine, disk) = (Rc::clone(engine), disk.to_owned());
    tokio::task::spawn_local(async move { resume_merges(&engine, &disk).await });
}

async fn recover_one(engine: &Rc<Engine>, disk: &str) {
    let recovered = match engine.hold_to_settle(disk).await {
        Ok(guard) => recover::disk(Rc::clone(engine), guard).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = recovered {
        engine
            .log
            .note(&format!("disk '{disk}': could not be settled: {failure}"));
        engine.settle_later(disk);
    }
}
