//! What was left open (a verb whose outcome is not known, names that could not be put right, an ended
//! job that QEMU did not hear dismissed) is tried again until it is settled: soon at first, and then for
//! ever, but seldom.

use super::Engine;
use crate::ops::{checkpoint, recover};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// The first attempt: most of what is left open QEMU or the files can tell at once.
const SETTLE_FIRST: Duration = Duration::from_millis(50);
/// Between two later attempts, at most: the pause doubles until then.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// After so many attempts a person has to look, and that takes a while.
const SETTLE_SOON: u32 = 60;
/// From then on only every so many times.
const SETTLE_SELDOM: u32 = 15;

impl Engine {
    /// Remembers a merge that was refused and is still written down.
    pub(in crate::ops) fn remember_refused(&self, job: &str) {
        self.refused.borrow_mut().insert(job.to_owned());
    }

    pub(in crate::ops) fn was_refused(&self, job: &str) -> bool {
        self.refused.borrow().contains(job)
    }

    /// A verb ended without knowing what QEMU did: finds out as soon as QEMU (or its files) can tell.
    pub(in crate::ops) fn settle_later(&self, disk: &str) {
        self.try_later(
            disk,
            "the outcome is not known yet and is settled as soon as QEMU answers",
        );
    }

    /// Something of a disk is still to be done; `what` says to a person what it is.
    pub(in crate::ops) fn try_later(&self, disk: &str, what: &str) {
        if self.unsettled.borrow_mut().insert(disk.to_owned()) {
            self.log.note(&format!("disk '{disk}': {what}"));
            self.left_open.notify_one();
        }
    }

    /// Whether something of the disk waits to be settled.
    pub(in crate::ops) fn is_unsettled(&self, disk: &str) -> bool {
        self.unsettled.borrow().contains(disk)
    }

    pub(in crate::ops) fn report_once(&self, text: &str) {
        if self.reported.borrow_mut().insert(text.to_owned()) {
            self.log.note(text);
        }
    }

    fn unsettled(&self) -> Vec<String> {
        self.unsettled.borrow().iter().cloned().collect()
    }
}

/// Tries again and again to settle what was left open, until it is.
pub(in crate::ops) async fn keep_settling(engine: Rc<Engine>) {
    let mut attempts: HashMap<String, u32> = HashMap::new();
    let mut pause = SETTLE_EVERY;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(SETTLE_EVERY),
            () = engine.left_open.notified() => {
                pause = SETTLE_FIRST;
                continue;
            }
        }
        dismiss_late(&engine).await;
        for disk in engine.unsettled() {
            if engine.is_merging(&disk) {
                // it is taken up again, or at its end
                continue;
            }
            let tries = attempts.entry(disk.clone()).or_default();
            *tries = tries.saturating_add(1);
            if *tries > SETTLE_SOON && !tries.is_multiple_of(SETTLE_SELDOM) {
                continue;
            }
            // holding the disk settles it first; a merge that still runs is followed again
            let settled = match engine.hold_to_settle(&disk).await {
                Ok(guard) => recover::disk(Rc::clone(&engine), guard).await,
                Err(failure) => Err(failure),
            };
            match settled {
                Ok(()) => {
                    engine.unsettled.borrow_mut().remove(&disk);
                    attempts.remove(&disk);
                    if let Err(failure) = engine.refresh(&[]).await {
                        tracing::debug!(%failure, "refresh");
                    }
                    // only now: who reads it finds the tree as it is
                    engine.log.note(&format!("disk '{disk}': settled"));
                }
                Err(failure) => {
                    engine.report_once(&format!("disk '{disk}': not settled yet: {failure}"))
                }
            }
        }
    }
}

/// Nobody waits for these jobs any more: their verbs have seen them end. How one on the state of the whole VM ended
/// tells what is to be done next, so that it is dismissed there.
async fn dismiss_late(engine: &Engine) {
    let Ok(bridge) = engine.bridge() else { return };
    if engine.qemu_is_free().is_err() {
        return;
    }
    let left = bridge.undismissed();
    for job in left.iter().filter(|job| !checkpoint::is_state_job(job)) {
        if let Err(error) = bridge.dismiss_late(job).await {
            // as late as QEMU answers
            tracing::debug!(%job, %error, "an ended job is not dismissed yet");
            return;
        }
    }
}
