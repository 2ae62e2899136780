//! The storage daemon of switched-off VMs: a qemu-storage-daemon of our own, on the images of the
//! command line, so that the same verbs work without a VM. It gets explicit nodes for every layer
//! (nothing is probed, no header is followed by QEMU), talks to us alone over a socket that has no
//! name any more, and is killed with us: docs/decisions/0022.

use super::nodes::add_chain;
use super::recover;
use super::socket_directory::SocketDirectory;
use crate::errno::{Errno, Failure};
use crate::model::{FileId, Format};
use crate::offline::{self, ResolvedLayer};
use crate::sys;
use qmpbridge::command::Quit;
use qmpbridge::{Address, Bridge};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The program.
const PROGRAM: &str = "qemu-storage-daemon";
/// Its monitor.
const SOCKET: &str = "qmp";
/// How long it may take to open its monitor.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take to end after `quit`: it flushes its images.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How often we look whether it has got there.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long an image may still be locked: the storage daemon of a qmpfs that was killed right before ends with it, but
/// not in the same moment.
const LET_GO: Duration = Duration::from_secs(2);

/// A running storage daemon of ours.
pub(super) struct StorageDaemon {
    child: Child,
    bridge: Bridge,
    disks: Vec<(PathBuf, String)>,
}

impl StorageDaemon {
    /// Starts it and opens the images, each with its whole chain.
    pub(super) async fn start(images: &[PathBuf], format: Option<Format>) -> Result<Self, Failure> {
        let mut chains = Vec::new();
        for image in images {
            let chain = offline::resolve_chain(image, format.clone())?;
            let Some(top) = chain.last() else {
                return Err(Failure::new(
                    Errno::EINVAL,
                    format!("{} has no layer", image.display()),
                )
                .next("name an image file"));
            };
            let active = top.path.clone();
            wait_until_free(&active).await?;
            let chain = offline::resolve_chain(image, format.clone())?;
            let files: Vec<FileId> = chain
                .iter()
                .filter_map(|layer| sys::file_id(&layer.path).ok())
                .collect();
            recover::offline(&active, &files)?;
            // Our points lie beside the file itself, and a name in it is then taken from there.
            if Path::new(image).parent() != active.parent() {
                refuse_if_other_by_its_own_name(image, &active, &chain)?;
            }
            // settling a power cut may have changed what D is
            let chain = offline::resolve_chain(&active, format.clone())?;
            chains.push((active, chain));
        }
        let (mut child, socket) = spawn()?;
        let bridge = match connect(&mut child, &socket).await {
            Ok(bridge) => bridge,
            Err(failure) => {
                end_now(&mut child);
                return Err(failure);
            }
        };
        // nobody else is to find it
        drop(socket);
        let mut disks: Vec<(PathBuf, String)> = Vec::new();
        for (active, _) in &chains {
            let name = offline::disk_name(active, |name| disks.iter().any(|disk| disk.1 == name));
            disks.push((active.clone(), name));
        }
        let mut daemon = StorageDaemon {
            child,
            bridge,
            disks,
        };
        for (active, chain) in &chains {
            let layers: Vec<(PathBuf, Format)> = chain
                .iter()
                .map(|layer| (layer.path.clone(), layer.format.clone()))
                .collect();
            if let Err(failure) = add_chain(&daemon.bridge, &layers).await {
                end_now(&mut daemon.child);
                return Err(Failure {
                    message: format!("cannot open {}: {}", active.display(), failure.message),
                    ..failure
                });
            }
        }
        Ok(daemon)
    }

    /// Starts it with nothing open, for a job on files that are nobody's disk.
    pub(super) async fn bare() -> Result<Self, Failure> {
        let (mut child, socket) = spawn()?;
        match connect(&mut child, &socket).await {
            Ok(bridge) => Ok(StorageDaemon {
                child,
                bridge,
                disks: Vec::new(),
            }),
            Err(failure) => {
                end_now(&mut child);
                Err(failure)
            }
        }
    }

    /// QEMU's side of it.
    pub(super) fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    /// Each disk's active path and name.
    pub(super) fn disks(&self) -> &[(PathBuf, String)] {
        &self.disks
    }

    /// Ends it in order, and removes the hidden names that nobody uses any more.
    pub(super) async fn stop(mut self) {
        if let Err(error) = self.bridge.run(Quit).await {
            tracing::debug!(%error, "quit");
        }
        let deadline = Instant::now() + STOP_DEADLINE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                tracing::error!("{PROGRAM} does not end; it is killed");
                end_now(&mut self.child);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        for (active, _) in &self.disks {
            if let Err(failure) = tidy(active) {
                tracing::warn!(%failure, "a hidden name stays behind");
            }
        }
    }
}

async fn wait_until_free(active: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + LET_GO;
    loop {
        match offline::refuse_if_written(active) {
            Err(failure) if failure.errno == Errno::EBUSY && Instant::now() < deadline => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            free => return free,
        }
    }
}

fn refuse_if_other_by_its_own_name(
    image: &Path,
    active: &Path,
    chain: &[ResolvedLayer],
) -> Result<(), Failure> {
    let top = chain.last().map(|layer| layer.format.clone());
    let by_own_name = offline::resolve_chain(active, top);
    if by_own_name.is_ok_and(|by_own_name| by_own_name == chain) {
        return Ok(());
    }
    Err(Failure::new(
        Errno::EINVAL,
        format!(
            "{} leads to {}, and a relative name of what it stands on means another file there",
            image.display(),
            active.display()
        ),
    )
    .next("qemu-img rebase -u with the absolute name, or mount with -o ro"))
}

fn tidy(active: &Path) -> Result<(), Failure> {
    offline::refuse_if_written(active)?;
    let chain = offline::resolve_chain(active, None)?;
    let files: Vec<FileId> = chain
        .iter()
        .filter_map(|layer| sys::file_id(&layer.path).ok())
        .collect();
    recover::offline(active, &files)
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        end_now(&mut self.child);
    }
}

fn end_now(child: &mut Child) {
    if matches!(child.try_wait(), Ok(None)) {
        // our own child, known by its handle
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn spawn() -> Result<(Child, SocketDirectory), Failure> {
    let directory = SocketDirectory::new(
        &format!("qmpfs-{}", crate::layer_file::random_hex()),
        SOCKET,
    )?;
    let mut command = Command::new(PROGRAM);
    command
        .arg("--chardev")
        .arg(format!(
            "socket,id=qmpfs,path={},server=on,wait=off",
            directory.socket().display()
        ))
        .args(["--monitor", "chardev=qmpfs"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    sys::die_with_parent(&mut command);
    let child = command.spawn().map_err(|error| {
        let failure = Failure::io(format!("start {PROGRAM}"), &error);
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                failure.next("install it (Debian: qemu-utils from backports, or qemu-system-common), or mount with -o ro")
            }
            _ => failure,
        }
    })?;
    Ok((child, directory))
}

async fn connect(child: &mut Child, directory: &SocketDirectory) -> Result<Bridge, Failure> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        match Bridge::connect(Address::Unix(directory.socket())).await {
            Ok(bridge) => return Ok(bridge),
            Err(qmpbridge::Error::NoSocket { .. } | qmpbridge::Error::NobodyListens { .. })
                if Instant::now() < deadline => {}
            Err(error) => return Err(error.into()),
        }
        if let Ok(Some(status)) = child.try_wait() {
            let mut words = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut words);
            }
            return Err(Failure::new(
                Errno::EIO,
                format!("{PROGRAM} ended ({status}): {}", words.trim()),
            )
            .next("its words say why; qemu-img check tells whether the image is sound"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
