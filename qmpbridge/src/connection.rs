//! One connection to a monitor, from the socket to the end of the handshake.
//!
//! Knows the transports, the greeting, and how to tell a monitor that is taken from something that is no monitor.
//! Does not know commands beyond the two of the handshake, nor what happens after it.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::address::Address;
use crate::error::Error;
use crate::wire::{self, Decoder, MAX_LINE, Message};

/// A local connect is immediate; over TCP, a host that does not answer in this time is not usable either.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// QEMU greets at once, unless it serves somebody else: then it never does.
const GREETING_DEADLINE: Duration = Duration::from_secs(3);
/// What never greets may be a server that waits for us to speak; those answer garbage at once.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// A greeting stands right behind what was left for another client. Far less than the others: it is
/// waited for within them.
const LEFTOVER_DEADLINE: Duration = Duration::from_millis(500);
/// A QEMU that is busy (a snapshot with VM state) answers late, and then all at once.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A greeting is below 300 bytes.
const MAX_GREETING: usize = 64 << 10;
const READ_CHUNK: usize = 64 << 10;

/// The version QEMU greets with. Decide by [`crate::Bridge::supports`], never by this.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QemuVersion {
    /// 10 of 10.0.2
    pub major: u32,
    /// 0 of 10.0.2
    pub minor: u32,
    /// 2 of 10.0.2
    pub micro: u32,
    /// The distribution's name for it.
    pub package: String,
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Who is at the other end.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    pub(crate) version: QemuVersion,
    pub(crate) commands: HashSet<String>,
    pub(crate) place: Place,
}

/// Where the other end is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// The process that listens on a unix socket.
    pub(crate) pid: Option<i32>,
    /// On another machine, as far as that can be seen.
    pub(crate) elsewhere: bool,
}

impl Place {
    fn of_unix(stream: &UnixStream) -> Self {
        let pid = stream.peer_cred().ok().and_then(|cred| cred.pid());
        let program = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        Place {
            pid,
            elsewhere: program.is_some_and(|name| forwards(name.trim())),
        }
    }

    fn of_tcp(stream: &TcpStream) -> Self {
        let elsewhere = match (stream.peer_addr(), stream.local_addr()) {
            (Ok(peer), Ok(local)) => !is_here(peer.ip(), local.ip()),
            (Err(_), _) | (_, Err(_)) => true,
        };
        Place {
            pid: None,
            elsewhere,
        }
    }
}

/// Programs that bring a socket of another machine here.
fn forwards(program: &str) -> bool {
    ["ssh", "sshd", "sshd-session"].contains(&program)
}

/// Whether an address is one of this machine's: who talks to himself has one address on both ends.
fn is_here(peer: IpAddr, local: IpAddr) -> bool {
    peer.to_canonical().is_loopback() || peer == local
}

/// Commands without which nothing here works, the newest of them from QEMU 4.0.
const NEEDED: [&str; 3] = [
    "query-named-block-nodes",
    "x-debug-query-block-graph",
    "query-jobs",
];

pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// A connection past its handshake.
pub(crate) struct Established {
    pub(crate) link: Link,
    pub(crate) peer: Peer,
}

/// The socket and what was received but not yet read as a line.
pub(crate) struct Link {
    pub(crate) socket: Box<dyn Socket>,
    pub(crate) decoder: Decoder,
}

impl Link {
    /// The next message. `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<Message>, Error> {
        let mut chunk = vec![0; READ_CHUNK];
        loop {
            if let Some(line) = self.decoder.next_line().map_err(protocol)? {
                return wire::parse(line).map(Some).map_err(protocol);
            }
            match self.socket.read(&mut chunk).await {
                Ok(0) => return Ok(None),
                Ok(n) => self.decoder.push(&chunk[..n]),
                Err(_) => return Ok(None),
            }
        }
    }

    async fn call(
        &mut self,
        id: u64,
        name: &'static str,
    ) -> Result<Box<serde_json::value::RawValue>, Error> {
        let line = wire::encode(id, name, &()).map_err(|e| Error::Protocol(e.to_string()))?;
        let answer = async {
            self.socket
                .write_all(&line)
                .await
                .map_err(|_| Error::Disconnected)?;
            loop {
                match self.next().await? {
                    None => return Err(Error::Disconnected),
                    Some(Message::Return {
                        id: Some(got),
                        value,
                    }) if got == id => return Ok(value),
                    Some(Message::Error { class, desc, .. }) => {
                        return Err(Error::Refused {
                            command: name,
                            class,
                            desc,
                        });
                    }
                    // Events need no subscription and may come before the first reply.
                    Some(_) => {}
                }
            }
        };
        timeout(HANDSHAKE_DEADLINE, answer)
            .await
            .unwrap_or(Err(Error::TimedOut { command: name }))
    }
}

fn protocol(e: wire::WireError) -> Error {
    Error::Protocol(e.to_string())
}

/// Connects and shakes hands.
pub(crate) async fn establish(address: &Address) -> Result<Established, Error> {
    let (socket, place) = open(address).await?;
    let mut link = Link {
        socket,
        decoder: Decoder::new(MAX_GREETING),
    };
    let version = greeting(&mut link).await?;
    link.decoder.set_limit(MAX_LINE);
    link.call(0, "qmp_capabilities").await?;
    let commands = link.call(1, "query-commands").await?;
    let commands = command_names(commands.get())?;
    if let Some(needs) = NEEDED.iter().find(|name| !commands.contains(**name)) {
        return Err(Error::TooOld { needs });
    }
    Ok(Established {
        link,
        peer: Peer {
            version,
            commands,
            place,
        },
    })
}

