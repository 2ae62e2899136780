//! Owns the socket: one task, for the life of the bridge, through every reconnect.
//!
//! Knows which command waits for which id, and whom to tell when the connection comes and goes.
//! Does not know what commands mean; of events it only marks those of jobs.
//! Invariants: a reply goes to the command it answers or nowhere; a lost connection fails all waiting commands at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::sleep;

use crate::address::Address;
use crate::connection::{self, Established, Link, Peer};
use crate::event::Event;
use crate::job::{JobTable, Undismissed};
use crate::wire::{self, Message};

/// The first wait before connecting again: a QEMU that restarts is back within tenths of a second.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest: what a person accepts to wait after starting a VM.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// QEMU answers in order, so more commands under way gain nothing; a QEMU that hangs must not fill our memory.
const MAX_IN_FLIGHT: usize = 64;
/// Events a receiver may be behind before it loses some. Graph changes come in bursts of dozens; one
/// read of the socket holds hundreds of a guest whose disk fails, and a busy machine makes that several.
pub(crate) const EVENTS_KEPT: usize = 4096;
const READ_CHUNK: usize = 64 << 10;

/// Whether QEMU can be talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Commands go through.
    Up {
        /// Counts the connections, from 1. When it grows, all that was known is stale.
        generation: u64,
    },
    /// Commands fail at once with [`crate::Error::Disconnected`]; reconnecting goes on.
    Down {
        /// When the connection was lost.
        since: Instant,
        /// Why it was lost, or why it cannot be made again.
        reason: String,
    },
}

/// What QEMU answered.
pub(crate) enum Answer {
    Return(Box<RawValue>),
    Error { class: String, desc: String },
}

/// A command on its way. When `reply` is dropped, the connection was lost.
pub(crate) struct Request {
    pub(crate) id: u64,
    /// The connection it was meant for; it is not sent on a later one.
    pub(crate) generation: u64,
    pub(crate) line: Vec<u8>,
    pub(crate) reply: oneshot::Sender<Answer>,
}

/// What the session tells its bridge.
pub(crate) struct Shared {
    pub(crate) connection: watch::Sender<Connection>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) jobs: JobTable,
    pub(crate) undismissed: Undismissed,
    peer: Mutex<Arc<Peer>>,
}

impl Shared {
    pub(crate) fn new(peer: Peer) -> Self {
        Shared {
            connection: watch::Sender::new(Connection::Up { generation: 1 }),
            events: broadcast::Sender::new(EVENTS_KEPT),
            jobs: JobTable::default(),
            undismissed: Undismissed::default(),
            peer: Mutex::new(Arc::new(peer)),
        }
    }

    pub(crate) fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.peer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_peer(&self, peer: Peer) {
        *self.peer.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(peer);
    }

    fn heard(&self, event: Event) {
        tracing::trace!(event = %event.name, data = %event.data, "event");
        self.jobs.heard(&event);
        // Fails when nobody listens, which is fine.
        let _ = self.events.send(event);
    }
}

pub(crate) type Requests = mpsc::Receiver<Request>;

/// The queue in front of the session.
pub(crate) fn queue() -> (mpsc::Sender<Request>, Requests) {
    mpsc::channel(MAX_IN_FLIGHT)
}

/// Serves `link`, then every connection after it, until the last bridge handle is gone.
pub(crate) async fn keep(
    address: Address,
    link: Link,
    mut requests: Requests,
    shared: Arc<Shared>,
) {
    let mut generation = 1;
    let mut link = link;
    loop {
        let mut waiting = HashMap::new();
        match serve(link, generation, &mut requests, &mut waiting, &shared).await {
            End::Unused => return,
            End::Lost(reason) => {
                // Whether that is trouble is known to whoever watches the connection.
                tracing::debug!(%address, %reason, "QMP connection lost");
                let down = Connection::Down {
                    since: Instant::now(),
                    reason,
                };
                shared.connection.send_replace(down);
            }
        }
        // Only now: whoever learns that its command failed can see that the connection is down.
        drop(waiting);
        let Some(Established { link: next, peer }) =
            reconnect(&address, &mut requests, &shared).await
        else {
            return;
        };
        link = next;
        generation += 1;
        shared.set_peer(peer);
        tracing::info!(%address, generation, "QMP connection is back");
        shared
            .connection
            .send_replace(Connection::Up { generation });
    }
}

