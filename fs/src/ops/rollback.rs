//! `echo NAME > disks/D/rollback`: D becomes a fresh overlay on a point, and what was active is
//! sealed as a point of its own. Nothing is destroyed: the layers above the point stay beside the
//! chain. Up to the transaction everything is undone, from there on everything is finished, by
//! [`finish`], which is also what a later daemon calls (docs/SEMANTICS.md, "Rollback").
//! A running guest stands still all through it, and is reset before it goes on.

mod check;
mod finish;
mod names;

pub(super) use check::called_after;
pub(super) use finish::settle;
pub(super) use names::settle_names;

use super::blocking::blocking;
use super::check::refuse_if_resized;
use super::engine::{DiskGuard, Engine};
use super::migration;
use super::nodes::Carried;
use super::overlay::{self, Below, Overlay};
use crate::errno::Failure;
use crate::layer_file::{self, GuestDebt, RollbackJournal};
use crate::model::{FileId, Layer, PointRecord};
use crate::tree::PointKey;
use qmpbridge::command::{BlockdevSnapshot, TransactionAction};
use qmpbridge::{Bridge, NodeName};

/// Rolls a disk back to a point. Returns when D is the rolled-back disk.
pub(super) async fn to(
    engine: &Engine,
    guard: &DiskGuard,
    point: &PointKey,
) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    // from the look at the guest to its going on nobody else stops it or lets it go
    let _alone = engine.alone().await?;
    let disk = engine.observe_disk(guard).await?;
    let rollback = check::check(engine, bridge, disk, point).await?;
    let outcome = rollback.run(engine, bridge).await;
    match &outcome {
        Ok(()) => engine.log.note(&format!(
            "disk '{}': what was active is the point '{}' now",
            guard.name(),
            rollback.record.name
        )),
        // QEMU may have done it, or it did and the rest is still to come
        Err(_) if rollback.is_open() => engine.settle_later(guard.name()),
        Err(_) => {}
    }
    outcome
}

/// Everything a rollback needs to know, taken before it starts.
struct Rollback {
    disk: String,
    root: NodeName,
    /// Its bytes, as they were looked at.
    size: u64,
    carried: Carried,
    /// The point's top layer, by the name that it keeps.
    onto: Layer,
    /// The file that was active.
    file: FileId,
    record: PointRecord,
    journal: RollbackJournal,
    /// What the guest is to be owed once it stands still.
    debt: GuestDebt,
}

impl Rollback {
    async fn run(&self, engine: &Engine, bridge: &Bridge) -> Result<(), Failure> {
        let prepared = self.prepare(bridge).await;
        let overlay = match prepared {
            Ok(overlay) => overlay,
            Err(failure) => return Err(self.undo(engine, bridge, None, failure).await),
        };
        if let Err(failure) = self.stand_still(engine).await {
            return Err(self.undo(engine, bridge, Some(overlay), failure).await);
        }
        if let Err(failure) = self.exchange(bridge, &overlay).await {
            return Err(self.undo(engine, bridge, Some(overlay), failure).await);
        }
        // after the transaction there is no way back: what fails now is taken up again later
        finish::finish(engine, bridge, &self.disk, &self.journal).await
    }

    /// The transaction.
    async fn exchange(&self, bridge: &Bridge, overlay: &Overlay) -> Result<(), Failure> {
        // what was begun elsewhere meanwhile
        migration::refuse(bridge).await?;
        refuse_if_resized(&bridge.graph().await?, &self.root, self.size)?;
        let snapshot = TransactionAction::BlockdevSnapshot(BlockdevSnapshot {
            node: self.root.clone(),
            overlay: overlay.format.clone(),
        });
        Ok(bridge.transaction(vec![snapshot]).await?)
    }

    /// The marks, the name that the active file is to keep, and the overlay.
    async fn prepare(&self, bridge: &Bridge) -> Result<Overlay, Failure> {
        let (journal, record) = (self.journal.clone(), self.record.clone());
        blocking(move || {
            layer_file::write_rollback(&journal.active, &journal)?;
            layer_file::write_point(&journal.active, &record)?;
            layer_file::link_new(&journal.active, &journal.sealed)?;
            layer_file::create_like(&journal.overlay, &journal.active).map(drop)
        })
        .await?;
        let below = Below {
            path: &self.onto.path,
            format: self.onto.format.name(),
            virtual_size: self.onto.virtual_size,
        };
        overlay::format(bridge, &self.journal.overlay, below, &self.carried).await
    }

    /// First the note, then the deed: a daemon that dies in between leaves a VM to be resumed.
    async fn stand_still(&self, engine: &Engine) -> Result<(), Failure> {
        let journal = RollbackJournal {
            guest: self.debt,
            ..self.journal.clone()
        };
        match self.debt {
            GuestDebt::Nothing => return Ok(()),
            GuestDebt::Reset | GuestDebt::ResetAndGo | GuestDebt::Go => {}
        }
        blocking(move || layer_file::write_rollback(&journal.active, &journal)).await?;
        match self.debt {
            GuestDebt::ResetAndGo | GuestDebt::Go => engine.stop_guest().await,
            GuestDebt::Reset | GuestDebt::Nothing => Ok(()),
        }
    }

    /// Takes back what was done before the transaction, and tells why it was not done.
    async fn undo(
        &self,
        engine: &Engine,
        bridge: &Bridge,
        overlay: Option<Overlay>,
        failure: Failure,
    ) -> Failure {
        if !failure.outcome_known() {
            return failure;
        }
        let owed = layer_file::read_rollback(&self.journal.active);
        if let Ok(Some(journal)) = owed
            && journal.guest == GuestDebt::ResetAndGo
            && let Err(stuck) = engine.let_go_on().await
        {
            engine.log.note(&format!(
                "the VM stays stopped after a rollback that was not done: {stuck}; next: continue it yourself"
            ));
            if !stuck.outcome_known() {
                // with the marks still there it is taken back, and the VM resumed, later
                return stuck;
            }
        }
        if let Some(overlay) = overlay {
            overlay.discard(bridge).await;
        }
        let (journal, file) = (self.journal.clone(), self.file);
        let undone = blocking(move || names::undo(&journal, Some(&journal.overlay), file)).await;
        if let Err(failure) = undone {
            tracing::error!(%failure, "a rollback could not be taken back whole");
        }
        failure
    }

    /// Whether the journal is still there, on the file under whichever name it has now.
    fn is_open(&self) -> bool {
        [&self.journal.sealed, &self.journal.active]
            .iter()
            .any(|path| matches!(layer_file::read_rollback(path), Ok(Some(_))))
    }
}
