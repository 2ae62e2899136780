//! A client of qemu-guest-agent: reaching it, and freezing and thawing the guest's filesystems.
//!
//! Knows the agent's wire: JSON lines without a greeting, one client at a time, and that what an earlier client left
//! unread comes to the next one. Does not know what is done while the guest is frozen.
//! Invariants: an answer is taken for a command only in step with the agent; `guest-fsfreeze-freeze` is sent only to an
//! agent that has just answered, so that none lies about in a channel until an agent starts; a thaw is sent at once.

mod error;
mod inbox;

pub use error::AgentError;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::address::Address;
use crate::connection::{self, Socket};
use crate::error::Error;
use inbox::{Inbox, SENTINEL};

/// An agent answers within milliseconds, in a guest that is starved of processor time within a second.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);
/// The guest writes back what it has in memory; longer than this and the caller waits too long.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);
const READ_CHUNK: usize = 64 << 10;

const SYNC: &str = "guest-sync-delimited";
const INFO: &str = "guest-info";
const STATUS: &str = "guest-fsfreeze-status";
const FREEZE: &str = "guest-fsfreeze-freeze";
const THAW: &str = "guest-fsfreeze-thaw";

/// What a freeze cannot do without; an agent may have them switched off.
const NEEDED: [&str; 3] = [STATUS, FREEZE, THAW];

/// Whether the agent holds the guest's filesystems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FreezeStatus {
    /// They are written as always.
    Thawed,
    /// Writers in the guest wait.
    Frozen,
}

/// A connection to the agent. Close it (drop it) soon: the agent serves one client at a time.
pub struct GuestAgent {
    socket: Box<dyn Socket>,
    inbox: Inbox,
    /// Whether the next line is the answer to the next command.
    in_step: bool,
}

impl std::fmt::Debug for GuestAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestAgent")
            .field("in_step", &self.in_step)
            .finish_non_exhaustive()
    }
}

impl GuestAgent {
    /// Connects and gets in step. The socket is served by QEMU also when no agent runs in the guest: then this times out.
    pub async fn connect(address: &Address) -> Result<GuestAgent, AgentError> {
        let (socket, _) = connection::open(address)
            .await
            .map_err(|e| unreachable(address, e))?;
        let mut agent = GuestAgent {
            socket,
            inbox: Inbox::default(),
            in_step: false,
        };
        agent.get_in_step().await?;
        Ok(agent)
    }

    /// The agent's version, once it is sure that it can freeze and thaw. Not to be asked of a frozen agent, which has
    /// nearly everything switched off.
    pub async fn version(&mut self) -> Result<String, AgentError> {
        #[derive(Deserialize)]
        struct Info {
            version: String,
            supported_commands: Vec<Supported>,
        }
        #[derive(Deserialize)]
        struct Supported {
            name: String,
            enabled: bool,
        }
        let info: Info = self.ask(INFO, ANSWER_DEADLINE).await?;
        let enabled = |needed: &&str| {
            let mut known = info.supported_commands.iter();
            known.any(|command| command.name == *needed && command.enabled)
        };
        match NEEDED.iter().find(|needed| !enabled(needed)) {
            Some(command) => Err(AgentError::SwitchedOff { command }),
            None => Ok(info.version),
        }
    }

    /// Whether the guest is frozen through this agent, by whomever.
    pub async fn freeze_status(&mut self) -> Result<FreezeStatus, AgentError> {
        self.ask(STATUS, ANSWER_DEADLINE).await
    }

    /// Freezes the guest's filesystems; gives how many. After an error other than a refusal they may be frozen, or
    /// become so later: thaw.
    pub async fn freeze(&mut self) -> Result<u64, AgentError> {
        self.ask(FREEZE, FREEZE_DEADLINE).await
    }

    /// Thaws them; gives how many were still frozen. It is sent without waiting to be in step: an agent that comes back
    /// to life late, to a freeze that was given up, finds it right behind. A second thaw cannot tell what the first
    /// did, so the answer is worth waiting for.
    pub async fn thaw(&mut self, deadline: Duration) -> Result<u64, AgentError> {
        let id = random_id();
        let mut lines = sync_line(id);
        lines.extend(line(THAW, None));
        self.in_step = false;
        let exchange = async {
            self.send(&lines).await?;
            self.reach(id).await?;
            self.line().await
        };
        let answer = timeout(deadline, exchange)
            .await
            .unwrap_or(Err(AgentError::TimedOut { command: THAW }))?;
        self.take(THAW, &answer)
    }

