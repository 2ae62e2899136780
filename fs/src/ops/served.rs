//! Layers that our reader cannot read: a QEMU reads them, and serves them over NBD for as long as a view is
//! open. A file that a storage daemon of our own can open alone is opened there, read-only and with nothing but
//! lock byte 100 held; what only the VM's QEMU has the key or the other files of is asked of that one.
//! It knows who reads which layer now; what a view does with the bytes it does not know.
//! Invariants: an export goes when nobody reads it; nothing that is served can be written through us.

mod names;
mod own;
mod vm;

use super::blocking::blocking;
use super::engine::Engine;
use super::live;
use crate::errno::{Errno, Failure};
use crate::layer_file::Claim;
use crate::model::{FileId, Layer};
use crate::nbd;
use crate::offline;
use crate::sys;
use names::Names;
use own::Daemon;
use qmpbridge::{Bridge, NodeName};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Mutex, MutexGuard};

/// How long one waits for another who begins or ends an export; a daemon that starts is the longest of it.
const TURN_DEADLINE: Duration = Duration::from_secs(15);
/// How long the daemon outlives its last view: `ls -l` and `cat` of a few points are one after another.
const IDLE: Duration = Duration::from_secs(5);

/// A layer that is served.
struct Held {
    names: Names,
    what: What,
    disk: Weak<nbd::Disk>,
    /// Says to others that its mount lives.
    _claim: Claim,
}

/// What is served, and by whom.
#[derive(Clone, PartialEq, Eq)]
enum What {
    /// By our daemon: a file as it was when it was opened there.
    File(FileId, Stamp),
    /// By the VM's QEMU.
    Node(NodeName),
}

/// Whether a file is as it was.
type Stamp = (u64, Option<SystemTime>);

/// Who reads what for us.
pub(in crate::ops) struct Book {
    held: RefCell<Vec<Held>>,
    daemon: RefCell<Option<Daemon>>,
    turn: Mutex<()>,
    /// Told by the last reader of a layer, on whatever thread that is.
    unread: UnboundedSender<Names>,
    is_unread: RefCell<Option<UnboundedReceiver<Names>>>,
}

impl Default for Book {
    fn default() -> Self {
        let (unread, is_unread) = unbounded_channel();
        Book {
            held: RefCell::default(),
            daemon: RefCell::default(),
            turn: Mutex::default(),
            unread,
            is_unread: RefCell::new(Some(is_unread)),
        }
    }
}

impl Book {
    async fn turn(&self) -> Result<MutexGuard<'_, ()>, Failure> {
        tokio::time::timeout(TURN_DEADLINE, self.turn.lock())
            .await
            .map_err(|_| {
                Failure::new(Errno::EBUSY, "another layer is being opened by QEMU")
                    .next("open it again")
            })
    }

    /// The disk that others read already.
    fn shared(&self, what: &What) -> Option<Arc<nbd::Disk>> {
        let held = self.held.borrow();
        let mut same = held.iter().filter(|held| held.what == *what);
        same.find_map(|held| held.disk.upgrade())
    }

    fn keep(&self, names: Names, what: What, disk: nbd::Disk, claim: Claim) -> Arc<nbd::Disk> {
        let disk = Arc::new(disk);
        self.held.borrow_mut().push(Held {
            names,
            what,
            disk: Arc::downgrade(&disk),
            _claim: claim,
        });
        disk
    }

    /// What belongs to these names, if it is held.
    fn what(&self, names: &Names) -> Option<What> {
        let held = self.held.borrow();
        let found = held.iter().find(|held| held.names == *names)?;
        Some(found.what.clone())
    }

    fn forget(&self, names: &Names) {
        self.held.borrow_mut().retain(|held| held.names != *names);
    }

    /// Those that the VM's QEMU serves.
    fn of_the_vm(&self) -> Vec<Names> {
        let held = self.held.borrow();
        let of_the_vm = held
            .iter()
            .filter(|held| matches!(held.what, What::Node(_)));
        of_the_vm.map(|held| held.names.clone()).collect()
    }

    fn our_daemon_is_idle(&self) -> bool {
        let held = self.held.borrow();
        !held.iter().any(|held| matches!(held.what, What::File(..)))
    }

    /// Whether the VM's QEMU serves a layer for us.
    pub(in crate::ops) fn uses_the_vms_server(&self) -> bool {
        !self.of_the_vm().is_empty()
    }
}

