//! `echo NAME > rollback`: the VM goes on from a checkpoint. First it stands still, and what it is
//! becomes a checkpoint, `rolled-back-<time>`. QEMU leaves a VM whose load failed with some disks of
//! one moment and some of another: so it goes on only when a load has ended well, that of NAME or
//! that of what was before. Each step is written down on the file that holds the RAM.

use super::job::{StateWork, fresh, is_state_job};
use super::{at_rest, devices, found, look, parts, written};
use crate::errno::{Errno, Failure};
use crate::intent;
use crate::layer_file::{self, LoadJournal, LoadStep};
use crate::model::{Disk, StateVerb};
use crate::ops::Answer;
use crate::ops::blocking::blocking;
use crate::ops::check::changed;
use crate::ops::engine::{Engine, at_work};
use crate::ops::identity;
use crate::ops::rollback::called_after;
use crate::tree::first_free;
use qmpbridge::command::{QueryStatus, SnapshotLoad, SnapshotSave};
use qmpbridge::{Bridge, JobId, JobStatus, NodeName};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// How long a load may take to be over when the RAM was read, for milliseconds as a rule.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// All that is needed to go back, and to come back from there.
struct Load {
    tag: String,
    back: String,
    devices: Vec<NodeName>,
    /// Where the RAM of the checkpoint lies, and where that of the present goes.
    state: NodeName,
    first: NodeName,
    /// The file that the steps are written down on.
    file: PathBuf,
    inode: u64,
    ran: bool,
}

/// Takes the VM back. `answer` is called when QEMU is at work on it, or it is refused.
pub(in crate::ops) async fn load(engine: Rc<Engine>, name: &str, answer: Answer<()>) {
    let ready = async {
        let wanted = written(&engine.observe().await?);
        let guards = engine.hold_all(&wanted).await?;
        let alone = engine.alone().await?;
        let model = look(&engine).await?;
        if written(&model.disks) != wanted {
            return Err(changed());
        }
        intent::checkpoint_complete(&model.disks)?;
        let found = found(&model, name)?;
        intent::checkpoint_loadable(&found)?;
        at_rest(&engine).await?;
        no_job(&engine).await?;
        let wanted = called_after(&crate::render::now());
        // twice within a second
        let taken = |name: &str| intent::checkpoint_free(&model, name).is_err();
        let back = first_free(&wanted, '-', taken);
        let disks = found.members.iter().map(|(disk, _)| *disk);
        let parts = parts(&engine, disks.collect())?;
        let file = parts.holder.active.file.ok_or_else(changed)?;
        let load = Load {
            tag: found.tag.to_owned(),
            back,
            state: found.state.0.root.clone().ok_or_else(changed)?,
            first: parts.first,
            file: parts.holder.active.path.clone(),
            inode: file.ino,
            ran: engine.running().await?,
            devices: parts.devices,
        };
        let work = StateWork::new(&engine, guards, StateVerb::Load, name)?;
        Ok((work, load, alone))
    };
    match ready.await {
        Ok((work, load, _alone)) => {
            let steps = async |work: &StateWork, waiting: &mut Option<Answer<()>>| {
                load.run(&engine, work, waiting).await
            };
            work.run_all(steps, answer).await;
        }
        Err(failure) => answer(Err(failure)),
    }
}

/// A load changes the disks behind everybody's back: what a backup copies, or a live instant keeps,
/// would be of two moments.
async fn no_job(engine: &Engine) -> Result<(), Failure> {
    let jobs = engine.bridge()?.jobs().await?;
    match jobs.iter().find(|job| job.status != JobStatus::Concluded) {
        None => Ok(()),
        Some(job) => Err(Failure::new(
            Errno::EBUSY,
            format!(
                "a {} job, {}, is at work, and a load changes the disks behind its back",
                job.kind, job.id
            ),
        )
        .next("let it end (cat wait), or remove what it keeps: rmdir disks/*/live/NAME")),
    }
}