    async fn get_in_step(&mut self) -> Result<(), AgentError> {
        let id = random_id();
        self.in_step = false;
        let exchange = async {
            self.send(&sync_line(id)).await?;
            self.reach(id).await
        };
        match timeout(ANSWER_DEADLINE, exchange).await {
            Ok(reached) => {
                self.in_step = reached.is_ok();
                reached
            }
            Err(_) => Err(match self.inbox.greeting() {
                Some(greeting) => AgentError::Garbage {
                    command: SYNC,
                    got: crate::wire::excerpt(greeting),
                },
                None => AgentError::TimedOut { command: SYNC },
            }),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        deadline: Duration,
    ) -> Result<T, AgentError> {
        if !self.in_step {
            self.get_in_step().await?;
        }
        // until the answer is there, also when this wait is given up
        self.in_step = false;
        let exchange = async {
            self.send(&line(command, None)).await?;
            self.line().await
        };
        let answer = timeout(deadline, exchange)
            .await
            .unwrap_or(Err(AgentError::TimedOut { command }))?;
        self.take(command, &answer)
    }

    /// What a whole line answers to a command.
    fn take<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        line: &[u8],
    ) -> Result<T, AgentError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(rename = "return", borrow)]
            value: Option<&'a RawValue>,
            error: Option<Refusal>,
        }
        #[derive(Deserialize)]
        struct Refusal {
            #[serde(default)]
            class: String,
            desc: String,
        }
        let garbage = || AgentError::Garbage {
            command,
            got: crate::wire::excerpt(line),
        };
        let answer: Answer<'_> = serde_json::from_slice(line).map_err(|_| garbage())?;
        let taken = match answer {
            Answer {
                error: Some(Refusal { class, desc }),
                ..
            } => Err(AgentError::Refused {
                command,
                class,
                desc,
            }),
            Answer {
                value: Some(value), ..
            } => Ok(serde_json::from_str(value.get()).map_err(|_| garbage())?),
            Answer { .. } => return Err(garbage()),
        };
        self.in_step = true;
        taken
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        let sent = self.socket.write_all(bytes).await;
        sent.map_err(|_| AgentError::Closed)
    }

    /// Skips everything before the answer to guest-sync-delimited with this id, and that answer.
    async fn reach(&mut self, id: u64) -> Result<(), AgentError> {
        while !self.inbox.skip_to(id) {
            self.receive().await?;
        }
        Ok(())
    }

    async fn line(&mut self) -> Result<Vec<u8>, AgentError> {
        loop {
            match self.inbox.next_line() {
                Ok(Some(line)) => return Ok(line),
                Ok(None) => self.receive().await?,
                Err(too_long) => return Err(too_long),
            }
        }
    }

    async fn receive(&mut self) -> Result<(), AgentError> {
        let mut chunk = vec![0; READ_CHUNK];
        match self.socket.read(&mut chunk).await {
            Ok(0) | Err(_) => Err(AgentError::Closed),
            Ok(n) => {
                self.inbox.push(&chunk[..n]);
                Ok(())
            }
        }
    }
}

/// The sentinel first: it makes the agent forget half a line that somebody else left.
fn sync_line(id: u64) -> Vec<u8> {
    let mut bytes = vec![SENTINEL];
    bytes.extend(line(SYNC, Some(id)));
    bytes
}

fn line(command: &str, id: Option<u64>) -> Vec<u8> {
    let message = match id {
        Some(id) => json!({"execute": command, "arguments": {"id": id}}),
        None => json!({"execute": command}),
    };
    format!("{message}\n").into_bytes()
}

/// A number that no other client has used, however short ago. JSON numbers are exact up to 53 bits.
fn random_id() -> u64 {
    RandomState::new().build_hasher().finish() >> 11
}

fn unreachable(address: &Address, e: Error) -> AgentError {
    match e {
        Error::MonitorTaken => AgentError::Taken,
        Error::Io(e) => AgentError::Io(e),
        other => AgentError::NobodyThere {
            address: address.to_string(),
            why: other.to_string(),
        },
    }
}
