//! A storage daemon that lets us write into images. Layers are opened without what lies below: whole clusters need none of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use qmpfs_tests::nbd::{Endpoint, Nbd};
use qmpfs_tests::process::Process;
use serde_json::json;

use crate::sockets;

/// The running daemon; gone with its value.
#[derive(Debug)]
pub(crate) struct Filler {
    process: Process,
    socket: PathBuf,
}

impl Filler {
    /// Opens these qcow2 images for writing.
    pub(crate) fn start(dir: &Path, images: &[PathBuf]) -> Self {
        let socket = sockets::fresh();
        let server = format!(
            "addr.type=unix,addr.path={},max-connections=0",
            socket.display()
        );
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--nbd-server", &server]);
        // Nothing has to be durable before the whole image is there.
        let cache = json!({"no-flush": true});
        for (index, image) in images.iter().enumerate() {
            let file = json!({"driver": "file", "filename": image, "cache": cache});
            let node = json!({"driver": "qcow2", "node-name": format!("n{index}"), "file": file,
                "backing": null, "cache": cache});
            let export = format!("nbd,id=e{index},node-name=n{index},name=e{index},writable=on");
            command.args(["--blockdev", &node.to_string(), "--export", &export]);
        }
        let process = Process::spawn(command, &dir.join("filler.log"), libc::SIGTERM);
        Self { process, socket }
    }

    /// A connection to one of them.
    pub(crate) fn disk(&self, index: usize) -> Nbd {
        Nbd::connect(&Endpoint {
            socket: self.socket.clone(),
            name: format!("e{index}"),
        })
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let ended = self.process.terminate(qmpfs_tests::wait::PATIENCE);
        if !std::thread::panicking() {
            assert!(ended, "the storage daemon must close its images");
        }
    }
}
