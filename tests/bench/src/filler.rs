//! A storage daemon that lets us write into images. Layers are opened without what lies below: whole clusters need none of it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use qmpfs_tests::nbd::{Endpoint, Nbd};
use qmpfs_tests::process::Process;
use serde_json::json;

use crate::content::{CLUSTER, Content, Maker};
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

/// Writes clusters into layers, and into the raw file that says what is right.
pub(crate) struct Both {
    connected: Option<(usize, Nbd)>,
    filler: Filler,
    raw: File,
    maker: Maker,
    bytes: Vec<u8>,
    written: u64,
}

impl Both {
    /// Of the images, and of a raw file of `size` bytes that is made.
    pub(crate) fn new(dir: &Path, layers: &[PathBuf], raw: &Path, size: u64) -> Self {
        let raw = File::create(raw).expect("a raw file");
        raw.set_len(size).expect("a filesystem with sparse files");
        Self {
            filler: Filler::start(dir, layers),
            connected: None,
            raw,
            maker: Maker::new(Content::Random),
            bytes: vec![0; CLUSTER],
            written: 0,
        }
    }

    /// Writes new bytes into a cluster.
    pub(crate) fn write(&mut self, layer: usize, cluster: u64) {
        self.written += 1;
        self.maker.fill(&mut self.bytes, self.written);
        let at = cluster * CLUSTER as u64;
        let connected = self.connected.take().filter(|(to, _)| *to == layer);
        let (_, disk) = self
            .connected
            .insert(connected.unwrap_or_else(|| (layer, self.filler.disk(layer))));
        disk.write(at, &self.bytes).expect("QEMU takes the bytes");
        self.raw
            .write_all_at(&self.bytes, at)
            .expect("room for the raw file");
    }
}
