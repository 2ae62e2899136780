//! A monitor between qmpfs and QEMU that ends qmpfs with kill -9 at a chosen command: just before it reaches QEMU, or
//! just after QEMU has carried it out and before qmpfs hears of it. So every step of a verb is a moment to die at.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

use crate::scratch::Scratch;

/// Which side of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// QEMU never sees it.
    Before,
    /// QEMU has answered; the answer is lost.
    After,
}

#[derive(Debug, Default)]
struct Plan {
    /// Whom to kill, at which command, and when; `None` lets all pass.
    armed: Option<(u32, usize, When)>,
    /// Commands that change something, since it was armed.
    seen: Vec<String>,
    /// The id of the command whose answer is the moment.
    awaited: Option<Value>,
    killed: bool,
}

/// The monitor in between.
#[derive(Debug)]
pub struct Proxy {
    socket: PathBuf,
    plan: Arc<Mutex<Plan>>,
}

impl Proxy {
    /// Listens for qmpfs; each of its connections gets one to QEMU's monitor `upstream`.
    pub fn new(scratch: &Scratch, upstream: &Path) -> Self {
        let socket = scratch.socket("proxy.qmp");
        let listener = UnixListener::bind(&socket).expect("a socket for the proxy");
        let plan = Arc::new(Mutex::new(Plan::default()));
        let (shared, upstream) = (Arc::clone(&plan), upstream.to_path_buf());
        // Ends with the test's process: it waits for connections that nobody makes any more.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(qemu) = UnixStream::connect(&upstream) {
                    serve(client, qemu, &shared);
                }
            }
        });
        Self { socket, plan }
    }

    /// Where qmpfs finds it.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Kills `pid` at its `number`th changing command from now on, counted from 0.
    pub fn kill_at(&self, pid: u32, number: usize, when: When) {
        *self.plan.lock().expect("no panic") = Plan {
            armed: Some((pid, number, when)),
            ..Plan::default()
        };
    }

    /// Lets everything pass again. Gives whether it has killed, and the commands up to there.
    pub fn disarm(&self) -> (bool, Vec<String>) {
        let plan = std::mem::take(&mut *self.plan.lock().expect("no panic"));
        (plan.killed, plan.seen)
    }
}

/// Passes lines both ways until one side ends.
fn serve(client: UnixStream, qemu: UnixStream, plan: &Arc<Mutex<Plan>>) {
    let clone = |stream: &UnixStream| stream.try_clone().expect("another handle");
    let (to_client, from_qemu) = (clone(&client), clone(&qemu));
    let for_answers = Arc::clone(plan);
    let answers = thread::spawn(move || {
        pass(from_qemu, to_client, |line| {
            answer_passes(line, &for_answers)
        });
    });
    pass(client, qemu, |line| command_passes(line, plan));
    answers.join().expect("no panic");
}

fn pass(from: UnixStream, mut to: UnixStream, mut passes: impl FnMut(&str) -> bool) {
    let mut lines = BufReader::new(&from);
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
        if !passes(&line) || to.write_all(line.as_bytes()).is_err() {
            break;
        }
        line.clear();
    }
    // One end gone means the other goes: QEMU's monitor takes the next client only then.
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn command_passes(line: &str, plan: &Mutex<Plan>) -> bool {
    let message: Value = serde_json::from_str(line).unwrap_or_default();
    let name = message["execute"].as_str().unwrap_or_default();
    if name.starts_with("query-") || name.starts_with("x-debug-") || name == "qmp_capabilities" {
        return true;
    }
    let mut plan = plan.lock().expect("no panic");
    let Some((pid, number, when)) = plan.armed else {
        return true;
    };
    plan.seen.push(name.to_owned());
    if plan.killed || plan.seen.len() != number + 1 {
        return !plan.killed;
    }
    match when {
        When::Before => {
            plan.killed = true;
            kill9(pid);
            false
        }
        When::After => {
            plan.awaited = Some(message["id"].clone());
            true
        }
    }
}

fn answer_passes(line: &str, plan: &Mutex<Plan>) -> bool {
    let mut plan = plan.lock().expect("no panic");
    let Some(awaited) = &plan.awaited else {
        return true;
    };
    let message: Value = serde_json::from_str(line).unwrap_or_default();
    if message.get("event").is_some() || &message["id"] != awaited {
        return true;
    }
    let pid = plan.armed.expect("an answer is awaited of an armed plan").0;
    plan.awaited = None;
    plan.killed = true;
    kill9(pid);
    false
}

fn kill9(pid: u32) {
    let pid = libc::pid_t::try_from(pid).expect("a process id");
    // SAFETY: a plain system call on the process that this test started.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "it runs");
}
