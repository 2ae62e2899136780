//! Takes an instant down, whatever of it there is: export, job, nodes, scratch file, in this order. An
//! export whose job is gone would show the disk as it is now.

use super::names::{Names, Server};
use super::server;
use crate::errno::Failure;
use crate::model::FileId;
use crate::ops::blocking::blocking;
use crate::ops::engine::Engine;
use crate::ops::scratch::patience;
use crate::ops::settle;
use qmpbridge::command::{BlockExportDel, ExportRemoval, QueryBlockExports};
use qmpbridge::{Bridge, Error};
use std::path::PathBuf;
use std::time::Instant;

/// See the module. Called by who has the turn; doing it twice changes nothing.
pub(super) async fn dismantle(
    engine: &Engine,
    names: &Names,
    scratch: Option<(PathBuf, FileId)>,
) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    export(bridge, names).await?;
    names.called().let_go(bridge).await?;
    if names.server == Server::Ours {
        server::stop_if_idle(engine, bridge).await?;
    }
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
