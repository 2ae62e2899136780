//! A monitor between qmpfs and QEMU, where a command that changes something is a step of the test's plan: qmpfs or QEMU
//! dies just before it reaches QEMU or just after QEMU has carried it out, it is refused, never answered, or the
//! connection ends. Knows the wire; which command means what to a verb it does not know.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

use crate::scratch::Scratch;
use crate::steps::{COMMANDS, Deed, Steps};
use crate::writer::Gate;

/// The monitor in between.
#[derive(Debug)]
pub struct Proxy {
    socket: PathBuf,
    deaf: Arc<AtomicBool>,
    guest: Guest,
}

/// Who stands still while the guest is stopped.
type Guest = Arc<Mutex<Option<Arc<Gate>>>>;

/// A command whose answer is awaited, and what then happens.
type Awaited = Arc<Mutex<Option<(Value, Deed)>>>;

impl Proxy {
    /// Listens for qmpfs; each of its connections gets one to QEMU's monitor `upstream`.
    pub fn new(scratch: &Scratch, upstream: &Path, steps: &Steps) -> Self {
        let socket = scratch.socket("proxy.qmp");
        let listener = UnixListener::bind(&socket).expect("a socket for the proxy");
        let (steps, upstream) = (steps.clone(), upstream.to_path_buf());
        let deaf = Arc::<AtomicBool>::default();
        let no_events = Arc::clone(&deaf);
        let guest = Guest::default();
        let stands_still = Arc::clone(&guest);
        // Ends with the test's process: it waits for connections that nobody makes any more.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(qemu) = UnixStream::connect(&upstream) {
                    let (steps, no_events) = (steps.clone(), Arc::clone(&no_events));
                    let guest = Arc::clone(&stands_still);
                    thread::spawn(move || serve(client, qemu, &steps, &no_events, &guest));
                }
            }
        });
        Self {
            socket,
            deaf,
            guest,
        }
    }

    /// From now on no event gets through.
    pub fn lose_events(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// From now on this writer is the guest: it stands still from `stop` to `cont`. Without one nobody does.
    pub fn stops(&self, writer: Option<Arc<Gate>>) {
        *self.guest.lock().expect("no panic") = writer;
    }

    /// Where qmpfs finds it.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// What becomes of a line.
enum Line {
    Passes,
    Vanishes,
    /// It goes back to where it came from, as this.
    Returns(String),
    /// It is the last one.
    Ends,
}

/// Passes lines both ways until one side ends.
fn serve(
    client: UnixStream,
    qemu: UnixStream,
    steps: &Steps,
    deaf: &Arc<AtomicBool>,
    guest: &Guest,
) {
    let clone = |stream: &UnixStream| stream.try_clone().expect("another handle");
    let awaited = Awaited::default();
    let answers = {
        let (from, to, back) = (clone(&qemu), clone(&client), clone(&qemu));
        let (steps, awaited, deaf) = (steps.clone(), Arc::clone(&awaited), Arc::clone(deaf));
        thread::spawn(move || {
            pass(&from, to, back, |line| {
                if deaf.load(Ordering::SeqCst) && line.contains("\"event\":") {
                    return Line::Vanishes;
                }
                answer(line, &steps, &awaited)
            });
        })
    };
    let back = clone(&client);
    pass(&client, qemu, back, |line| {
        command(line, steps, &awaited, guest)
    });
    answers.join().expect("no panic");
}

fn pass(
    from: &UnixStream,
    mut to: UnixStream,
    mut back: UnixStream,
    mut becomes: impl FnMut(&str) -> Line,
) {
    let mut lines = BufReader::new(from);
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
        let written = match becomes(&line) {
            Line::Passes => to.write_all(line.as_bytes()),
            Line::Vanishes => Ok(()),
            Line::Returns(answer) => back.write_all(answer.as_bytes()),
            Line::Ends => break,
        };
        if written.is_err() {
            break;
        }
        line.clear();
    }
    // One end gone means the other goes: QEMU's monitor takes the next client only then.
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn command(line: &str, steps: &Steps, awaited: &Awaited, guest: &Guest) -> Line {
    let message: Value = serde_json::from_str(line).unwrap_or_default();
    let name = message["execute"].as_str().unwrap_or_default();
    if name.starts_with("query-") || name.starts_with("x-debug-") || name == "qmp_capabilities" {
        return Line::Passes;
    }
    let deed = steps.step(COMMANDS, name);
    let reaches_qemu = matches!(
        deed,
        Deed::Pass | Deed::KillAfter | Deed::CutAfter | Deed::Mute
    );
    if let Some(gate) = guest
        .lock()
        .expect("no panic")
        .as_ref()
        .filter(|_| reaches_qemu)
    {
        match name {
            "stop" => gate.shut(),
            "cont" => gate.open(),
            _ => {}
        }
    }
    match deed {
        Deed::Pass => Line::Passes,
        Deed::KillBefore => {
            steps.kill();
            Line::Ends
        }
        Deed::CutBefore => Line::Ends,
        Deed::Silence => Line::Vanishes,
        Deed::Fail(_) | Deed::FailFrom(_) => {
            let error = json!({"class": "GenericError", "desc": "refused by the test"});
            Line::Returns(format!(
                "{}\n",
                json!({"id": message["id"], "error": error})
            ))
        }
        Deed::KillAfter | Deed::CutAfter | Deed::Mute => {
            *awaited.lock().expect("no panic") = Some((message["id"].clone(), deed));
            Line::Passes
        }
    }
}

fn answer(line: &str, steps: &Steps, awaited: &Awaited) -> Line {
    let mut awaited = awaited.lock().expect("no panic");
    let Some((id, deed)) = &*awaited else {
        return Line::Passes;
    };
    let message: Value = serde_json::from_str(line).unwrap_or_default();
    if message.get("event").is_some() || &message["id"] != id {
        return Line::Passes;
    }
    let deed = *deed;
    *awaited = None;
    match deed {
        Deed::KillAfter => {
            steps.kill();
            Line::Ends
        }
        Deed::Mute => Line::Vanishes,
        Deed::CutAfter => Line::Ends,
        Deed::Pass
        | Deed::KillBefore
        | Deed::CutBefore
        | Deed::Silence
        | Deed::Fail(_)
        | Deed::FailFrom(_) => Line::Passes,
    }
}