enum End {
    Unused,
    Lost(String),
}

type Waiting = HashMap<u64, oneshot::Sender<Answer>>;

async fn serve(
    link: Link,
    generation: u64,
    requests: &mut Requests,
    waiting: &mut Waiting,
    shared: &Shared,
) -> End {
    let Link {
        socket,
        mut decoder,
    } = link;
    let (mut reader, mut writer) = tokio::io::split(socket);
    let mut chunk = vec![0; READ_CHUNK];
    let mut unsent: Vec<u8> = Vec::new();
    loop {
        // Before the first read: the handshake may have received more than its own lines.
        loop {
            match decoder.next_line() {
                Ok(None) => break,
                Ok(Some(line)) => match wire::parse(line) {
                    Ok(message) => {
                        if let Err(lost) = deliver(message, waiting, shared) {
                            return End::Lost(lost);
                        }
                    }
                    Err(e) => return End::Lost(e.to_string()),
                },
                Err(e) => return End::Lost(e.to_string()),
            }
        }
        tokio::select! {
            read = reader.read(&mut chunk) => match read {
                Ok(0) if decoder.rest().is_empty() => return End::Lost("QEMU closed the connection".into()),
                Ok(0) => return End::Lost("QEMU closed the connection in the middle of a line".into()),
                Ok(n) => decoder.push(&chunk[..n]),
                Err(e) => return End::Lost(e.to_string()),
            },
            written = writer.write(&unsent), if !unsent.is_empty() => match written {
                Ok(n) => drop(unsent.drain(..n)),
                // The reader sees the end too, after what QEMU still had to say.
                Err(e) => {
                    tracing::debug!(%e, "cannot write to the monitor");
                    unsent.clear();
                    if e.kind() != std::io::ErrorKind::BrokenPipe {
                        return End::Lost(e.to_string());
                    }
                }
            },
            request = requests.recv(), if waiting.len() < MAX_IN_FLIGHT => match request {
                None => return End::Unused,
                Some(request) if request.generation == generation => {
                    unsent.extend_from_slice(&request.line);
                    waiting.insert(request.id, request.reply);
                }
                Some(stale) => drop(stale),
            },
        }
    }
}

fn deliver(message: Message, waiting: &mut Waiting, shared: &Shared) -> Result<(), String> {
    let (id, answer) = match message {
        Message::Event(event) => {
            shared.heard(event);
            return Ok(());
        }
        Message::Greeting(_) => return Err("QEMU greeted twice".to_owned()),
        Message::Return { id, value } => (id, Answer::Return(value)),
        // QEMU could not read a line of ours: what it belonged to will never be answered.
        Message::Error { id: None, desc, .. } => return Err(desc),
        Message::Error { id, class, desc } => (id, Answer::Error { class, desc }),
    };
    match id.and_then(|id| waiting.remove(&id)) {
        // Nobody receives it any more when the command has timed out.
        Some(reply) => drop(reply.send(answer)),
        None => tracing::warn!(?id, "a reply to nothing we asked"),
    }
    Ok(())
}

/// Tries until it works. `None` when the last bridge handle is gone.
async fn reconnect(
    address: &Address,
    requests: &mut Requests,
    shared: &Shared,
) -> Option<Established> {
    let mut backoff = BACKOFF_MIN;
    loop {
        let wait = sleep(backoff);
        let attempt = async {
            wait.await;
            connection::establish(address).await
        };
        tokio::pin!(attempt);
        let outcome = loop {
            tokio::select! {
                outcome = &mut attempt => break outcome,
                request = requests.recv() => drop(request?),
            }
        };
        match outcome {
            Ok(established) => return Some(established),
            Err(e) => {
                tracing::debug!(%address, %e, "cannot reconnect yet");
                shared
                    .connection
                    .send_if_modified(|connection| match connection {
                        Connection::Down { reason, .. } if *reason != e.to_string() => {
                            *reason = e.to_string();
                            true
                        }
                        _ => false,
                    });
            }
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}
