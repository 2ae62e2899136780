//! The instants that this mount keeps, and the NBD server it had started for them. They are nowhere
//! else: they end with the mount, and what a killed one leaves is swept by the next.
//! It knows what is kept and whether it can still be read; how it is made and ended it does not know.

use super::names::Names;
use super::server::NbdServer;
use crate::errno::{Errno, Failure};
use crate::layer_file::Claim;
use crate::model::Live;
use crate::nbd;
use qmpbridge::{Event, EventKind, JobStatus};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// How long one waits for another who makes or ends an instant; either takes well under a second.
const TURN_DEADLINE: Duration = Duration::from_secs(10);

/// One instant.
pub(super) struct Held {
    pub(super) disk: String,
    pub(super) live: Live,
    pub(super) names: Names,
    /// Where it is served.
    pub(super) socket: PathBuf,
    /// What its views share.
    pub(super) open: Weak<nbd::Disk>,
    /// Says to others that its mount lives.
    pub(super) _claim: Claim,
}

impl Held {
    fn break_off(&mut self, why: &str) {
        self.live.broken.get_or_insert_with(|| why.to_owned());
        if let Some(open) = self.open.upgrade() {
            open.break_off(why);
        }
    }
}

/// See the module.
#[derive(Default)]
pub(in crate::ops) struct Book {
    held: RefCell<Vec<Held>>,
    /// The server that we had started.
    pub(super) server: RefCell<Option<NbdServer>>,
    turn: Mutex<()>,
}

impl Book {
    /// The instants of a disk, oldest first.
    pub(in crate::ops) fn of(&self, disk: &str) -> Vec<Live> {
        let held = self.held.borrow();
        let own = held.iter().filter(|held| held.disk == disk);
        own.map(|held| held.live.clone()).collect()
    }

    /// Whether a disk has an instant of that name.
    pub(super) fn has(&self, disk: &str, name: &str) -> bool {
        let held = self.held.borrow();
        let mut own = held.iter().filter(|held| held.disk == disk);
        own.any(|held| held.live.record.name == name)
    }

    /// Refuses to change disks that have an instant: it stands on their active layer.
    pub(in crate::ops) fn refuse(&self, disks: &BTreeSet<String>) -> Result<(), Failure> {
        let held = self.held.borrow();
        match held.iter().find(|held| disks.contains(&held.disk)) {
            None => Ok(()),
            Some(Held { disk, live, .. }) => {
                let name = &live.record.name;
                Err(Failure::new(
                    Errno::EBUSY,
                    format!("disk '{disk}' has the live instant '{name}', which needs its layers as they are"),
                )
                .next(format!("rmdir disks/{disk}/live/{name} first")))
            }
        }
    }

    /// An event that tells that nobody saves old bytes any more ends what is shown, before a byte
    /// that is too new can be read.
    pub(in crate::ops) fn heard(&self, event: &Event) {
        let EventKind::JobStatusChange { id, status } = event.kind() else {
            return;
        };
        let is_over = matches!(
            status,
            JobStatus::Aborting | JobStatus::Concluded | JobStatus::Null
        );
        if let Some(names) = Names::of(id.as_str()).filter(|_| is_over) {
            self.break_off(&names, "its job was ended by somebody else");
        }
    }

    /// From now on it shows nothing.
    pub(super) fn break_off(&self, names: &Names, why: &str) {
        let mut held = self.held.borrow_mut();
        if let Some(held) = held.iter_mut().find(|held| held.names == *names) {
            held.break_off(why);
        }
    }

    /// Takes the right to make or end instants, and to start or stop the server.
    pub(in crate::ops) async fn turn(&self) -> Result<MutexGuard<'_, ()>, Failure> {
        tokio::time::timeout(TURN_DEADLINE, self.turn.lock())
            .await
            .map_err(|_| {
                Failure::new(
                    Errno::EBUSY,
                    "another live instant is being made or removed",
                )
                .next("look whether QEMU hangs, and try again")
            })
    }

    pub(super) fn keep(&self, held: Held) {
        self.held.borrow_mut().push(held);
    }

    pub(super) fn forget(&self, names: &Names) {
        // dropped only after the book is closed again
        let _gone = {
            let mut held = self.held.borrow_mut();
            let at = held.iter().position(|held| held.names == *names);
            at.map(|at| held.remove(at))
        };
    }

    /// What there is, by name, with its disk and what it shows.
    pub(super) fn all(&self) -> Vec<(Names, String, Live)> {
        let held = self.held.borrow();
        held.iter()
            .map(|held| (held.names.clone(), held.disk.clone(), held.live.clone()))
            .collect()
    }

    pub(super) fn find(&self, id: &str) -> Option<(Names, Live)> {
        let held = self.held.borrow();
        let found = held.iter().find(|held| held.live.record.id == id)?;
        Some((found.names.clone(), found.live.clone()))
    }

    /// Where an instant is read, and who reads it already.
    pub(super) fn place(&self, names: &Names) -> Option<(PathBuf, Option<Arc<nbd::Disk>>)> {
        let held = self.held.borrow();
        let found = held.iter().find(|held| held.names == *names)?;
        Some((found.socket.clone(), found.open.upgrade()))
    }

    /// What is open now is shared with those who come. False if it was broken meanwhile.
    pub(super) fn opened(&self, names: &Names, disk: &Arc<nbd::Disk>) -> bool {
        let mut held = self.held.borrow_mut();
        let whole = held
            .iter_mut()
            .find(|held| held.names == *names && held.live.broken.is_none());
        match whole {
            Some(held) => {
                held.open = Arc::downgrade(disk);
                true
            }
            None => false,
        }
    }
}
