//! The storage daemon that opens layers for views: started with the first one, ended some seconds after the last.
//! It has one image for each layer, read-only, `force-share` and with nothing below it, whatever a header says;
//! so it holds lock byte 100 and no other (docs/decisions/0027).

use super::names::Names;
use crate::errno::{Errno, Failure};
use crate::model::Layer;
use crate::offline;
use crate::ops::embedded::StorageDaemon;
use crate::ops::live::{NbdServer, start_server};
use qmpbridge::command::{
    Backing, BlockExportAdd, BlockExportDel, BlockdevAdd, BlockdevDel, BlockdevOptions, ExportKind,
    ExportRemoval,
};
use qmpbridge::{Bridge, Connection};
use std::path::PathBuf;

/// A running one.
pub(super) struct Daemon {
    daemon: StorageDaemon,
    server: NbdServer,
}

impl Daemon {
    pub(super) async fn start() -> Result<Self, Failure> {
        let started = StorageDaemon::bare().await;
        let daemon = started.map_err(|failure| match failure.errno {
            // it is not installed, and no point is missing
            Errno::ENOENT => Failure {
                errno: Errno::EOPNOTSUPP,
                ..failure
            },
            _ => failure,
        })?;
        let server = start_server(daemon.bridge()).await?;
        Ok(Daemon { daemon, server })
    }

    pub(super) fn bridge(&self) -> &Bridge {
        self.daemon.bridge()
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.server.socket()
    }

    /// Whether it has died.
    pub(super) fn is_gone(&self) -> bool {
        matches!(
            *self.bridge().connection().borrow(),
            Connection::Down { .. }
        )
    }
}

/// Opens and exports a layer.
pub(super) async fn add(bridge: &Bridge, names: &Names, layer: &Layer) -> Result<(), Failure> {
    let format = layer.format.name();
    let mut file = BlockdevOptions::file(names.file_node(), &layer.path);
    let mut image = BlockdevOptions::over(format, names.node(), names.file_node());
    for options in [&mut file, &mut image] {
        options.read_only = Some(true);
        options.force_share = Some(true);
    }
    if offline::can_stand_on_another(format) {
        image.backing = Backing::Nothing;
    }
    bridge.run(BlockdevAdd(file)).await?;
    let opened = bridge.run(BlockdevAdd(image)).await;
    opened.map_err(|error| {
        Failure::new(
            Errno::EIO,
            format!(
                "QEMU does not open {} as {format}: {error}",
                layer.path.display()
            ),
        )
        .next("its words say why; qemu-img check tells whether the image is sound")
    })?;
    let graph = bridge.graph().await?;
    let below = graph
        .node(&names.node())
        .and_then(|node| node.backing_filename.as_ref());
    if let Some(below) = below {
        return Err(offline::stands_on_another(&layer.path, format, below));
    }
    let export = BlockExportAdd {
        r#type: ExportKind::Nbd,
        id: names.to_string(),
        node_name: names.node(),
        name: Some(names.to_string()),
        writable: None,
        bitmaps: None,
    };
    bridge.run(export).await?;
    Ok(())
}

/// Takes all of it down, as far as it is there. A daemon that does not answer is gone, or goes with the mount.
pub(super) async fn remove(bridge: &Bridge, names: &Names) {
    let export = BlockExportDel {
        id: names.to_string(),
        mode: Some(ExportRemoval::Hard),
    };
    if let Err(error) = bridge.run(export).await {
        tracing::debug!(%names, %error, "an export stays");
    }
    for node_name in [names.node(), names.file_node()] {
        if let Err(error) = bridge.run(BlockdevDel { node_name }).await {
            tracing::debug!(%names, %error, "a node stays");
        }
    }
}