fn command_names(json: &str) -> Result<HashSet<String>, Error> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let names: Vec<Named> =
        serde_json::from_str(json).map_err(|e| Error::Protocol(format!("query-commands: {e}")))?;
    Ok(names.into_iter().map(|n| n.name).collect())
}

/// The transport alone: the guest agent's socket is reached the same way.
pub(crate) async fn open(address: &Address) -> Result<(Box<dyn Socket>, Place), Error> {
    let connected = match address {
        Address::Unix(path) => timeout(CONNECT_DEADLINE, UnixStream::connect(path))
            .await
            .map(|r| {
                r.map(|stream| {
                    let place = Place::of_unix(&stream);
                    (Box::new(stream) as Box<dyn Socket>, place)
                })
                .map_err(|e| unix_error(path, address, e))
            }),
        Address::Tcp(endpoint) => timeout(CONNECT_DEADLINE, TcpStream::connect(endpoint))
            .await
            .map(|r| {
                r.map(|stream| {
                    // A command is one small write whose answer is waited for.
                    let _ = stream.set_nodelay(true);
                    let place = Place::of_tcp(&stream);
                    (Box::new(stream) as Box<dyn Socket>, place)
                })
                .map_err(|e| other_error(address, e))
            }),
    };
    connected.unwrap_or_else(|_| Err(Error::Io(ErrorKind::TimedOut.into())))
}

fn unix_error(path: &Path, address: &Address, e: std::io::Error) -> Error {
    match e.kind() {
        ErrorKind::NotFound => Error::NoSocket {
            path: path.to_owned(),
        },
        // Linux says ECONNREFUSED for a plain file as well as for a socket nobody listens on.
        ErrorKind::ConnectionRefused if !is_socket(path) => Error::NotASocket {
            path: path.to_owned(),
        },
        // The listen queue is full: QEMU serves one client and others wait before us.
        ErrorKind::WouldBlock => Error::MonitorTaken,
        _ => other_error(address, e),
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

fn other_error(address: &Address, e: std::io::Error) -> Error {
    match e.kind() {
        ErrorKind::ConnectionRefused => Error::NobodyListens {
            address: address.to_string(),
        },
        _ => Error::Io(e),
    }
}

async fn greeting(link: &mut Link) -> Result<QemuVersion, Error> {
    match timeout(GREETING_DEADLINE, first_line(link)).await {
        Ok(greeted) => greeted,
        Err(_) if !link.decoder.rest().is_empty() => Err(not_qmp(link.decoder.rest())),
        Err(_) => {
            // Harmless to a monitor that serves somebody else: it is hung up on before it reads this.
            let _ = link
                .socket
                .write_all(b"{\"execute\":\"qmp_capabilities\"}\r\n\r\n")
                .await;
            match timeout(PROBE_DEADLINE, first_line(link)).await {
                Ok(Err(garbage @ Error::NotQmp { .. })) => Err(garbage),
                _ => Err(Error::MonitorTaken),
            }
        }
    }
}

/// The greeting. What QEMU had not yet sent to a client that is gone it sends to the next one, before the greeting:
/// events, replies, and the rest of a line that was cut.
async fn first_line(link: &mut Link) -> Result<QemuVersion, Error> {
    let mut chunk = [0; 4096];
    let mut garbage: Option<Error> = None;
    loop {
        let read = link.socket.read(&mut chunk);
        let read = match garbage.take() {
            None => read.await,
            Some(said) => match timeout(LEFTOVER_DEADLINE, read).await {
                Ok(read) => {
                    garbage = Some(said);
                    read
                }
                Err(_) => return Err(said),
            },
        };
        match read {
            Ok(n) if n > 0 => link.decoder.push(&chunk[..n]),
            Ok(_) | Err(_) if garbage.is_none() && link.decoder.rest().is_empty() => {
                return Err(Error::Disconnected);
            }
            Ok(_) | Err(_) => {
                return Err(garbage.unwrap_or_else(|| not_qmp(link.decoder.rest())));
            }
        }
        loop {
            match link.decoder.next_line() {
                Ok(Some(line)) => match wire::parse(line) {
                    Ok(Message::Greeting(version)) => return Ok(version),
                    // Without a greeting right behind it, it was no leftover.
                    Ok(_) | Err(_) => {
                        garbage.get_or_insert_with(|| not_qmp(line));
                    }
                },
                Ok(None) => break,
                Err(_) => return Err(not_qmp(link.decoder.rest())),
            }
        }
        let start = link.decoder.rest().trim_ascii_start();
        if start.first().is_some_and(|&b| b != b'{') {
            garbage.get_or_insert_with(|| not_qmp(start));
        }
    }
}

fn not_qmp(got: &[u8]) -> Error {
    Error::NotQmp {
        got: wire::excerpt(got),
    }
}

#[cfg(test)]
mod tests {
    use super::{command_names, forwards, is_here};

    #[test]
    fn commands_by_name() {
        let names = command_names(r#"[{"name":"quit"},{"name":"query-jobs"}]"#).unwrap();
        assert!(names.contains("quit") && names.len() == 2);
        assert!(command_names("{}").is_err());
    }

    #[test]
    fn another_machine_is_told_by_its_address_and_by_who_forwards_its_socket() {
        let here = |peer: &str, local: &str| is_here(peer.parse().unwrap(), local.parse().unwrap());
        assert!(here("127.0.0.1", "127.0.0.1") && here("::1", "::1"));
        assert!(here("::ffff:127.0.0.2", "::ffff:127.0.0.1"));
        assert!(here("192.0.2.1", "192.0.2.1"));
        assert!(!here("192.0.2.2", "192.0.2.1") && !here("2001:db8::1", "2001:db8::2"));
        assert!(forwards("ssh") && forwards("sshd-session") && !forwards("qemu-system-x86"));
    }
}
