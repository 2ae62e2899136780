//! The composition root: what starts, what stops, and in which order. It knows every room by
//! its door only and decides nothing about points.

mod daemonize;
mod logging;
pub(crate) mod mountpoint;

use crate::cli::MountConfig;
use crate::errno::{Errno, Failure};
use crate::fuse::{self, Mounted, Owner, Settings};
use crate::ops::{self, EngineConfig};
use crate::report::Log;
use crate::sys::{self, Process, StopSignals, Unmount};
use crate::wait;
use daemonize::{Ready, Role};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Things that can end a mount and are not worth queueing more often.
const ENDINGS: usize = 8;
/// How often `umount` looks whether a lazily detached daemon is still there.
const PATIENCE: Duration = Duration::from_secs(1);

/// `qmpfs mount`: returns when the mount is ready, or, with -f, when it has ended.
pub fn mount(config: MountConfig) -> Result<(), Failure> {
    let mountpoint = mountpoint::prepare(&config.mountpoint)?;
    if config.foreground {
        return serve(config, mountpoint, Ready::in_front());
    }
    match daemonize::split()? {
        Role::Starter(word) => word.wait(),
        Role::Daemon(ready) => serve(config, mountpoint, ready),
    }
}

/// Why the main thread wakes up.
enum Ending {
    /// Somebody wants us to stop.
    Signal(i32),
    /// The last worker has ended: it is unmounted.
    Unmounted,
}

fn serve(config: MountConfig, mountpoint: PathBuf, ready: Ready) -> Result<(), Failure> {
    let in_background = ready.in_background();
    let started = start(&config, &mountpoint, in_background);
    let running = match started {
        Ok(running) => running,
        Err(failure) if in_background => ready.failed(&failure),
        Err(failure) => return Err(failure),
    };
    ready.ready()?;
    running.until_the_end()
}

/// A mount at work.
struct Running {
    mounted: Mounted,
    engine: ops::EngineThread,
    log: Arc<Log>,
    endings: Receiver<Ending>,
    mountpoint: PathBuf,
    /// The mount's own device number, by which it is told from one that follows it.
    device: Option<String>,
}

fn start(config: &MountConfig, mountpoint: &Path, in_background: bool) -> Result<Running, Failure> {
    logging::start(config.options.log_file.as_deref(), in_background)?;
    let signals = StopSignals::catch().map_err(|error| Failure::io("catch signals", &error))?;
    if let Err(error) = sys::raise_file_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let log = Arc::new(Log::new());
    logging::keep_panics(&log);
    let (sender, endings) = sync_channel(ENDINGS);

    let options = &config.options;
    let (handle, engine) = ops::start(EngineConfig {
        source: config.source.clone(),
        source_text: config.source_text.clone(),
        verbs: options.verbs(),
        merge: options.merge,
        guest_agent: options.guest_agent.clone(),
        quiesce: options.quiesce(),
        live: options.live.clone(),
        vm_name: options.vm_name.clone(),
        backup: options.backup.clone(),
        log: Arc::clone(&log),
        embedded_disks: Vec::new(),
    })?;

    let (uid, gid) = sys::own_ids();
    let settings = Settings {
        mountpoint: mountpoint.to_owned(),
        fs_name: options
            .fs_name
            .clone()
            .unwrap_or_else(|| config.source_text.clone()),
        access: options.access,
        owner: Owner {
            uid: options.uid.unwrap_or(uid),
            gid: options.gid.unwrap_or(gid),
            umask: options.umask,
            guest_owners: uid == 0 && options.uid.is_none() && options.gid.is_none(),
        },
        verbs: options.verbs(),
        kernel_cache: options.kernel_cache,
        passthrough: options.passthrough,
        links: options.links,
        auto_unmount: options.auto_unmount,
    };
    let unmounted = sender.clone();
    let on_end = Box::new(move || {
        // A full queue or a gone receiver says that the end is known already.
        let _known = unmounted.try_send(Ending::Unmounted);
    });
    let mounted = fuse::mount(settings, handle, Arc::clone(&log), on_end)?;
    let device = mountpoint::ours(mountpoint)?.map(|entry| entry.device);
    if let Some(device) = &device {
        mountpoint::read_ahead(device);
    }
    hear_signals(signals, sender)?;
    log.note(&format!(
        "mounted {} on {}",
        config.source_text,
        mountpoint.display()
    ));
    Ok(Running {
        mounted,
        engine,
        log,
        endings,
        mountpoint: mountpoint.to_owned(),
        device,
    })
}

