//! Events and reconnects: when something may have changed, look again. Events are hints and may
//! be lost; the graph is the truth. A burst of them costs one look.

use super::engine::Engine;
use super::quiesce;
use super::recover;
use crate::model::ConnectionState;
use qmpbridge::{Connection, EventKind};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// A job's end comes as a handful of events within this time.
const COALESCE: Duration = Duration::from_millis(50);

/// Runs for the life of the mount.
pub(super) async fn keep(engine: Rc<Engine>) {
    let Ok(bridge) = engine.bridge() else { return };
    let mut events = bridge.events();
    let mut connection = bridge.connection();
    connection.mark_unchanged();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
                    if changes_the_graph(&event.kind()) {
                        tokio::time::sleep(COALESCE).await;
                        while events.try_recv().is_ok() {}
                        look(&engine).await;
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

fn changes_the_graph(event: &EventKind) -> bool {
    match event {
        EventKind::BlockJob { .. }
        | EventKind::BlockExportDeleted { .. }
        | EventKind::Stop
        | EventKind::Resume
        | EventKind::Reset
        | EventKind::Shutdown { .. } => true,
        // flaps dozens of times around every change; the other events of a job tell its end
        EventKind::JobStatusChange { .. } | EventKind::BlockJobError { .. } => false,
        EventKind::Other => true,
    }
}

async fn look(engine: &Engine) {
    if let Err(failure) = engine.refresh(&[]).await {
        tracing::debug!(%failure, "refresh");
    }
}

/// Asks the guest agent how it is, beside everything else: a dead one takes its time.
pub(super) fn look_at_agent(engine: &Rc<Engine>) {
    let engine = Rc::clone(engine);
    tokio::task::spawn_local(async move { quiesce::look(&engine).await });
}

/// Finishes or undoes what was left unfinished on every disk, and then shows what there is.
pub(super) async fn recover_all(engine: &Rc<Engine>) {
    match engine.observe().await {
        Ok(disks) => {
            for disk in disks.iter().filter(|disk| disk.no_snapshots.is_none()) {
                recover_one(engine, &disk.name).await;
            }
        }
        Err(failure) => tracing::debug!(%failure, "no look at the disks"),
    }
    engine.settled();
    look(engine).await;
}

/// A merge that was cut short may be able to go on, now that the root node is ours.
pub(super) fn resume_merges(engine: &Rc<Engine>, disk: &str) {
    let model = engine.current();
    let waiting = model
        .disk(disk)
        .is_some_and(|disk| disk.layers.iter().any(|layer| layer.leaving));
    if waiting {
        let (engine, disk) = (Rc::clone(engine), disk.to_owned());
        tokio::task::spawn_local(async move { recover_one(&engine, &disk).await });
    }
}

async fn recover_one(engine: &Rc<Engine>, disk: &str) {
    let recovered = match engine.hold(disk).await {
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
