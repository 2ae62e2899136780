//! The NBD server of QEMU. A QEMU has one: either we have it started, on a socket of our own, or the
//! user tells which one there is. What was there and was not named is not touched.

use super::names::{Server, is_digits};
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, Claim};
use crate::ops::engine::Engine;
use crate::ops::socket_directory::{self, SocketDirectory};
use qmpbridge::command::{NbdServerStart, NbdServerStop, QueryBlockExports, SocketAddress};
use qmpbridge::{Bridge, Error};
use std::path::PathBuf;

/// Before the digits in the name of a server's directory.
const PREFIX: &str = "qmpfs-nbd-";
/// The socket in it.
const SOCKET: &str = "nbd";
/// What `query-block-exports` calls an export of the NBD server.
const NBD: &str = "nbd";

/// A server that we had started.
pub(in crate::ops) struct NbdServer {
    directory: SocketDirectory,
    _claim: Claim,
}

impl NbdServer {
    /// Where it listens.
    pub(in crate::ops) fn socket(&self) -> PathBuf {
        self.directory.socket()
    }
}

/// Whose server this mount uses.
pub(in crate::ops) fn whose(engine: &Engine) -> Server {
    match engine.config.live.nbd_server {
        Some(_) => Server::Given,
        None => Server::Ours,
    }
}

/// The socket of the server, started if need be. Called by who has the turn.
pub(in crate::ops) async fn socket(engine: &Engine) -> Result<PathBuf, Failure> {
    if let Some(given) = &engine.config.live.nbd_server {
        return Ok(given.clone());
    }
    let known = engine.lives.server.borrow().as_ref().map(NbdServer::socket);
    if let Some(known) = known {
        return Ok(known);
    }
    let started = start(engine.bridge()?).await?;
    let path = started.socket();
    *engine.lives.server.borrow_mut() = Some(started);
    Ok(path)
}

/// Has a QEMU start one, on a socket of our own.
pub(in crate::ops) async fn start(bridge: &Bridge) -> Result<NbdServer, Failure> {
    let digits = layer_file::random_hex();
    let claim = layer_file::claim_kept(&digits)?;
    let directory = SocketDirectory::new(&format!("{PREFIX}{digits}"), SOCKET)?;
    if let Some(pid) = bridge.peer_pid() {
        directory.hand_to(pid)?;
    }
    let start = NbdServerStart {
        addr: SocketAddress::Unix {
            path: directory.socket(),
        },
        max_connections: Some(0),
    };
    match bridge.run(start).await {
        Ok(_) => {}
        Err(error @ Error::Refused { .. }) => {
            return Err(Failure::new(
                Errno::EBUSY,
                format!("QEMU does not start an NBD server for live/: {error}"),
            )
            .next("if it has one already: mount with -o nbd_server=SOCKET, the unix socket that one listens on"));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(NbdServer {
        directory,
        _claim: claim,
    })
}

/// Stops a server of ours that serves nothing any more. Called by who has the turn.
pub(in crate::ops) async fn stop_if_idle(engine: &Engine, bridge: &Bridge) -> Result<(), Failure> {
    let exports = bridge.run(QueryBlockExports).await?;
    if exports.iter().any(|export| export.r#type == NBD) {
        return Ok(());
    }
    match bridge.run(NbdServerStop).await {
        // none runs
        Ok(_) | Err(Error::Refused { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    engine.lives.server.borrow_mut().take();
    Ok(())
}

/// Removes the directories of servers whose mounts were killed.
pub(super) fn sweep_directories() {
    let Ok(entries) = std::fs::read_dir(socket_directory::parent()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(digits) = digits.filter(|digits| is_digits(digits))
            && let Ok(_claim) = layer_file::claim_kept(digits)
        {
            tracing::info!(directory = %entry.path().display(), "left by a killed mount");
            drop(SocketDirectory::left(entry.path(), SOCKET));
        }
    }
}
