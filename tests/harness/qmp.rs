//! A small synchronous QMP client for the tests' own monitor. It shares nothing with qmpbridge, which is under test.

use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::wait::{self, PATIENCE};

/// QEMU's refusal, in its own words.
#[derive(Debug, Clone)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A negotiated monitor.
#[derive(Debug)]
pub struct Qmp {
    lines: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects as soon as QEMU listens, and negotiates.
    pub fn connect(socket: &Path) -> Self {
        let stream = wait::until("QEMU listens on its monitor", || {
            UnixStream::connect(socket).ok()
        });
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a deadline for the monitor");
        let mut qmp = Self {
            lines: BufReader::new(stream),
            events: Vec::new(),
        };
        let greeting = qmp.message().expect("a greeting");
        assert!(
            greeting.get("QMP").is_some(),
            "not a QMP greeting: {greeting}"
        );
        qmp.run("qmp_capabilities", json!({}));
        qmp
    }

    /// Runs a command; gives its return value or QEMU's refusal.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Refused> {
        let line = json!({"execute": command, "arguments": arguments});
        writeln!(self.lines.get_mut(), "{line}").map_err(|e| Refused(format!("{command}: {e}")))?;
        loop {
            let message = self
                .message()
                .map_err(|e| Refused(format!("{command}: {e}")))?;
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                return Err(Refused(format!(
                    "{command}: {}",
                    error["desc"].as_str().unwrap_or_default()
                )));
            } else {
                return Ok(message["return"].clone());
            }
        }
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        match self.execute(command, arguments.clone()) {
            Ok(value) => value,
            Err(refused) => panic!("{refused}\n  {arguments}"),
        }
    }

    /// Waits for an event of this name, also one that came earlier; gives its data and forgets it.
    #[track_caller]
    pub fn event(&mut self, name: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.events.iter().position(|e| e["event"] == name) {
                return self.events.remove(at)["data"].take();
            }
            assert!(Instant::now() < end, "no event {name} within {PATIENCE:?}");
            let message = self
                .message()
                .unwrap_or_else(|e| panic!("waiting for {name}: {e}"));
            self.events.push(message);
        }
    }

    /// Waits until a job has concluded, then dismisses it; panics if it failed.
    #[track_caller]
    pub fn finish_job(&mut self, id: &str) {
        let job = wait::until(&format!("job {id} concludes"), || {
            let jobs = self.run("query-jobs", json!({}));
            jobs.as_array()?
                .iter()
                .find(|j| j["id"] == id && j["status"] == "concluded")
                .cloned()
        });
        assert!(job.get("error").is_none(), "job {id}: {}", job["error"]);
        self.run("job-dismiss", json!({"id": id}));
    }

    /// Asks QEMU to end; it may be gone before it answers.
    pub fn quit(&mut self) {
        let _ = self
            .lines
            .get_ref()
            .set_read_timeout(Some(Duration::from_secs(10)));
        let _ = self.execute("quit", json!({}));
    }

    fn message(&mut self) -> Result<Value, std::io::Error> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(Into::into)
    }
}

/// The node that the device, or the export, of a disk stands on, and the nodes below it, active layer first.
pub fn chain_nodes(qmp: &mut Qmp) -> Vec<String> {
    let graph = qmp.run("x-debug-query-block-graph", json!({}));
    let nodes = graph["nodes"].as_array().expect("nodes");
    let edges = graph["edges"].as_array().expect("edges");
    let name = |id: &Value| {
        nodes
            .iter()
            .find(|n| n["id"] == *id)
            .and_then(|n| n["name"].as_str())
            .map(str::to_owned)
    };
    let is_backend = |id: &Value| {
        nodes
            .iter()
            .any(|n| n["id"] == *id && n["type"] == "block-backend")
    };
    let mut at = edges
        .iter()
        .find(|e| e["name"] == "root" && is_backend(&e["parent"]))
        .map(|e| e["child"].clone());
    let mut chain = Vec::new();
    while let Some(id) = at {
        chain.extend(name(&id));
        at = edges
            .iter()
            .find(|e| e["parent"] == id && e["name"] == "backing")
            .map(|e| e["child"].clone());
    }
    chain
}
