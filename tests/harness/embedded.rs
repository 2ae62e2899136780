//! The storage daemon of a switched-off VM, which the mount under test starts by itself, with a proxy on the way to it: a
//! program of the same name comes first in PATH, gives the daemon another socket, and the mount the proxy's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::proxy::Proxy;
use crate::scratch::Scratch;
use crate::sh;
use crate::steps::Steps;

/// What the mount calls it.
const PROGRAM: &str = "qemu-storage-daemon";

/// The way to the storage daemon of one mount.
#[derive(Debug)]
pub struct Embedded {
    _proxy: Proxy,
    programs: PathBuf,
    pid: PathBuf,
}

impl Embedded {
    /// From now on each mount that is started with [`Self::environment`] goes through the proxy.
    pub fn new(scratch: &Scratch, steps: &Steps) -> Self {
        let (socket, pid) = (scratch.socket("embedded.qmp"), scratch.file("embedded.pid"));
        let proxy = Proxy::new(scratch, &socket, steps);
        let programs = scratch.dir("programs");
        let script = programs.join(PROGRAM);
        // its own files are no steps; and its socket is there before the mount finds the proxy's
        let text = format!(
            r#"#!/bin/bash
unset LD_PRELOAD
arguments=()
for argument; do
  case $argument in
    socket,id=qmpfs,path=*)
      asked=${{argument#*path=}} asked=${{asked%%,*}}
      argument=${{argument/"$asked"/{socket}}} ;;
  esac
  arguments+=("$argument")
done
rm -f {socket}
echo $$ >{pid}
(until [ -S {socket} ]; do sleep 0.02; done; sleep 0.05; ln -s {proxy} "$asked") >/dev/null 2>&1 &
exec {program} "${{arguments[@]}}"
"#,
            socket = socket.display(),
            pid = pid.display(),
            proxy = proxy.socket().display(),
            program = sh!("command -v {PROGRAM}").trim(),
        );
        fs::write(&script, text).expect("a program");
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("that can be run");
        Self {
            _proxy: proxy,
            programs,
            pid,
        }
    }

    /// What the mount is started with.
    pub fn environment(&self) -> (&'static str, PathBuf) {
        let path = std::env::var("PATH").expect("a PATH");
        let ours = format!("{}:{path}", self.programs.display());
        ("PATH", ours.into())
    }

    /// The process id of the one that was started last.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let pid = fs::read_to_string(&self.pid).expect("it was started");
        pid.trim().parse().expect("a number")
    }

    /// Whether it is there still, or one of its threads, which have its files open as long as they are.
    pub fn runs(&self) -> bool {
        let pid = self.pid();
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            return false;
        };
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        !stat.contains(") Z ") || threads > 1
    }
}
