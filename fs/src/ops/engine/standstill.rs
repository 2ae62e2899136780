//! A guest that is stopped and let go on: by one verb at a time, here and among other mounts, or
//! one would let it go on while another still needs it to stand still. Who stops it holds his disks
//! before, and takes none after.

use super::Engine;
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, Claim};
use crate::ops::identity;
use qmpbridge::Connection;
use qmpbridge::command::{Cont, QueryStatus, Stop};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep, timeout_at};

/// How long a verb waits for another one that has stopped the guest, for milliseconds as a rule.
const STANDSTILL_DEADLINE: Duration = Duration::from_secs(5);
/// How long the end of a mount waits for it: a load of a VM with much RAM takes minutes.
const LAST_DEADLINE: Duration = Duration::from_secs(300);
/// Between two attempts where another process has it.
const CLAIM_PAUSE: Duration = Duration::from_millis(10);

/// The right to stop the guest, and to let it go on.
pub(in crate::ops) struct Alone {
    _here: OwnedMutexGuard<()>,
    /// None where there is no guest, or QEMU is on another machine.
    _among_mounts: Option<Claim>,
}

/// The guest does not run, if it ran, until [`Engine::go_on`] is called with this.
pub(in crate::ops) struct Standstill {
    stopped: bool,
    _alone: Option<Alone>,
}

impl Standstill {
    /// Whether the guest was stopped for it.
    pub(in crate::ops) fn is_still(&self) -> bool {
        self.stopped
    }

    /// Nobody was stopped.
    pub(in crate::ops) fn not_needed() -> Self {
        Standstill {
            stopped: false,
            _alone: None,
        }
    }
}

impl Engine {
    /// Stops the guest, if it runs, after `note` has written down that it is to be resumed.
    pub(in crate::ops) async fn stand_still(
        &self,
        note: impl AsyncFnOnce() -> Result<(), Failure>,
    ) -> Result<Standstill, Failure> {
        let alone = self.alone().await?;
        let stopped = self.running().await?;
        if stopped {
            note().await?;
            self.stop_guest().await?;
        }
        Ok(Standstill {
            stopped,
            _alone: Some(alone),
        })
    }

    /// Lets the guest go on, if it was stopped for this.
    pub(in crate::ops) async fn go_on(&self, standstill: Standstill) -> Result<(), Failure> {
        match standstill.stopped {
            true => self.let_go_on().await,
            false => Ok(()),
        }
    }

    /// Lets a guest go on that we have stopped. One that has gone to another QEMU meanwhile does not run here once more.
    pub(in crate::ops) async fn let_go_on(&self) -> Result<(), Failure> {
        match self.paused().await? {
            true => self.resume_guest().await,
            false => Ok(()),
        }
    }

    /// Waits for the right to stop the guest.
    pub(in crate::ops) async fn alone(&self) -> Result<Alone, Failure> {
        let stopped_by_another = || {
            Failure::new(Errno::ETIMEDOUT, "another verb has stopped the guest")
                .next("try again when it has ended: cat wait")
                // QEMU was not asked for anything
                .nothing_done()
        };
        let deadline = Instant::now() + STANDSTILL_DEADLINE;
        let here = timeout_at(deadline, Arc::clone(&self.standing).lock_owned())
            .await
            .map_err(|_| stopped_by_another())?;
        let among_mounts = match &self.bridge {
            Some(bridge) if bridge.supports("stop") => {
                let qemu = identity::of(bridge).await.map_err(Failure::nothing_done)?;
                loop {
                    match layer_file::claim_guest(qemu) {
                        Ok(claim) => break claim,
                        Err(failure) if failure.errno != Errno::EBUSY => return Err(failure),
                        Err(_) if Instant::now() >= deadline => return Err(stopped_by_another()),
                        Err(_) => sleep(CLAIM_PAUSE).await,
                    }
                }
            }
            // a storage daemon has no guest
            Some(_) | None => None,
        };
        Ok(Alone {
            _here: here,
            _among_mounts: among_mounts,
        })
    }

    /// Waits until whoever has stopped the guest has let it go on; from then on nobody stops it. Not where QEMU is gone, or
    /// hangs: the next mount does what is left.
    pub(in crate::ops) async fn last_standstill(&self) -> Option<OwnedMutexGuard<()>> {
        let standing = Arc::clone(&self.standing);
        if let Ok(nobody) = Arc::clone(&standing).try_lock_owned() {
            return Some(nobody);
        }
        self.log
            .note("the guest stands still: this mount ends as soon as it goes on");
        let Some(bridge) = &self.bridge else {
            return None;
        };
        let mut connection = bridge.connection();
        let gone = connection.wait_for(|now| matches!(now, Connection::Down { .. }));
        tokio::select! {
            nobody = standing.lock_owned() => Some(nobody),
            _ = gone => None,
            () = sleep(LAST_DEADLINE) => None,
        }
    }

    /// Whether a guest runs. A storage daemon has none that could be stopped.
    pub(in crate::ops) async fn running(&self) -> Result<bool, Failure> {
        let bridge = self.bridge()?;
        if !bridge.supports("stop") {
            return Ok(false);
        }
        Ok(bridge.run(QueryStatus).await?.running)
    }

    /// Whether the guest stands still because it was told to stop, by us or by a person: not for
    /// an I/O error, nor because it never ran.
    pub(in crate::ops) async fn paused(&self) -> Result<bool, Failure> {
        let bridge = self.bridge()?;
        if !bridge.supports("stop") {
            return Ok(false);
        }
        Ok(bridge.run(QueryStatus).await?.status == "paused")
    }

    pub(in crate::ops) async fn stop_guest(&self) -> Result<(), Failure> {
        let began = std::time::Instant::now();
        self.bridge()?.run(Stop).await?;
        self.stopped.set(Some(began));
        Ok(())
    }

    pub(in crate::ops) async fn resume_guest(&self) -> Result<(), Failure> {
        self.bridge()?.run(Cont).await?;
        if let Some(began) = self.stopped.take() {
            self.log.counters().stopped(began.elapsed());
        }
        Ok(())
    }
}
