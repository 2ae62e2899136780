//! A guest agent that behaves as a test tells it, and a witness between qmpfs and a real one. Nothing here knows qmpfs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::scratch::Scratch;
use crate::{sh, wait};

const FREEZE: &str = "guest-fsfreeze-freeze";
const THAW: &str = "guest-fsfreeze-thaw";
const STATUS: &str = "guest-fsfreeze-status";
const SYNC: &str = "guest-sync-delimited";

/// How the agent behaves, until it is told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As the real one.
    Good,
    /// It takes everything and answers nothing.
    Deaf,
    /// Its answers are none.
    Garbage,
    /// It freezes, and says so, that much later.
    SlowToFreeze(Duration),
    /// It does not freeze, and says why.
    RefusesToFreeze,
    /// It freezes and hangs up; whoever connects again is served.
    HangsUpFrozen,
    /// It hangs up at the first thaw, which it does not do.
    HangsUpAtThaw,
    /// It freezes, hangs up, and is deaf from then on.
    DeafOnceFrozen,
    /// It says no to the first thaw.
    RefusesToThawOnce,
    /// Somebody else thaws right after each freeze.
    ThawedByOthers,
}

/// Which side of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The agent has not carried it out.
    Before,
    /// It has, and its answer is not sent.
    After,
}

/// A process to be struck by a signal at a command.
#[derive(Debug)]
struct Strike {
    pid: u32,
    signal: i32,
    command: &'static str,
    when: When,
}

#[derive(Debug)]
struct State {
    manner: Manner,
    frozen: bool,
    freezes: Vec<SystemTime>,
    thaws: Vec<SystemTime>,
    strike: Option<Strike>,
}

/// The agent.
#[derive(Debug)]
pub struct FakeAgent {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
    _scratch: Scratch,
}

impl FakeAgent {
    /// Listens on a socket of its own.
    pub fn new(name: &str, manner: Manner) -> Self {
        let scratch = Scratch::new(&format!("{name}-agent"));
        let socket = scratch.socket("agent");
        let listener = UnixListener::bind(&socket).expect("a socket for the agent");
        let state = Arc::new(Mutex::new(State {
            manner,
            frozen: false,
            freezes: Vec::new(),
            thaws: Vec::new(),
            strike: None,
        }));
        let shared = Arc::clone(&state);
        // One client at a time, as QEMU's socket has it. Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                serve(&client, &shared);
            }
        });
        Self {
            socket,
            state,
            _scratch: scratch,
        }
    }

    /// Where qmpfs finds it, as an option of `qmpfs mount`.
    pub fn option(&self) -> String {
        format!("guest_agent={}", self.socket.display())
    }

    /// Behaves otherwise from now on.
    pub fn be(&self, manner: Manner) {
        self.state().manner = manner;
    }

    /// Sends `signal` to a process at its next freeze: before it freezes, or after.
    pub fn strike_at_freeze(&self, pid: u32, signal: i32, when: When) {
        self.strike(pid, signal, FREEZE, when);
    }

    /// The same at its next thaw.
    pub fn strike_at_thaw(&self, pid: u32, signal: i32, when: When) {
        self.strike(pid, signal, THAW, when);
    }

    fn strike(&self, pid: u32, signal: i32, command: &'static str, when: When) {
        self.state().strike = Some(Strike {
            pid,
            signal,
            command,
            when,
        });
    }

    /// True if the process was struck.
    pub fn has_struck(&self) -> bool {
        self.state().strike.is_none()
    }

    /// Whether the guest is frozen.
    pub fn frozen(&self) -> bool {
        self.state().frozen
    }

    /// Freezes, as somebody else would.
    pub fn freeze(&self) {
        self.state().frozen = true;
    }

    /// When it was frozen, each time.
    pub fn freezes(&self) -> Vec<SystemTime> {
        self.state().freezes.clone()
    }

    /// When it was thawed, each time.
    pub fn thaws(&self) -> Vec<SystemTime> {
        self.state().thaws.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }
}

enum Reply {
    Answer(Value),
    Raw(&'static [u8]),
    HangUp,
}

fn serve(client: &UnixStream, state: &Mutex<State>) {
    let (mut lines, mut out) = (BufReader::new(client), client);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let sentinel = line.first() == Some(&0xff);
        let start = line.iter().take_while(|&&b| b == 0xff).count();
        let command: Value = serde_json::from_slice(&line[start..]).unwrap_or_default();
        let name = command["execute"].as_str().unwrap_or_default();
        line.clear();
        let deaf = state.lock().expect("no panic").manner == Manner::Deaf;
        if deaf {
            continue;
        }
        let mut answer = Vec::new();
        if sentinel {
            let stray = json!({"error": {"class": "GenericError", "desc": "JSON parse error, stray '\u{fffd}'"}});
            answer.extend(format!("{stray}\n").into_bytes());
        }
        if name == SYNC {
            answer.push(0xff);
            answer.extend(
                format!("{}\n", json!({"return": command["arguments"]["id"]})).into_bytes(),
            );
        } else {
            match carry_out(name, state) {
                Reply::Answer(value) => answer.extend(format!("{value}\n").into_bytes()),
                Reply::Raw(bytes) => answer.extend(bytes),
                Reply::HangUp => break,
            }
        }
        if out.write_all(&answer).is_err() {
            break;
        }
    }
}