fn hear_signals(mut signals: StopSignals, sender: SyncSender<Ending>) -> Result<(), Failure> {
    let hear = move || {
        while let Ok(signal) = signals.wait() {
            if sender.send(Ending::Signal(signal)).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("signals".into())
        .spawn(hear);
    thread
        .map(drop)
        .map_err(|error| Failure::io("start a thread", &error))
}

impl Running {
    /// Serves until it is unmounted, by somebody or after a signal.
    fn until_the_end(self) -> Result<(), Failure> {
        let mut asked_to_stop = false;
        loop {
            match self.endings.recv() {
                Ok(Ending::Unmounted) | Err(_) => break,
                Ok(Ending::Signal(signal)) if asked_to_stop => {
                    self.log.note(&format!(
                        "signal {signal} again: not waiting for the last reader"
                    ));
                    self.engine.stop();
                    return Err(Failure::new(Errno::EBUSY, "ended while files were open")
                        .next("close what is open before the next time: fuser -vm"));
                }
                Ok(Ending::Signal(signal)) => {
                    asked_to_stop = true;
                    self.log.note(&format!("signal {signal}: unmounting"));
                    daemonize::notify_systemd("STOPPING=1");
                    self.unmount();
                }
            }
        }
        let ended = self.mounted.finish();
        self.engine.stop();
        match ended {
            Ok(()) => Ok(()),
            Err(error) => {
                // The workers are gone but the name is not: better no mount than one that answers nothing.
                if is_ours(&self.mountpoint, self.device.as_deref()) {
                    mountpoint::unmount(&self.mountpoint, Unmount::Lazy)?;
                }
                Err(Failure::io("serve the mount", &error))
            }
        }
    }

    /// Unmounts; while somebody is inside, takes the name away and lets them finish.
    fn unmount(&self) {
        if !is_ours(&self.mountpoint, self.device.as_deref()) {
            return;
        }
        let outcome = match mountpoint::unmount(&self.mountpoint, Unmount::Plain) {
            Err(failure) if failure.errno == Errno::EBUSY => {
                self.log
                    .note("still in use: the mount is detached and ends with its last reader");
                mountpoint::unmount(&self.mountpoint, Unmount::Lazy)
            }
            outcome => outcome,
        };
        if let Err(failure) = outcome {
            self.log.note(&format!("not unmounted: {failure}"));
        }
    }
}

/// Whether what is mounted there is this very mount, and not one that came after it.
fn is_ours(mountpoint: &Path, device: Option<&str>) -> bool {
    let seen = mountpoint::ours(mountpoint).ok().flatten();
    seen.is_some_and(|entry| device.is_none_or(|device| entry.device == device))
}

/// `qmpfs umount`: unmounts and waits until the last reader and the daemon are gone.
pub fn umount(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let path = mountpoint::resolved_without_looking(path)?;
    let path = match mountpoint::ours(&path)? {
        Some(_) => path,
        // Perhaps a symbolic link to it.
        None => path.canonicalize().unwrap_or(path),
    };
    if mountpoint::ours(&path)?.is_none() {
        return Err(
            Failure::new(Errno::EINVAL, format!("no qmpfs is mounted on {shown}"))
                .next("see what is: findmnt -t fuse.qmpfs"),
        );
    }
    let daemon = daemon_of(&path);
    // Whoever calls this from inside the mount must not be the reader it waits for.
    std::env::set_current_dir("/").map_err(|error| Failure::io("leave the mount", &error))?;
    match mountpoint::unmount(&path, Unmount::Plain) {
        Ok(()) => {}
        Err(failure) if failure.errno == Errno::EBUSY => {
            mountpoint::unmount(&path, Unmount::Lazy)?;
            eprintln!(
                "qmpfs: {shown} is in use; waiting for its last reader (fuser -vm {shown} named it before)"
            );
        }
        Err(failure) => return Err(failure),
    }
    let Some(daemon) = daemon else {
        return Ok(());
    };
    let asked = Instant::now();
    while !daemon
        .wait(PATIENCE)
        .map_err(|error| Failure::io("wait for the daemon", &error))?
    {
        tracing::debug!(
            seconds = asked.elapsed().as_secs(),
            "the daemon is still there"
        );
    }
    Ok(())
}

/// `qmpfs wait`: waits for the work that a path in a mount means.
pub fn wait(request: &wait::Request) -> Result<(), Failure> {
    wait::follow(request, |path| {
        let root = mountpoint::around(path)?.ok_or_else(|| {
            Failure::new(
                Errno::EINVAL,
                format!("{} is in no mount of qmpfs", path.display()),
            )
            .next("see what is mounted: findmnt -t fuse.qmpfs")
        })?;
        let (at, seen) = (root.clone(), identity(&root)?);
        let is_there = move || seen.is_some() && identity(&at).is_ok_and(|now| now == seen);
        Ok(wait::Mount {
            root,
            is_there: Box::new(is_there),
        })
    })
}

/// What tells a mount from one that follows it: its device, which may be given again, and its daemon.
fn identity(root: &Path) -> Result<Option<(String, Option<String>)>, Failure> {
    let pid = sys::xattr_text(root, fuse::PID_XATTR);
    Ok(mountpoint::ours(root)?.map(|entry| (entry.device, pid)))
}

/// The process behind a mount, which it names itself; None for one that is dead already.
fn daemon_of(path: &Path) -> Option<Process> {
    let pid = sys::xattr_text(path, fuse::PID_XATTR)?.parse().ok()?;
    Process::open(pid).ok()
}
