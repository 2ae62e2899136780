//! A monitor between qmpfs and QEMU that changes what qmpfs says: how a test gets an oracle into the very transaction of an
//! instant, or has one command refused. Knows the wire; what is changed is the test's business.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

use crate::scratch::Scratch;
use crate::wait;

/// Listens for qmpfs; each command that it sends to `upstream` goes through `rewrite`. Gives the socket.
pub fn rewriting(
    scratch: &Scratch,
    upstream: &Path,
    rewrite: impl Fn(&mut Value) + Send + Sync + 'static,
) -> PathBuf {
    let socket = scratch.socket("rewrite.qmp");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let upstream = upstream.to_path_buf();
    let rewrite = Arc::new(rewrite);
    // Ends with the test's process.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(qemu) = UnixStream::connect(&upstream) else {
                continue;
            };
            let rewrite = Arc::clone(&rewrite);
            let clone = |stream: &UnixStream| stream.try_clone().expect("another handle");
            let (from, to) = (clone(&qemu), clone(&client));
            thread::spawn(move || pass(from, to, |line| line));
            thread::spawn(move || {
                pass(client, qemu, |line| {
                    let mut message: Value =
                        serde_json::from_str(&line).expect("qmpfs speaks JSON");
                    rewrite(&mut message);
                    message.to_string()
                });
            });
        }
    });
    socket
}

/// What merges begin with as their limit, in bytes a second (0: none): whoever slows a job down that runs already may meet
/// it at its end.
#[derive(Debug)]
pub struct MergeLimit(Arc<AtomicU64>);

impl MergeLimit {
    /// A monitor that does so, without a limit yet. Gives its socket, too.
    pub fn new(scratch: &Scratch, upstream: &Path) -> (PathBuf, Self) {
        let limit = Arc::new(AtomicU64::new(0));
        let of_monitor = Arc::clone(&limit);
        let merges = ["block-commit", "block-stream"].map(Value::from);
        let socket = rewriting(scratch, upstream, move |message| {
            let bytes = of_monitor.load(Ordering::Relaxed);
            if bytes > 0 && merges.contains(&message["execute"]) {
                message["arguments"]["speed"] = bytes.into();
            }
        });
        (socket, Self(limit))
    }

    /// From now on. Jobs that run already: [`crate::machine::Machine::limit_jobs`].
    pub fn set(&self, bytes_per_second: u64) {
        self.0.store(bytes_per_second, Ordering::Relaxed);
    }
}

/// A command that waits before it reaches QEMU.
#[derive(Debug)]
pub struct Held {
    comes: Receiver<()>,
    goes: Sender<()>,
}

/// Holds the first `command` of qmpfs back, until the test has done what it does meanwhile. Gives the socket, too.
pub fn holding(scratch: &Scratch, upstream: &Path, command: &'static str) -> (PathBuf, Held) {
    let (came, comes) = channel();
    let (goes, went) = channel();
    let ends = Mutex::new((came, went));
    let socket = rewriting(scratch, upstream, move |message| {
        if message["execute"] == command {
            let ends = ends.lock().expect("no panic");
            let _ = ends.0.send(());
            // at once, when nobody holds it any more
            let _ = ends.1.recv();
        }
    });
    (socket, Held { comes, goes })
}

impl Held {
    /// Waits until the command is there, does `deed`, and lets it go on.
    #[track_caller]
    pub fn meanwhile<T>(self, deed: impl FnOnce() -> T) -> T {
        let came = self.comes.recv_timeout(wait::PATIENCE);
        came.expect("the command comes");
        let done = deed();
        let _ = self.goes.send(());
        done
    }
}

fn pass(from: UnixStream, mut to: UnixStream, mut becomes: impl FnMut(String) -> String) {
    for line in BufReader::new(&from).lines().map_while(Result::ok) {
        if writeln!(to, "{}", becomes(line)).is_err() {
            break;
        }
    }
    // one end gone means the other goes
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}
