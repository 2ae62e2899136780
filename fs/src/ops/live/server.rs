//! The NBD server of QEMU. A QEMU has one: either we have it started, on a socket of our own, or the
//! user tells which one there is. What was there and was not named is not touched.

use super::names::{Server, is_digits};
use crate::errno::{Errno, Failure};
use crate::layer_file::{self, Claim};
use crate::ops::blocking::blocking;
use crate::ops::engine::Engine;
use crate::ops::socket_directory::{self, SocketDirectory};
use crate::sys;
use qmpbridge::command::{NbdServerStart, NbdServerStop, QueryBlockExports, SocketAddress};
use qmpbridge::{Bridge, Error};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Before the digits in the name of a server's directory.
const PREFIX: &str = "qmpfs-nbd-";
/// The socket in it.
const SOCKET: &str = "nbd";
/// What `query-block-exports` calls an export of the NBD server.
const NBD: &str = "nbd";
/// How long one waits for who listens at a socket: long enough for a QEMU that is at work.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// A server that we had started.
pub(in crate::ops) struct NbdServer {
    directory: SocketDirectory,
    /// The connection over which it was started.
    connection: Option<u64>,
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
    if !is_listened_on(directory.socket()).await? {
        // that it is ours is known only now
        stop(bridge).await?;
        return Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!(
                "QEMU has another file for {}, and its NBD server cannot be reached there",
                directory.socket().display()
            ),
        )
        .next("have QEMU start one on a unix socket that both see, and mount with -o nbd_server=SOCKET"));
    }
    Ok(NbdServer {
        directory,
        connection: bridge.generation(),
        _claim: claim,
    })
}

/// Stops the server that we had started, if it serves nothing any more. One that others have started stays,
/// although it may serve nothing yet. Called by who has the turn.
pub(in crate::ops) async fn stop_if_idle(engine: &Engine, bridge: &Bridge) -> Result<(), Failure> {
    let known = |server: &NbdServer| (server.socket(), server.connection);
    let known = engine.lives.server.borrow().as_ref().map(known);
    let Some((socket, connection)) = known else {
        return Ok(());
    };
    // behind another connection may be another QEMU, with a server of somebody else's
    let is_this_qemus = connection.is_some() && connection == bridge.generation();
    let runs = is_this_qemus || is_listened_on(socket).await?;
    if runs && !stop_unless_used(bridge).await? {
        return Ok(());
    }
    engine.lives.server.borrow_mut().take();
    Ok(())
}

/// Stops the server of a QEMU, of which is known that we had started it. False if it serves something.
pub(in crate::ops) async fn stop_unless_used(bridge: &Bridge) -> Result<bool, Failure> {
    let exports = bridge.run(QueryBlockExports).await?;
    if exports.iter().any(|export| export.r#type == NBD) {
        return Ok(false);
    }
    stop(bridge).await.map(|()| true)
}

async fn stop(bridge: &Bridge) -> Result<(), Failure> {
    match bridge.run(NbdServerStop).await {
        // none runs
        Ok(_) | Err(Error::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn is_listened_on(socket: PathBuf) -> Result<bool, Failure> {
    blocking(move || Ok(!is_left_alone(&listener(&socket)))).await
}

/// The process that listens at a socket.
fn listener(socket: &Path) -> io::Result<i32> {
    sys::peer_pid(&sys::connect_unix(socket, CONNECT_DEADLINE)?)
}

/// Whether nobody listens. Who has no time for us, or may not be asked, does.
fn is_left_alone(listener: &io::Result<i32>) -> bool {
    listener.as_ref().is_err_and(|error| {
        matches!(
            error.kind(),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused
        )
    })
}

/// Stops the server of a killed mount which still runs in this QEMU, as it listens where only we have it listen; and
/// removes the directories of those that run no more.
pub(super) async fn sweep(bridge: &Bridge) -> Result<(), Failure> {
    // a process of another namespace has the number 0 here, and so has every other
    let qemu = bridge.peer_pid().filter(|pid| *pid > 0);
    let found = blocking(move || {
        let found = left(qemu);
        let mut listeners = found.iter().map(|left| left.listener().ok());
        let is_this_qemus = qemu.is_some() && listeners.any(|pid| pid == qemu);
        Ok((found, is_this_qemus))
    });
    let (found, is_this_qemus) = found.await?;
    if is_this_qemus {
        stop_unless_used(bridge).await?;
    }
    blocking(move || {
        // of another QEMU it is the proof that its server is ours
        let unused = found
            .into_iter()
            .filter(|left| is_left_alone(&left.listener()));
        for Left { directory, .. } in unused {
            tracing::info!(directory = %directory.path().display(), "left by a killed mount");
            directory.remove();
        }
        Ok(())
    })
    .await
}

/// A server's directory that no mount claims.
struct Left {
    directory: socket_directory::Left,
    _claim: Claim,
}

impl Left {
    fn listener(&self) -> io::Result<i32> {
        listener(&self.directory.socket()?)
    }
}

fn left(given_to: Option<i32>) -> Vec<Left> {
    let entries = std::fs::read_dir(socket_directory::parent());
    let entries = entries.into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let name = entry.file_name();
        let digits = name.to_str()?.strip_prefix(PREFIX)?;
        let claim = is_digits(digits).then(|| layer_file::claim_kept(digits))?;
        Some(Left {
            directory: socket_directory::Left::at(entry.path(), SOCKET, given_to)?,
            _claim: claim.ok()?,
        })
    });
    found.collect()
}
