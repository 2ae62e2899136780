//! A small synchronous QMP client for the tests' own monitor. It shares nothing with qmpbridge, which is under test.

use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

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
    resets: u64,
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
        let mut qmp = Self::on(stream);
        let greeting = qmp.message().expect("a greeting");
        assert!(
            greeting.get("QMP").is_some(),
            "not a QMP greeting: {greeting}"
        );
        qmp.run("qmp_capabilities", json!({}));
        qmp
    }

    fn on(stream: UnixStream) -> Self {
        Self {
            lines: BufReader::new(stream),
            resets: 0,
        }
    }

    /// Takes a monitor that is just coming up; `None` if somebody else was faster.
    pub fn try_connect(socket: &Path, patience: Duration) -> Option<Self> {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        let mut qmp = Self::on(stream);
        qmp.message().ok()?.get("QMP")?;
        qmp.run("qmp_capabilities", json!({}));
        Some(qmp)
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
                // others are hints: tests ask for the state itself
                self.resets += u64::from(message["event"] == "RESET");
                continue;
            }
            if let Some(error) = message.get("error") {
                return Err(Refused(format!(
                    "{command}: {}",
                    error["desc"].as_str().unwrap_or_default()
                )));
            }
            return Ok(message["return"].clone());
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

    /// Waits until a job has this status; panics if it failed.
    #[track_caller]
    pub fn until_job(&mut self, id: &str, status: &str) {
        wait::until(&format!("job {id} is {status}"), || {
            let jobs = self.run("query-jobs", json!({}));
            let job = jobs.as_array()?.iter().find(|job| job["id"] == id)?;
            assert!(job.get("error").is_none(), "job {id}: {}", job["error"]);
            (job["status"] == status).then_some(())
        });
    }

    /// How often the guest was reset since this monitor was taken.
    #[track_caller]
    pub fn resets(&mut self) -> u64 {
        self.run("query-status", json!({}));
        self.resets
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

/// QEMU's block graph at one moment.
#[derive(Debug)]
pub struct Graph(Value);

impl Graph {
    /// Asks for it.
    pub fn of(qmp: &mut Qmp) -> Self {
        Self(qmp.run("x-debug-query-block-graph", json!({})))
    }

    /// The nodes of the first disk, active layer first.
    pub fn chain(&self) -> Vec<String> {
        let root = self
            .edges()
            .find(|e| e["name"] == "root" && self.node(&e["parent"])["type"] == "block-backend");
        let mut at = root.map(|e| self.name(&e["child"]));
        let mut chain = Vec::new();
        while let Some(name) = at {
            at = self.child(&name, "backing");
            chain.push(name);
        }
        chain
    }

    /// The node below `node` by an edge of this kind: `file` or `backing`.
    pub fn child(&self, node: &str, kind: &str) -> Option<String> {
        let is_it =
            |id: &Value| self.node(id)["type"] == "block-driver" && self.node(id)["name"] == node;
        self.edges()
            .find(|e| e["name"] == kind && is_it(&e["parent"]))
            .map(|e| self.name(&e["child"]))
    }

    /// True if there is a node of this name.
    pub fn has(&self, node: &str) -> bool {
        self.0["nodes"]
            .as_array()
            .is_some_and(|nodes| nodes.iter().any(|n| n["name"] == node))
    }

    fn edges(&self) -> impl Iterator<Item = &Value> {
        self.0["edges"].as_array().into_iter().flatten()
    }

    fn node(&self, id: &Value) -> &Value {
        let nodes = self.0["nodes"].as_array().expect("nodes");
        nodes
            .iter()
            .find(|n| n["id"] == *id)
            .expect("edges lead to nodes")
    }

    fn name(&self, id: &Value) -> String {
        self.node(id)["name"]
            .as_str()
            .expect("nodes have names")
            .to_owned()
    }
}
