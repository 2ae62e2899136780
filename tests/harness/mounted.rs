//! `qmpfs mount` as a person runs it, and the paths below it. Whatever happens to the test, the mount goes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::process::Process;
use crate::scratch::{Scratch, profile_dir, target_dir};
use crate::steps::{COMMANDS, Deed, FILES, Steps};
use crate::tree::{DiskDir, json, text};
use crate::{sh, wait};

/// A mount in the foreground.
#[derive(Debug)]
pub struct Mounted {
    process: Process,
    mountpoint: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
    log: PathBuf,
}

impl Mounted {
    /// Mounts `sources`, with `options` before them, and waits until the tree is there.
    #[track_caller]
    pub fn new(scratch: &Scratch, sources: &[&Path], options: &[&str]) -> Self {
        Self::in_environment(scratch, sources, options, Vec::new())
    }

    /// The same, with variables for the program.
    #[track_caller]
    pub fn in_environment(
        scratch: &Scratch,
        sources: &[&Path],
        options: &[&str],
        environment: Vec<(&'static str, PathBuf)>,
    ) -> Self {
        let mountpoint = scratch.dir("mnt");
        let mut arguments: Vec<String> = ["mount", "-f"]
            .iter()
            .chain(options)
            .map(|&s| s.to_owned())
            .collect();
        arguments.extend(sources.iter().map(|s| s.display().to_string()));
        arguments.push(mountpoint.display().to_string());
        let log = scratch.file("qmpfs.log");
        let process = spawn(&arguments, &environment, &log);
        let mut mounted = Self {
            process,
            mountpoint,
            arguments,
            environment,
            log,
        };
        mounted.wait_ready();
        mounted
    }

    /// Tries to mount what cannot be mounted: gives the exit code and what was said.
    pub fn refused(
        scratch: &Scratch,
        sources: &[&Path],
        options: &[&str],
    ) -> (Option<i32>, String) {
        let mountpoint = scratch.dir("mnt");
        let mut command = Command::new(program());
        command
            .args(["mount", "-f"])
            .args(options)
            .args(sources)
            .arg(&mountpoint);
        let log = scratch.file("refused.log");
        let mut process = Process::spawn(command, &log, libc::SIGTERM);
        let ended = wait::poll(wait::PATIENCE, || process.ended());
        if ended.is_none() || is_mounted(&mountpoint) {
            process.terminate(Duration::from_secs(15));
            detach(&mountpoint);
            panic!(
                "it must end by itself and leave no mount:\n{}",
                process.log()
            );
        }
        let status = ended.expect("it ended");
        (status.code(), process.log())
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// The directory of a disk.
    pub fn disk(&self, name: &str) -> DiskDir {
        DiskDir(self.mountpoint.join("disks").join(name))
    }

    /// A point of all disks.
    pub fn snapshots(&self, name: &str) -> PathBuf {
        self.mountpoint.join("snapshots").join(name)
    }

    /// A file of the mount as text.
    #[track_caller]
    pub fn text(&self, name: &str) -> String {
        text(&self.mountpoint.join(name))
    }

    /// A file of the mount as JSON.
    #[track_caller]
    pub fn json(&self, name: &str) -> Value {
        json(&self.mountpoint.join(name))
    }

    /// Reads `wait`: returns when all work has ended.
    #[track_caller]
    pub fn wait_idle(&self) -> String {
        self.text("wait")
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What the program said on its standard error.
    pub fn said(&self) -> String {
        self.process.log()
    }

    /// Unmounts as a service manager does, with SIGTERM.
    #[track_caller]
    pub fn unmount(&mut self) {
        assert!(
            self.process.terminate(wait::PATIENCE),
            "SIGTERM must unmount"
        );
        assert!(!is_mounted(&self.mountpoint), "nothing stays mounted");
    }

    /// Kills the program; the kernel keeps a dead mount.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Mounts again, after [`Self::unmount`] or [`Self::kill9`].
    #[track_caller]
    pub fn mount_again(&mut self) {
        self.process = spawn(&self.arguments, &self.environment, &self.log);
        self.wait_ready();
    }

    /// Mounts again, and kills the program by `steps` at step `number` on the way, if it comes to that.
    pub fn mount_to_die(&mut self, steps: &Steps, number: usize, deed: Deed) {
        self.process = spawn(&self.arguments, &self.environment, &self.log);
        let nobody_else = [self.process.pid(), 0];
        steps.arm(FILES | COMMANDS, number, deed, nobody_else);
        wait::until_true("the mount is ready or has ended", || {
            self.process.ended().is_some() || self.is_ready()
        });
    }

    /// What the program is started with from the next mount on.
    pub fn set_environment(&mut self, environment: Vec<(&'static str, PathBuf)>) {
        self.environment = environment;
    }

    /// Kills the program and mounts again from another source: the same VM on another monitor.
    #[track_caller]
    pub fn mount_through(&mut self, source: &Path) {
        self.kill9();
        let last = self.arguments.len() - 1;
        self.arguments[last - 1] = source.display().to_string();
        self.mount_again();
    }

    fn wait_ready(&mut self) {
        wait::until_true("the mount is ready", || {
            if let Some(status) = self.process.ended() {
                panic!(
                    "qmpfs mount ended before it was ready: {status}\n{}",
                    self.process.log()
                );
            }
            self.is_ready()
        });
    }

    fn is_ready(&self) -> bool {
        let above = self.mountpoint.parent().expect("a parent");
        let above = above.metadata().expect("the scratch directory").dev();
        let there = fs::metadata(&self.mountpoint).is_ok_and(|m| m.dev() != above);
        there && fs::read_dir(&self.mountpoint).is_ok_and(|mut entries| entries.next().is_some())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let ended = self.process.terminate(Duration::from_secs(15));
        if !ended || is_mounted(&self.mountpoint) {
            detach(&self.mountpoint);
        }
    }
}

/// The program under test: `$QMPFS_BIN`, or what Cargo builds from this checkout.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(given) = std::env::var_os("QMPFS_BIN") {
            return given.into();
        }
        let release = if profile_dir().ends_with("release") {
            "--release"
        } else {
            ""
        };
        let (target, tests) = (target_dir(), env!("CARGO_MANIFEST_DIR"));
        // The same selection as a plain `cargo build`, so that nothing is built twice.
        sh!(
            "cd {tests}/.. && CARGO_TARGET_DIR={} cargo build -q --workspace --locked {release}",
            target.display()
        );
        profile_dir().join("qmpfs")
    })
}

fn spawn(arguments: &[String], environment: &[(&str, PathBuf)], log: &Path) -> Process {
    let mut command = Command::new(program());
    command.args(arguments).envs(environment.iter().cloned());
    Process::spawn(command, log, libc::SIGTERM)
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        line.split(' ')
            .nth(1)
            .is_some_and(|at| Path::new(at) == path)
    })
}

fn detach(path: &Path) {
    let line = format!("umount -l {0} || fusermount3 -uz {0}", path.display());
    sh::attempt(&line);
}