impl Load {
    async fn run(
        &self,
        engine: &Engine,
        work: &StateWork,
        waiting: &mut Option<Answer<()>>,
    ) -> Result<(), Failure> {
        let id = work.id().clone();
        self.note(engine, LoadStep::Save, &id).await?;
        let saved = async {
            if self.ran {
                engine.stop_guest().await?;
            }
            let save = SnapshotSave {
                job_id: id.clone(),
                tag: self.back.clone(),
                vmstate: self.first.clone(),
                devices: self.devices.clone(),
            };
            let outcome = work.follow(&id, save, waiting).await;
            work.dismiss_after(&id, outcome).await
        };
        if let Err(failure) = saved.await {
            if failure.outcome_known() {
                // nothing was loaded
                self.go_on(engine).await?;
            }
            return Err(failure);
        }
        let id = fresh()?;
        if let Err(failure) = self.note(engine, LoadStep::Load, &id).await {
            // nothing was loaded
            if self.ran {
                engine.resume_guest().await?;
            }
            if let Err(left) = self.forget().await {
                tracing::warn!(%left, "the next mount takes the note away");
            }
            return Err(failure);
        }
        let Err(failure) = self.load_one(work, waiting, &id, LoadStep::Load).await else {
            self.go_on(engine).await?;
            engine.log.note(&format!(
                "the VM goes on from the checkpoint '{}'; what it was before is the checkpoint '{}'",
                self.tag, self.back
            ));
            return work.dismiss(&id).await;
        };
        if !failure.outcome_known() {
            return Err(failure);
        }
        let back = fresh()?;
        let noted = self.note(engine, LoadStep::Back, &back).await;
        // until then the job that failed is what tells of it
        if let Err(left) = async {
            noted?;
            work.dismiss(&id).await
        }
        .await
        {
            // the disks may be of two moments: there is no better way than back
            tracing::warn!(%left, "the way back is not written down");
        }
        match self.load_one(work, waiting, &back, LoadStep::Back).await {
            Ok(()) => {
                self.go_on(engine).await?;
                work.dismiss(&back).await?;
                let message = format!("{}; the VM goes on as it was", failure.message);
                Err(Failure::new(failure.errno, message).next(
                    "QEMU's standard error says more; the VM must have the devices it had then",
                ))
            }
            Err(again) if !again.outcome_known() => Err(again),
            Err(again) => {
                self.forget().await?;
                work.dismiss(&back).await?;
                Err(Failure::new(
                    Errno::EIO,
                    format!(
                        "{}; and the way back failed, too: {}",
                        failure.message, again.message
                    ),
                )
                .next(stays_stopped(&self.back)))
            }
        }
    }

    async fn load_one(
        &self,
        work: &StateWork,
        waiting: &mut Option<Answer<()>>,
        id: &JobId,
        step: LoadStep,
    ) -> Result<(), Failure> {
        let (tag, vmstate) = match step {
            LoadStep::Back => (&self.back, &self.first),
            LoadStep::Save | LoadStep::Load => (&self.tag, &self.state),
        };
        let load = SnapshotLoad {
            job_id: id.clone(),
            tag: tag.clone(),
            vmstate: vmstate.clone(),
            devices: self.devices.clone(),
        };
        work.follow(id, load, waiting).await
    }

    /// First the note, then the deed.
    async fn note(&self, engine: &Engine, step: LoadStep, job: &JobId) -> Result<(), Failure> {
        let journal = LoadJournal {
            version: 1,
            tag: self.tag.clone(),
            back: self.back.clone(),
            step,
            job: job.to_string(),
            qemu: identity::of(engine.bridge()?).await?,
            resume: self.ran,
            inode: self.inode,
        };
        let file = self.file.clone();
        blocking(move || layer_file::write_load(&file, &journal)).await
    }

    /// All disks and the RAM are of one moment: the guest runs, if it ran.
    async fn go_on(&self, engine: &Engine) -> Result<(), Failure> {
        if self.ran {
            engine.resume_guest().await?;
        }
        self.forget().await
    }

    async fn forget(&self) -> Result<(), Failure> {
        let file = self.file.clone();
        blocking(move || layer_file::clear_load(&file)).await
    }
}

fn stays_stopped(back: &str) -> String {
    format!(
        "the VM stays stopped: its disks may be of two moments; end it and start it with -loadvm {back}"
    )
}

/// What a killed daemon left of a load; then the jobs go whose end is written down nowhere any more.
pub(in crate::ops) async fn settle(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
) -> Result<(), Failure> {
    if let Some(journal) = layer_file::read_load(&disk.active.path)? {
        settle_load(engine, bridge, disk, &journal).await?;
    }
    dismiss_told(engine, bridge).await
}

