//! Takes an instant down, whatever of it there is: export, job, nodes, scratch file, in this order. An
//! export whose job is gone would show the disk as it is now.

use super::names::{Names, Server};
use super::server;
use crate::errno::{Errno, Failure};
use crate::model::FileId;
use crate::ops::blocking::blocking;
use crate::ops::engine::Engine;
use crate::ops::settle;
use qmpbridge::command::{BlockExportDel, BlockdevDel, ExportRemoval, QueryBlockExports};
use qmpbridge::{Bridge, Cancel, Error, JobStatus};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long an export or a job may take to go: it waits for requests that are on their way.
const GO_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// See the module. Called by who has the turn; doing it twice changes nothing.
pub(super) async fn dismantle(
    engine: &Engine,
    names: &Names,
    scratch: Option<(PathBuf, FileId)>,
) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    export(bridge, names).await?;
    job(bridge, names).await?;
    if names.server == Server::Ours {
        server::stop_if_idle(engine, bridge).await?;
    }
    nodes(bridge, names).await?;
    match scratch {
        Some((path, file)) => blocking(move || settle::remove_file(&path, file)).await,
        None => Ok(()),
    }
}

async fn export(bridge: &Bridge, names: &Names) -> Result<(), Failure> {
    let id = names.to_string();
    let began = Instant::now();
    let mut asked = false;
    loop {
        let exports = bridge.run(QueryBlockExports).await?;
        let Some(export) = exports.iter().find(|export| export.id == id) else {
            return Ok(());
        };
        if !asked && !export.shutting_down {
            let end = BlockExportDel {
                id: id.clone(),
                mode: Some(ExportRemoval::Hard),
            };
            match bridge.run(end).await {
                // gone, or going, meanwhile
                Ok(_) | Err(Error::Refused { .. }) => asked = true,
                Err(error) => return Err(error.into()),
            }
        }
        patience(began, "its export does not end").await?;
    }
}

async fn job(bridge: &Bridge, names: &Names) -> Result<(), Failure> {
    let began = Instant::now();
    let mut asked = false;
    loop {
        let jobs = bridge.jobs().await?;
        let Some(job) = jobs.into_iter().find(|job| job.id == names.job()) else {
            return Ok(());
        };
        if job.status == JobStatus::Concluded {
            bridge.dismiss_job(&job.id).await?;
            return Ok(());
        }
        if !asked {
            match bridge.cancel_job(&job.id, Cancel::Force).await {
                // it may be one that cannot be cancelled and ends by itself
                Ok(()) | Err(Error::Refused { .. }) => asked = true,
                Err(error) => return Err(error.into()),
            }
        }
        patience(began, "its job does not end").await?;
    }
}

async fn nodes(bridge: &Bridge, names: &Names) -> Result<(), Failure> {
    let graph = bridge.graph().await?;
    for node_name in [names.node(), names.file_node()] {
        if graph.node(&node_name).is_some() {
            bridge.run(BlockdevDel { node_name }).await?;
        }
    }
    Ok(())
}

async fn patience(began: Instant, what: &str) -> Result<(), Failure> {
    if began.elapsed() > GO_DEADLINE {
        return Err(Failure::new(Errno::ETIMEDOUT, what)
            .next("look whether QEMU hangs, and remove it again"));
    }
    tokio::time::sleep(LOOK_EVERY).await;
    Ok(())
}
