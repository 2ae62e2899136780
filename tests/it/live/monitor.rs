//! A monitor between qmpfs and QEMU that has an oracle made in the very transaction of an instant: a full backup of the
//! same node to the node `oracle-1`, `oracle-2`, ... of the test, by a job of that name.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use qmpfs_tests::rewrite::rewriting;
use qmpfs_tests::scratch::Scratch;
use serde_json::{Value, json};

/// Listens for qmpfs; gives the socket.
pub(super) fn with_oracles(scratch: &Scratch, upstream: &Path) -> PathBuf {
    let number = AtomicUsize::new(0);
    rewriting(scratch, upstream, move |message| {
        with_oracle(message, &number)
    })
}

fn with_oracle(message: &mut Value, number: &AtomicUsize) {
    if message["execute"] != "transaction" {
        return;
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
}