/// Whether an export of QEMU's is one of these, and no disk.
pub(super) fn is_view(export: &str) -> bool {
    Names::of(export).is_some()
}

/// The place in a chain, base first, of the topmost layer that we cannot read: it and all below are served.
pub(super) fn topmost(chain: &[&Layer]) -> Option<usize> {
    chain.iter().rposition(|layer| !layer.format.is_read_here())
}

/// The disk that a chain shows which ends in a layer that we cannot read.
pub(super) async fn disk(engine: &Engine, chain: &[&Layer]) -> Result<Arc<nbd::Disk>, Failure> {
    let [below @ .., layer] = chain else {
        return Err(Failure::new(Errno::EIO, "bug: nothing is to be served"));
    };
    let (path, format) = (layer.path.clone(), layer.format.name().to_owned());
    let alone = match below {
        [] => blocking(move || offline::refuse_unless_alone(&path, &format)).await,
        [..] => Err(Failure::new(
            Errno::EOPNOTSUPP,
            format!("{} stands on another layer", path.display()),
        )),
    };
    let read = match alone {
        Ok(()) => by_our_daemon(engine, layer).await,
        Err(failure) => Err(failure),
    };
    match (read, &layer.node) {
        (Err(failure), Some(node)) if failure.errno == Errno::EOPNOTSUPP => {
            tracing::debug!(%failure, "the VM's QEMU is asked");
            by_the_vm(engine, layer, node).await
        }
        (read, _) => read,
    }
}

async fn by_our_daemon(engine: &Engine, layer: &Layer) -> Result<Arc<nbd::Disk>, Failure> {
    let path = &layer.path;
    let file = super::check::file_of(layer)?;
    let (found, stamp) = stamp_of(path)?;
    if found != file {
        return Err(changed(path));
    }
    let book = &engine.served;
    let _turn = book.turn().await?;
    if book.daemon.borrow().as_ref().is_some_and(Daemon::is_gone) {
        // its views have an error for ever; new ones are read by another
        book.held
            .borrow_mut()
            .retain(|held| matches!(held.what, What::Node(_)));
        book.daemon.borrow_mut().take();
    }
    let what = What::File(file, stamp);
    if let Some(disk) = book.shared(&what) {
        return Ok(disk);
    }
    if book.daemon.borrow().is_none() {
        let started = Daemon::start().await?;
        *book.daemon.borrow_mut() = Some(started);
    }
    let (bridge, socket) = match &*book.daemon.borrow() {
        Some(daemon) => (daemon.bridge().clone(), daemon.socket()),
        None => return Err(Failure::new(Errno::EIO, "bug: nobody serves a layer")),
    };
    let (names, claim) = Names::claimed(live::Server::Ours)?;
    let opened = async {
        own::add(&bridge, &names, layer).await?;
        let disk = open(engine, &names, socket, layer.virtual_size).await?;
        // what was opened by its name was this file, then and now
        match stamp_of(path)? == (file, stamp) {
            true => Ok(disk),
            false => Err(changed(path)),
        }
    };
    match opened.await {
        Ok(disk) => Ok(book.keep(names, what, disk, claim)),
        Err(failure) => {
            own::remove(&bridge, &names).await;
            Err(failure)
        }
    }
}

async fn by_the_vm(
    engine: &Engine,
    layer: &Layer,
    node: &NodeName,
) -> Result<Arc<nbd::Disk>, Failure> {
    let explained = |failure: Failure| Failure {
        message: format!(
            "{} ({}), which only the VM's QEMU can read, is not served by it: {}",
            layer.path.display(),
            layer.format.name(),
            failure.message
        ),
        ..failure
    };
    let book = &engine.served;
    let _turn = book.turn().await?;
    let what = What::Node(node.clone());
    // one that was there when this QEMU was another is served by nobody
    vm::look(engine).await.map_err(explained)?;
    if let Some(disk) = book.shared(&what) {
        return Ok(disk);
    }
    let (names, claim) = Names::claimed(live::whose_server(engine))?;
    vm::is_still(engine, layer, node).await.map_err(explained)?;
    let socket = vm::add(engine, &names, node).await.map_err(explained)?;
    match open(engine, &names, socket, layer.virtual_size).await {
        Ok(disk) => Ok(book.keep(names, what, disk, claim)),
        Err(failure) => {
            if let Err(failure) = vm::remove(engine, &names).await {
                tracing::warn!(%failure, %names, "an export stays behind");
            }
            Err(explained(failure))
        }
    }
}