/// A VM whose disks are of one moment goes on, one whose load failed gets its own state back first. How a load ended only
/// its job tells: the guest stood still before it, and does so after it.
async fn settle_load(
    engine: &Engine,
    bridge: &Bridge,
    disk: &Disk,
    journal: &LoadJournal,
) -> Result<(), Failure> {
    let file = disk.active.path.clone();
    let _alone = engine.alone().await?;
    let status = match bridge.supports("query-status") {
        true => bridge.run(QueryStatus).await?.status,
        false => String::new(),
    };
    let (tag, back) = (&journal.tag, &journal.back);
    if identity::of(bridge).await? != journal.qemu {
        engine.log.note(&format!(
            "the VM ended on its way back to the checkpoint '{tag}': if its disks are of two moments, end it and start it with -loadvm {back}"
        ));
        return layer_file::clear_load(&file);
    }
    let jobs = bridge.jobs().await?;
    let job = jobs.iter().find(|job| job.id.as_str() == journal.job);
    if job.is_some_and(|job| job.status != JobStatus::Concluded) {
        return Err(at_work(&disk.name));
    }
    let ended_well = job.map(|job| job.error.is_none());
    let of_one_moment = match (journal.step, ended_well) {
        // it went on after a load that ended well, or somebody wanted it to
        _ if status == "running" => true,
        (LoadStep::Load, Some(true)) => true,
        (LoadStep::Load, Some(false)) | (LoadStep::Back, None) => {
            load_back(engine, bridge, disk, journal).await?
        }
        (LoadStep::Back, Some(well)) => well,
        // nothing was loaded yet
        (LoadStep::Save, _) | (LoadStep::Load, None) => status != "restore-vm",
    };
    if !of_one_moment {
        engine.log.note(&format!(
            "going back to the checkpoint '{tag}' failed (next: {})",
            stays_stopped(back)
        ));
        return layer_file::clear_load(&file);
    }
    if journal.resume && matches!(status.as_str(), "paused" | "restore-vm") {
        engine.resume_guest().await?;
    }
    engine.log.note(&match journal.step {
        LoadStep::Load if ended_well == Some(true) => format!(
            "the VM goes on from the checkpoint '{tag}'; what it was before is the checkpoint '{back}'"
        ),
        LoadStep::Save | LoadStep::Load | LoadStep::Back => format!(
            "qmpfs ended while the VM was on its way back to the checkpoint '{tag}': the VM goes on; if '{back}' is a checkpoint, that is what it was before"
        ),
    });
    layer_file::clear_load(&file)
}

/// Loads what was before, of all disks that have it. Gives whether it could be; its job stays until that is written down.
async fn load_back(
    engine: &Engine,
    bridge: &Bridge,
    holder: &Disk,
    journal: &LoadJournal,
) -> Result<bool, Failure> {
    let model = look(engine).await?;
    let found = found(&model, &journal.back)?;
    let disks: Vec<&Disk> = found.members.iter().map(|(disk, _)| *disk).collect();
    let id = fresh()?;
    let journal = LoadJournal {
        step: LoadStep::Back,
        job: id.to_string(),
        ..journal.clone()
    };
    let file = holder.active.path.clone();
    blocking(move || layer_file::write_load(&file, &journal)).await?;
    let load = SnapshotLoad {
        job_id: id.clone(),
        tag: found.tag.to_owned(),
        vmstate: found.state.0.root.clone().ok_or_else(changed)?,
        devices: devices(&disks)?,
    };
    let loaded = async {
        let mut job = bridge.start_job(id, load).await?;
        // it was answered when the RAM was read
        job.wait_concluded_within(END_DEADLINE).await
    };
    match loaded.await.map_err(Failure::from) {
        Ok(_) => Ok(true),
        Err(failure) if failure.outcome_known() => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Jobs of ours on the state of the VM that have ended: while a disk is held nobody is at such a one. What one tells that
/// is written down on any disk is wanted yet.
async fn dismiss_told(engine: &Engine, bridge: &Bridge) -> Result<(), Failure> {
    let mut ended = bridge.jobs().await?;
    ended.retain(|job| job.status == JobStatus::Concluded && is_state_job(&job.id));
    if ended.is_empty() {
        return Ok(());
    }
    for disk in engine.observe().await? {
        if disk.no_snapshots.is_none()
            && let Some(journal) = layer_file::read_load(&disk.active.path)?
        {
            ended.retain(|job| job.id.as_str() != journal.job);
        }
    }
    for job in ended {
        bridge.dismiss_job(&job.id).await?;
    }
    Ok(())
}
