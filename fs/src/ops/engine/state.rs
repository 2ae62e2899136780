//! A job on the state of the whole VM: while it is at work QEMU answers nobody, at no monitor.
//! So nobody asks it anything, verbs are refused at once, and listings show what was there.

use super::Engine;
use crate::errno::{Errno, Failure};
use crate::model::{Model, StateJob};

impl Engine {
    /// From here on QEMU is left alone.
    pub(in crate::ops) fn begin_state_job(&self, job: StateJob) {
        *self.state_job.borrow_mut() = Some(job);
        self.publish_state_job();
    }

    /// QEMU answers again. What is shown changes with the next look at it.
    pub(in crate::ops) fn end_state_job(&self) {
        self.state_job.borrow_mut().take();
    }

    /// Shows what QEMU is doing, or no longer does.
    pub(in crate::ops) fn publish_state_job(&self) {
        let mut model = Model::clone(&self.current());
        model.vm.state_job = self.state_job.borrow().clone();
        self.publish(model);
    }

    /// Refuses what would have to ask QEMU.
    pub(in crate::ops) fn qemu_is_free(&self) -> Result<(), Failure> {
        match &*self.state_job.borrow() {
            None => Ok(()),
            Some(job) => Err(Failure::new(
                Errno::EBUSY,
                format!(
                    "QEMU is at work on the whole VM ({} '{}') and answers nobody",
                    job.verb.word(),
                    job.name
                ),
            )
            .next("wait for it: cat wait")),
        }
    }
}
