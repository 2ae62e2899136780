//! The real programs, started for a test and ended with it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use qmpbridge::command::{BlockStream, BlockdevAdd, BlockdevOptions};
use qmpbridge::{Address, Bridge, Connection, Error, JobId, NodeName};

/// Longer than anything here takes on a busy machine; reaching it is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

pub(crate) fn job(op: &str) -> JobId {
    JobId::fresh(op).unwrap()
}

/// A scratch directory.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Scratch(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    /// `NAME0.qcow2 ← NAME1.qcow2 ← …`, each with its own MiB of data. Gives the path of the topmost.
    pub(crate) fn chain(&self, name: &str, layers: usize) -> PathBuf {
        for layer in 0..layers {
            let file = self.path(&format!("{name}{layer}.qcow2"));
            let below = format!("{name}{}.qcow2", layer.wrapping_sub(1));
            let backing = ["-b", below.as_str(), "-F", "qcow2"];
            let mut create = Process::new("qemu-img");
            create
                .args(["create", "-q", "-f", "qcow2"])
                .args(&backing[..if layer == 0 { 0 } else { 4 }]);
            run(create.arg(&file).arg("16M"));
            let write = format!("write -q -P {} {layer}M 1M", layer + 1);
            run(Process::new("qemu-io")
                .args(["-f", "qcow2", "-c", &write])
                .arg(&file));
        }
        self.path(&format!("{name}{}.qcow2", layers - 1))
    }
}

pub(crate) fn run(command: &mut Process) {
    let status = command
        .stdin(Stdio::null())
        .status()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?}: {status}");
}

/// A QEMU or a storage daemon, killed when dropped.
pub(crate) struct Qemu {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Qemu {
    pub(crate) fn storage_daemon(scratch: &Scratch, args: &[&str]) -> Self {
        let socket = scratch.path("qmp");
        let chardev = format!("socket,id=m0,path={},server=on,wait=off", socket.display());
        let mut command = Process::new("qemu-storage-daemon");
        command
            .args(["--chardev", &chardev, "--monitor", "chardev=m0"])
            .args(args);
        Self::spawn(command, socket)
    }

    pub(crate) fn machine(scratch: &Scratch, args: &[&str]) -> Self {
        let socket = scratch.path("qmp");
        let qmp = format!("unix:{},server=on,wait=off", socket.display());
        let mut command = Process::new("qemu-system-x86_64");
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-accel",
            "tcg",
            "-m",
            "32M",
            "-S",
        ]);
        command.args(["-qmp", &qmp]).args(args);
        Self::spawn(command, socket)
    }

    fn spawn(mut command: Process, socket: PathBuf) -> Self {
        command.stdin(Stdio::null());
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Qemu { child, socket }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn address(&self) -> Address {
        Address::Unix(self.socket.clone())
    }

    /// Connects as soon as the program listens.
    pub(crate) async fn bridge(&mut self) -> Bridge {
        let start = Instant::now();
        loop {
            match Bridge::connect(self.address()).await {
                Ok(bridge) => return bridge,
                Err(Error::NoSocket { .. } | Error::NobodyListens { .. })
                    if start.elapsed() < PATIENCE =>
                {
                    if let Some(status) = self.child.try_wait().unwrap() {
                        panic!("it ended: {status}");
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// Stands still until it is killed: what is sent to it stays unanswered.
    pub(crate) fn freeze(&self) {
        let stop = format!("kill -STOP {}", self.pid());
        run(Process::new("sh").args(["-c", &stop]));
    }

    /// kill -9
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A storage daemon with one disk `d` on `top`, exported as `ex` at the socket `nbd`.
pub(crate) fn exporting(scratch: &Scratch, top: &Path) -> Qemu {
    let file = format!("driver=file,node-name=d-file,filename={}", top.display());
    let nbd = format!("addr.type=unix,addr.path={}", scratch.path("nbd").display());
    let disk = "driver=qcow2,node-name=d,file=d-file";
    let export = "nbd,id=ex,node-name=d,name=d,writable=on";
    Qemu::storage_daemon(
        scratch,
        &[
            "--blockdev",
            &file,
            "--blockdev",
            disk,
            "--nbd-server",
            &nbd,
            "--export",
            export,
        ],
    )
}

/// A stream of all into `device` that is slow enough to be met at work.
pub(crate) fn slow_stream(id: &JobId, device: &str) -> BlockStream {
    BlockStream {
        speed: Some(1),
        ..BlockStream::new(id.clone(), name(device))
    }
}

pub(crate) fn add_qcow2(node: &str, path: &Path) -> [BlockdevAdd; 2] {
    let file = name(&format!("{node}-file"));
    [
        BlockdevAdd(BlockdevOptions::file(file.clone(), path)),
        BlockdevAdd(BlockdevOptions::over("qcow2", name(node), file)),
    ]
}

pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

pub(crate) async fn until_down(bridge: &Bridge) -> String {
    let mut connection = bridge.connection();
    let down = connection.wait_for(|c| matches!(c, Connection::Down { .. }));
    match &*within("connection down", down).await.unwrap() {
        Connection::Down { reason, .. } => reason.clone(),
        Connection::Up { .. } => unreachable!(),
    }
}

pub(crate) async fn until_generation(bridge: &Bridge, wanted: u64) {
    let mut connection = bridge.connection();
    let up = connection.wait_for(|c| *c == Connection::Up { generation: wanted });
    within("connection back", up).await.unwrap();
}
