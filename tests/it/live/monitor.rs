//! A monitor between qmpfs and QEMU that has an oracle made in the very transaction of an instant: a full backup of the
//! same node to the node `oracle-1`, `oracle-2`, ... of the test, by a job of that name.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use qmpfs_tests::scratch::Scratch;
use serde_json::{Value, json};

/// Listens for qmpfs; gives the socket.
pub(super) fn with_oracles(scratch: &Scratch, upstream: &Path) -> PathBuf {
    let socket = scratch.socket("oracle.qmp");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let upstream = upstream.to_path_buf();
    let number = Arc::new(AtomicUsize::new(0));
    // Ends with the test's process.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let qemu = UnixStream::connect(&upstream).expect("QEMU's monitor");
            let number = Arc::clone(&number);
            let (from, to) = (qemu.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || pass(from, to, |line| line));
            thread::spawn(move || pass(client, qemu, |line| with_oracle(line, &number)));
        }
    });
    socket
}

fn pass(from: UnixStream, mut to: UnixStream, mut becomes: impl FnMut(String) -> String) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        if writeln!(to, "{}", becomes(line)).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn with_oracle(line: String, number: &AtomicUsize) -> String {
    let mut message: Value = serde_json::from_str(&line).expect("qmpfs speaks JSON");
    if message["execute"] != "transaction" {
        return line;
    }
    let actions = message["arguments"]["actions"]
        .as_array_mut()
        .expect("actions");
    let backups: Vec<Value> = actions
        .iter()
        .filter(|action| action["type"] == "blockdev-backup")
        .map(|action| action["data"]["device"].clone())
        .collect();
    for device in backups {
        let name = format!("oracle-{}", number.fetch_add(1, Ordering::SeqCst) + 1);
        let data = json!({"job-id": name, "device": device, "target": name, "sync": "full"});
        actions.push(json!({"type": "blockdev-backup", "data": data}));
    }
    message.to_string()
}