/// What is exported under these names.
async fn open(
    engine: &Engine,
    names: &Names,
    socket: PathBuf,
    size: u64,
) -> Result<nbd::Disk, Failure> {
    let export = names.to_string();
    let disk = blocking(move || nbd::Disk::open(&socket, &export)).await?;
    if disk.size() != size {
        let found = disk.size();
        return Err(Failure::new(
            Errno::EIO,
            format!("a layer is served with {found} bytes instead of {size}"),
        )
        .next("look again: ls the directory"));
    }
    let (unread, ended) = (engine.served.unread.clone(), names.clone());
    Ok(disk.at_end(move || {
        // an engine that has ended has taken everything along
        let _ended = unread.send(ended.clone());
    }))
}

fn stamp_of(path: &Path) -> Result<(FileId, Stamp), Failure> {
    let io = |error| Failure::io(format_args!("look at {}", path.display()), &error);
    let metadata = std::fs::metadata(path).map_err(io)?;
    let stamp = (metadata.len(), metadata.modified().ok());
    Ok((sys::file_id(path).map_err(io)?, stamp))
}

fn changed(path: &Path) -> Failure {
    Failure::new(
        Errno::ESTALE,
        format!("{} is another file by now", path.display()),
    )
    .next("open it again")
}

/// Ends what nobody reads any more. Runs for the life of the mount.
pub(super) async fn keep(engine: Rc<Engine>) {
    let book = &engine.served;
    let Some(mut unread) = book.is_unread.borrow_mut().take() else {
        return;
    };
    loop {
        let has_idle_daemon = book.daemon.borrow().is_some() && book.our_daemon_is_idle();
        let names = match has_idle_daemon {
            false => unread.recv().await,
            true => match tokio::time::timeout(IDLE, unread.recv()).await {
                Ok(names) => names,
                Err(_) => {
                    end_if_idle(book).await;
                    continue;
                }
            },
        };
        let Some(names) = names else { return };
        let Ok(_turn) = book.turn().await else {
            engine.log.note(&format!(
                "{names} is served on: another layer is being opened"
            ));
            continue;
        };
        let bridge = book.daemon.borrow().as_ref().map(|it| it.bridge().clone());
        match (book.what(&names), bridge) {
            (Some(What::File(..)), Some(bridge)) => own::remove(&bridge, &names).await,
            (Some(What::Node(_)), _) => {
                if let Err(failure) = vm::remove(&engine, &names).await {
                    // the next look at QEMU finds it
                    tracing::debug!(%failure, %names, "an export stays behind");
                }
            }
            (Some(What::File(..)), None) | (None, _) => {}
        }
        // only now: the end of the mount may come before it has gone
        book.forget(&names);
    }
}

async fn end_if_idle(book: &Book) {
    if let Ok(_turn) = book.turn().await
        && book.our_daemon_is_idle()
    {
        // it has nothing open
        let _gone = book.daemon.borrow_mut().take();
    }
}

/// Compares with what QEMU has: at every mount and every new connection, by who has the turn of live/. What is
/// gone with a QEMU is read no more, and what a killed mount left is taken down.
pub(super) async fn sweep(engine: &Engine, bridge: &Bridge) -> Result<(), Failure> {
    let held = engine.served.of_the_vm();
    let there = vm::sweep(engine, bridge, &held).await?;
    for names in held
        .iter()
        .filter(|names| !there.contains(&names.to_string()))
    {
        engine.served.forget(names);
    }
    Ok(())
}

/// The mount ends: whoever still reads has an error.
pub(super) async fn end(engine: &Engine) {
    for names in engine.served.of_the_vm() {
        if let Err(failure) = vm::remove(engine, &names).await {
            tracing::warn!(%failure, %names, "an export stays behind; the next mount takes it down");
            break;
        }
    }
    engine.served.held.borrow_mut().clear();
    let _gone = engine.served.daemon.borrow_mut().take();
}
