//! The mount itself: the kernel's options, the workers, and how it ends. Unmounting is asked of
//! the kernel by `run`, never of fuser, which would unmount whatever stands there by then.

use super::attr::Owner;
use super::handles::Handles;
use super::pages::Pages;
use super::passthrough::Passthrough;
use super::shared::Shared;
use super::sizes::SizeCache;
use super::storage::{self, Storage};
use super::sweeps::Sweeps;
use super::{OnEnd, Qmpfs};
use crate::errno::Failure;
use crate::guest::{Guests, Links};
use crate::intent::Verbs;
use crate::ops::EngineHandle;
use crate::report::Log;
use crate::tree::Ids;
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// Worker threads: those that may wait for storage, and one for everything else.
const WORKERS: usize = storage::IN_WORKERS + 1;

/// Who besides the mounting user may use the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody.
    Owner,
    /// `-o allow_root`
    OwnerAndRoot,
    /// `-o allow_other`
    Everybody,
}

/// How to mount.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where, an absolute path.
    pub mountpoint: PathBuf,
    /// The first column of /proc/mounts.
    pub fs_name: String,
    /// Who may use it.
    pub access: Access,
    /// Whose the files are.
    pub owner: Owner,
    /// Which verbs there are.
    pub verbs: Verbs,
    /// Read every view through the kernel's page cache.
    pub kernel_cache: bool,
    /// Let the kernel read raw files by itself.
    pub passthrough: bool,
    /// How guests' symbolic links are shown.
    pub links: Links,
    /// Have fusermount unmount when this process dies.
    pub auto_unmount: bool,
}

/// A running mount.
pub struct Mounted {
    session: BackgroundSession,
}

/// Mounts and starts the workers. `on_end` is called when the last of them has ended.
pub fn mount(
    settings: Settings,
    engine: EngineHandle,
    log: Arc<Log>,
    on_end: OnEnd,
) -> Result<Mounted, Failure> {
    let at = settings.mountpoint.clone();
    let failed = |error: &std::io::Error| {
        let next = match error.kind() {
            // It is fusermount that says so, in these words.
            _ if error.to_string().contains("user_allow_other") => {
                "leave allow_other out, have root put user_allow_other into /etc/fuse.conf, or mount as root"
            }
            ErrorKind::PermissionDenied => {
                "let users open /dev/fuse (it is 0666 under udev), or mount as root"
            }
            ErrorKind::NotFound => {
                "load the kernel module: modprobe fuse, and install the package fuse3"
            }
            _ => "see that /dev/fuse and fusermount3 are there and may be used",
        };
        Failure::io(format_args!("mount on {}", at.display()), error).next(next)
    };
    let config = config(&settings);
    let opener = engine.clone();
    let sizes =
        SizeCache::start(move |request| opener.send(request)).map_err(|error| failed(&error))?;
    let shared = Shared {
        guests: Guests::new(engine.clone(), settings.links),
        sizes,
        storage: Storage::default(),
        engine,
        log,
        verbs: settings.verbs,
        owner: settings.owner,
        mountpoint: settings.mountpoint,
        mounted_at: SystemTime::now(),
        ids: Ids::new(),
        kept: Arc::default(),
        handles: Handles::default(),
        sweeps: Sweeps::default(),
        pages: Pages::new(settings.kernel_cache),
        passthrough: settings.passthrough.then(Passthrough::default),
        device: OnceLock::new(),
    };
    let shared = Arc::new(shared);
    let filesystem = Qmpfs {
        shared: Arc::clone(&shared),
        on_end: Some(on_end),
    };
    let session = Session::new(filesystem, &at, &config).map_err(|error| failed(&error))?;
    let device = session.as_fd().try_clone_to_owned();
    let device = device.map_err(|error| failed(&error))?;
    shared.device.get_or_init(|| File::from(device));
    let (kept, kernel) = (Arc::clone(&shared.kept), session.notifier());
    let engine = shared.engine.clone();
    engine.on_publish(move || kept.ask_again(&kernel));
    let session = session.spawn().map_err(|error| failed(&error))?;
    Ok(Mounted { session })
}

impl Mounted {
    /// Collects the workers of a mount that has ended; call it after `on_end` was called.
    pub fn finish(mut self) -> std::io::Result<()> {
        // fuser's handle unmounts by path when it is dropped, also when the mount is gone already
        // and another one stands there. So only the thread is taken out of it.
        let nothing = std::thread::Builder::new().spawn(|| Ok(()))?;
        let guard = std::mem::replace(&mut self.session.guard, nothing);
        std::mem::forget(self.session);
        match guard.join() {
            Ok(result) => result,
            Err(_panic) => Err(std::io::Error::other("the session's thread panicked")),
        }
    }
}

fn config(settings: &Settings) -> Config {
    let mut options = vec![
        // A comma would start another option where fusermount3 mounts for us.
        MountOption::FSName(settings.fs_name.replace([',', '\\', '\n'], "_")),
        // As an option of the kernel: fuser gives its own Subtype to fusermount only.
        MountOption::CUSTOM("subtype=qmpfs".to_owned()),
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
        MountOption::DefaultPermissions,
        if settings.verbs.read_only {
            MountOption::RO
        } else {
            MountOption::RW
        },
    ];
    if settings.auto_unmount {
        options.push(MountOption::AutoUnmount);
    }
    let mut config = Config::default();
    config.mount_options = options;
    config.acl = match settings.access {
        Access::Owner => SessionACL::Owner,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
        Access::Everybody => SessionACL::All,
    };
    config.n_threads = Some(WORKERS);
    // All on one descriptor: see `message`.
    config.clone_fd = false;
    config
}
