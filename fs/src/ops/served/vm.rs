//! Layers that only the VM's own QEMU can read: it has the key, or the other files. Its node is exported read-only,
//! on the NBD server that instants in live/ use; no node is added and none is changed.
//! It knows exports and the server; which layer is asked for, and who reads it, it does not know.

use super::names::Names;
use crate::errno::{Errno, Failure};
use crate::intent::Reach;
use crate::layer_file;
use crate::model::Layer;
use crate::ops::engine::Engine;
use crate::ops::live;
use crate::sys;
use qmpbridge::command::{
    BlockExportAdd, BlockExportDel, ExportKind, ExportRemoval, QueryBlockExports,
};
use qmpbridge::{Bridge, Error, NodeName};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long an export may take to go: it waits for requests that are on their way.
const GO_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The QEMU that has a node of a layer, if it may be asked.
pub(super) fn bridge(engine: &Engine) -> Result<&Bridge, Failure> {
    let bridge = engine.bridge()?;
    if !Reach::Beside.is_allowed(engine.manager(), engine.config.verbs) {
        return Err(Failure::new(
            Errno::EPERM,
            "only the VM's QEMU can read it, and the VM is libvirt's",
        )
        .next(
            "mount with -o coexist: then QEMU is asked to serve it, of which libvirt will not know",
        ));
    }
    for needs in ["block-export-add", "nbd-server-start"] {
        if !bridge.supports(needs) {
            return Err(Error::TooOld { needs }.into());
        }
    }
    Ok(bridge)
}

/// Sees what is still served, and whether the server that we had started went with a QEMU that is gone.
pub(super) async fn look(engine: &Engine) -> Result<(), Failure> {
    let bridge = bridge(engine)?;
    let _turn = engine.lives.turn().await?;
    super::sweep(engine, bridge).await?;
    live::forget_a_server_without_use(engine);
    Ok(())
}

/// Whether a node is what the model says: QEMU may have been started again since, and call another so.
pub(super) async fn is_still(
    engine: &Engine,
    layer: &Layer,
    node: &NodeName,
) -> Result<(), Failure> {
    let bridge = bridge(engine)?;
    let graph = bridge.graph().await?;
    let there = graph.node(node).and_then(|node| node.path.as_deref());
    let there = there.and_then(|path| engine.sight(bridge).resolve(path));
    let file = there.and_then(|path| sys::file_id(&path).ok());
    if file.is_some() && file == layer.file {
        return Ok(());
    }
    Err(Failure::new(
        Errno::ESTALE,
        format!("QEMU's node {node} is another one by now"),
    )
    .next("open it again"))
}

/// Exports a node. Gives the socket of the server.
pub(super) async fn add(
    engine: &Engine,
    names: &Names,
    node: &NodeName,
) -> Result<PathBuf, Failure> {
    let bridge = bridge(engine)?;
    let _turn = engine.lives.turn().await?;
    let socket = live::server_socket(engine).await?;
    let export = BlockExportAdd {
        r#type: ExportKind::Nbd,
        id: names.to_string(),
        node_name: node.clone(),
        name: Some(names.to_string()),
        writable: None,
        bitmaps: None,
    };
    if let Err(error) = bridge.run(export).await {
        if let Err(failure) = stop_server(engine, bridge, names).await {
            tracing::debug!(%failure, "the server stays");
        }
        return Err(error.into());
    }
    Ok(socket)
}

/// Takes an export down, and the server if it was ours and serves nothing more.
pub(super) async fn remove(engine: &Engine, names: &Names) -> Result<(), Failure> {
    let bridge = engine.bridge()?;
    let _turn = engine.lives.turn().await?;
    end_export(bridge, names).await?;
    stop_server(engine, bridge, names).await
}

async fn end_export(bridge: &Bridge, names: &Names) -> Result<(), Failure> {
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
        if began.elapsed() > GO_DEADLINE {
            return Err(Failure::new(Errno::ETIMEDOUT, "an export does not end")
                .next("look whether QEMU hangs"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn stop_server(engine: &Engine, bridge: &Bridge, names: &Names) -> Result<(), Failure> {
    match names.server() {
        live::Server::Ours => live::stop_server_if_idle(engine, bridge).await,
        live::Server::Given => Ok(()),
    }
}

/// Of QEMU's exports the ids, for who compares them with what is held; what mounts left that were killed goes.
pub(super) async fn sweep(
    engine: &Engine,
    bridge: &Bridge,
    held: &[Names],
) -> Result<BTreeSet<String>, Failure> {
    let exports = bridge.run(QueryBlockExports).await?;
    for names in exports.iter().filter_map(|export| Names::of(&export.id)) {
        if held.contains(&names) {
            continue;
        }
        // who claims it lives
        if let Ok(_claim) = layer_file::claim_kept(names.digits()) {
            end_export(bridge, &names).await?;
            // what was served by a server of ours says that it is one
            if names.server() == live::Server::Ours {
                live::stop_server_unless_used(bridge).await?;
            }
            engine.log.note(&format!(
                "{names}: a layer that QEMU served for a killed mount is served no more"
            ));
        }
    }
    Ok(exports.into_iter().map(|export| export.id).collect())
}