fn carry_out(name: &str, state: &Mutex<State>) -> Reply {
    let lock = || state.lock().expect("no panic");
    if let Manner::SlowToFreeze(late) = lock().manner
        && name == FREEZE
    {
        // the one thing here that takes its time
        thread::sleep(late);
    }
    if strike(name, When::Before, &mut lock()) {
        return Reply::HangUp;
    }
    let reply = act(name, &mut lock());
    strike(name, When::After, &mut lock());
    reply
}

fn act(name: &str, state: &mut State) -> Reply {
    let done = |value: Value| Reply::Answer(json!({ "return": value }));
    let refused =
        |desc: &str| Reply::Answer(json!({"error": {"class": "GenericError", "desc": desc}}));
    if state.manner == Manner::Garbage {
        return Reply::Raw(b"{\"QMP\": {\"version\": {}}}\n");
    }
    match name {
        STATUS => done(json!(if state.frozen { "frozen" } else { "thawed" })),
        "guest-info" => {
            let commands = [STATUS, FREEZE, THAW]
                .map(|name| json!({"name": name, "enabled": true, "success-response": true}));
            done(json!({"version": "9.9.9", "supported_commands": commands}))
        }
        FREEZE if state.frozen => {
            refused("Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state")
        }
        FREEZE if state.manner == Manner::RefusesToFreeze => {
            refused("failed to freeze /: Operation not supported")
        }
        FREEZE => {
            state.frozen = state.manner != Manner::ThawedByOthers;
            state.freezes.push(SystemTime::now());
            match state.manner {
                Manner::HangsUpFrozen => {
                    state.manner = Manner::Good;
                    Reply::HangUp
                }
                Manner::DeafOnceFrozen => {
                    state.manner = Manner::Deaf;
                    Reply::HangUp
                }
                _ => done(json!(2)),
            }
        }
        THAW if state.manner == Manner::RefusesToThawOnce => {
            state.manner = Manner::Good;
            refused("the guest does not feel like it")
        }
        THAW if state.manner == Manner::HangsUpAtThaw => {
            state.manner = Manner::Good;
            Reply::HangUp
        }
        THAW => {
            state.thaws.push(SystemTime::now());
            done(json!(if std::mem::take(&mut state.frozen) {
                2
            } else {
                0
            }))
        }
        _ => refused("The command has not been found"),
    }
}

/// Strikes, if this is the moment. True if there is nobody left to answer.
fn strike(name: &str, when: When, state: &mut State) -> bool {
    let moment = |strike: &mut Strike| strike.command == name && strike.when == when;
    let Some(strike) = state.strike.take_if(moment) else {
        return false;
    };
    let pid = libc::pid_t::try_from(strike.pid).expect("a process id");
    // SAFETY: a plain system call on a process that this test started.
    assert_eq!(unsafe { libc::kill(pid, strike.signal) }, 0, "it runs");
    strike.signal == libc::SIGKILL
}

#[derive(Debug, Default)]
struct Seen {
    /// What the agent said when it was about to be told to thaw.
    statuses: Vec<String>,
    asking: bool,
}

/// Stands between qmpfs and a real agent, and asks the agent how it is before each thaw is passed on.
#[derive(Debug)]
pub struct Witness {
    socket: PathBuf,
    seen: Arc<Mutex<Seen>>,
}

impl Witness {
    /// Listens for qmpfs; `at_thaw` is called while the guest is frozen, and says whether the thaw is passed on or the
    /// connection ends.
    pub fn new(
        scratch: &Scratch,
        upstream: &Path,
        at_thaw: impl Fn() -> bool + Send + 'static,
    ) -> Self {
        let socket = scratch.socket("witness");
        let listener = UnixListener::bind(&socket).expect("a socket for the witness");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (shared, upstream) = (Arc::clone(&seen), upstream.to_path_buf());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(agent) = UnixStream::connect(&upstream) {
                    pass(&client, &agent, &shared, &at_thaw);
                }
            }
        });
        Self { socket, seen }
    }

    /// Where qmpfs finds the agent, as an option of `qmpfs mount`.
    pub fn option(&self) -> String {
        format!("guest_agent={}", self.socket.display())
    }

    /// What the agent said before each thaw.
    pub fn statuses(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").statuses.clone()
    }
}

