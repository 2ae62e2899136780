//! The job that merges one backup's file into another's, in a storage daemon of ours, from its start to its end.

use super::gone;
use crate::backups::MergeVerb;
use crate::errno::Failure;
use crate::model::Format;
use crate::ops::Answer;
use crate::ops::durable;
use crate::ops::engine::Engine;
use crate::ops::nodes::{self, Carried, Role};
use crate::sys;
use qmpbridge::command::{BlockCommit, BlockStream};
use qmpbridge::{Bridge, JobHandle, JobId, JobStage, JobStatus};
use std::path::PathBuf;
use std::time::Duration;

/// How often a running job's progress is looked at.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// A job in a storage daemon of ours.
pub(super) struct Work<'a> {
    pub(super) engine: &'a Engine,
    pub(super) disk: &'a str,
    pub(super) bridge: &'a Bridge,
    pub(super) job: &'a JobId,
}

impl Work<'_> {
    /// Opens a chain and merges its layer `at`: into the top one, or the top one into it.
    pub(super) async fn up_or_down(
        &self,
        verb: MergeVerb,
        chain: &[(PathBuf, Format)],
        at: usize,
        answer: &mut Option<Answer<()>>,
    ) -> Result<(), Failure> {
        let made = nodes::add_chain(self.bridge, chain).await?;
        let (Some(top), Some(here)) = (made.last().cloned(), made.get(at).cloned()) else {
            return Err(gone());
        };
        let below = at.checked_sub(1);
        let mut handle = match verb {
            MergeVerb::Stream => {
                let mut command = BlockStream::new(self.job.clone(), top.clone());
                command.base_node = below.and_then(|at| made.get(at).cloned());
                // by its name alone: the directory can be carried elsewhere
                command.backing_file =
                    below.and_then(|at| chain[at].0.file_name().map(PathBuf::from));
                self.bridge.start_job(self.job.clone(), command).await?
            }
            MergeVerb::Commit => {
                if let Some((path, _)) = chain.last() {
                    let file = sys::file_id(path).map_err(|error| {
                        Failure::io(format!("look at {}", path.display()), &error)
                    })?;
                    // QEMU unshares "consistent read" on what it commits: our lock there would refuse the job
                    self.engine.cache.unlock(file);
                }
                let command = BlockCommit {
                    base_node: Some(here),
                    ..BlockCommit::new(self.job.clone(), top.clone())
                };
                let begun = self.bridge.start_job(self.job.clone(), command).await;
                begun.map_err(Failure::from).inspect_err(|failure| {
                    if !failure.outcome_known()
                        && let Some(answer) = answer.take()
                    {
                        // it may have written to that file: there is no way back
                        answer(Ok(()));
                    }
                })?
            }
        };
        if let Some(answer) = answer.take() {
            answer(Ok(()));
        }
        match verb {
            MergeVerb::Stream => {
                let pending = self.followed(&mut handle, Until::Pending).await?;
                if pending == Reached::It {
                    // its header is not to name what lies below before all tables are in the file
                    let carried = Carried::default();
                    durable::flush_under_a_job(self.bridge, &top, Role::Active, &carried).await?;
                    self.bridge.finalize_job(self.job).await?;
                }
            }
            MergeVerb::Commit => {
                if self.followed(&mut handle, Until::Ready).await? == Reached::It {
                    self.bridge.complete_job(self.job).await?;
                }
            }
        }
        handle.wait_concluded().await.map_err(Failure::from)
    }

    /// Waits for a stage of the job, and shows its progress meanwhile.
    async fn followed(&self, handle: &mut JobHandle, until: Until) -> Result<Reached, Failure> {
        loop {
            let reached = async {
                Ok::<_, qmpbridge::Error>(match until {
                    Until::Pending => match handle.wait_pending_or_concluded().await? {
                        JobStatus::Pending => Reached::It,
                        _ => Reached::TheEnd,
                    },
                    Until::Ready => match handle.wait_ready_or_concluded().await? {
                        JobStage::Ready => Reached::It,
                        JobStage::Concluded => Reached::TheEnd,
                    },
                })
            };
            tokio::select! {
                reached = reached => return reached.map_err(Failure::from),
                () = tokio::time::sleep(PROGRESS_EVERY) => {}
            }
            self.engine
                .show_progress(self.disk, self.job.as_str())
                .await;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Pending,
    Ready,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reached {
    It,
    TheEnd,
}