fn pass(
    client: &UnixStream,
    agent: &UnixStream,
    seen: &Arc<Mutex<Seen>>,
    at_thaw: &impl Fn() -> bool,
) {
    let clone = |stream: &UnixStream| stream.try_clone().expect("another handle");
    let (from_agent, mut to_client, shared) = (clone(agent), clone(client), Arc::clone(seen));
    let answers = thread::spawn(move || {
        let mut lines = BufReader::new(from_agent);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let said: Value = serde_json::from_slice(&line).unwrap_or_default();
            let mut seen = shared.lock().expect("no panic");
            match said["return"].as_str() {
                Some(status) if seen.asking => {
                    seen.asking = false;
                    seen.statuses.push(status.to_owned());
                }
                _ => {
                    // a client that is gone ends the other direction, too
                    let _ = to_client.write_all(&line);
                }
            }
            line.clear();
        }
        let _ = to_client.shutdown(std::net::Shutdown::Both);
    });
    let (mut lines, mut out) = (BufReader::new(client), agent);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        if line.windows(THAW.len()).any(|part| part == THAW.as_bytes()) {
            seen.lock().expect("no panic").asking = true;
            let question = format!("{}\n", json!({"execute": STATUS}));
            if out.write_all(question.as_bytes()).is_err() {
                break;
            }
            if !at_thaw() {
                break;
            }
        }
        if out.write_all(&line).is_err() {
            break;
        }
        line.clear();
    }
    let _ = agent.shutdown(std::net::Shutdown::Both);
    answers.join().expect("no panic");
}

/// A talk with a real agent.
struct Talk {
    lines: BufReader<UnixStream>,
}

impl Talk {
    /// Connects and gets in step: what the agent may have to say to others is passed over.
    #[track_caller]
    fn new(agent: &Path) -> Self {
        let stream = UnixStream::connect(agent).expect("the agent's socket");
        stream
            .set_read_timeout(Some(wait::PATIENCE))
            .expect("a deadline");
        let mut talk = Self {
            lines: BufReader::new(stream),
        };
        let sync = json!({"execute": SYNC, "arguments": {"id": 4711}});
        talk.say(&[&[0xff], sync.to_string().as_bytes()].concat());
        loop {
            let line = talk.line();
            let sentinel = line.iter().rposition(|&b| b == 0xff);
            let said: Value = serde_json::from_slice(&line[sentinel.map_or(0, |at| at + 1)..])
                .unwrap_or_default();
            if sentinel.is_some() && said["return"] == 4711 {
                return talk;
            }
        }
    }

    /// Asks one thing.
    #[track_caller]
    fn ask(&mut self, question: &Value) -> Value {
        self.say(question.to_string().as_bytes());
        let line = self.line();
        let said: Value = serde_json::from_slice(&line).expect("an answer");
        assert!(said.get("return").is_some(), "{question}: {said}");
        said["return"].clone()
    }

    fn say(&mut self, line: &[u8]) {
        let line = [line, b"\n"].concat();
        self.lines.get_mut().write_all(&line).expect("a question");
    }

    #[track_caller]
    fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        let read = self.lines.read_until(b'\n', &mut line);
        assert!(read.is_ok_and(|n| n > 0), "the agent says nothing");
        line
    }
}

/// What a real agent says of its guest: `frozen` or `thawed`.
#[track_caller]
pub fn freeze_status(agent: &Path) -> String {
    let said = Talk::new(agent).ask(&json!({"execute": STATUS}));
    said.as_str().expect("a word").to_owned()
}

/// Lets a real agent run a line of shell in its guest; gives what that printed. Panics if it fails there.
#[track_caller]
pub fn run_in_guest(agent: &Path, line: &str) -> String {
    let mut talk = Talk::new(agent);
    let started = talk.ask(&json!({"execute": "guest-exec", "arguments": {
        "path": "/bin/sh", "arg": ["-euc", line], "capture-output": true
    }}));
    let pid = started["pid"].as_u64().expect("it runs");
    let limit = wait::PATIENCE * 4; // without KVM, beside the guest's own work
    let ended = wait::poll(limit, || {
        let status = talk.ask(&json!({"execute": "guest-exec-status", "arguments": {"pid": pid}}));
        (status["exited"] == true).then_some(status)
    });
    let ended = ended.unwrap_or_else(|| panic!("it does not end in the guest: {line}"));
    assert_eq!(ended["exitcode"], 0, "{line}: {}", ended["err-data"]);
    assert!(
        ended["out-truncated"] != true,
        "more than the agent keeps: {line}"
    );
    let scratch = Scratch::new("agent-said");
    let said = scratch.file("base64");
    std::fs::write(&said, ended["out-data"].as_str().unwrap_or_default()).expect("room");
    sh!("base64 -d {}", said.display())
}
