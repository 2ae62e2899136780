//! The client of the guest agent against a server that plays lines: silence, late answers, garbage, the end.

use std::path::PathBuf;

use qmpbridge::{Address, AgentError, FreezeStatus, GuestAgent};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::common::*;

struct Server {
    _scratch: Scratch,
    path: PathBuf,
    listener: UnixListener,
}

/// The agent's end of one connection.
struct Agent(BufReader<UnixStream>);

impl Server {
    fn new() -> Self {
        let scratch = Scratch::new();
        let path = scratch.path("agent");
        Server {
            listener: UnixListener::bind(&path).unwrap(),
            path,
            _scratch: scratch,
        }
    }

    async fn accept(&self) -> Agent {
        within("a client", async {
            Agent(BufReader::new(self.listener.accept().await.unwrap().0))
        })
        .await
    }

    async fn connected(&self) -> (GuestAgent, Agent) {
        let address = Address::Unix(self.path.clone());
        let serve = async {
            let mut agent = self.accept().await;
            agent.get_in_step().await;
            agent
        };
        let (client, agent) = tokio::join!(GuestAgent::connect(&address), serve);
        (client.unwrap(), agent)
    }
}

impl Agent {
    /// The next line: its name, its id, and whether the sentinel was before it.
    async fn asked(&mut self) -> (String, Option<u64>, bool) {
        let mut line = Vec::new();
        within("a command", self.0.read_until(b'\n', &mut line))
            .await
            .unwrap();
        let sentinel = line.first() == Some(&0xff);
        let command: Value = serde_json::from_slice(&line[usize::from(sentinel)..]).unwrap();
        let name = command["execute"].as_str().unwrap().to_owned();
        (name, command["arguments"]["id"].as_u64(), sentinel)
    }

    async fn expect(&mut self, name: &str) {
        assert_eq!(self.asked().await, (name.to_owned(), None, false));
    }

    /// The id of the sync that comes next.
    async fn expect_sync(&mut self) -> u64 {
        let (name, id, sentinel) = self.asked().await;
        assert_eq!((name.as_str(), sentinel), ("guest-sync-delimited", true));
        id.expect("a sync has an id")
    }

    /// As the real one does: it complains of the sentinel first.
    async fn answer_sync(&mut self, id: u64) {
        self.say(
            r#"{"error": {"class": "GenericError", "desc": "JSON parse error, stray '\uFFFD'"}}"#,
        )
        .await;
        self.raw(b"\xff").await;
        self.say(&json!({"return": id}).to_string()).await;
    }

    async fn get_in_step(&mut self) {
        let id = self.expect_sync().await;
        self.answer_sync(id).await;
    }

    async fn answer(&mut self, name: &str, value: Value) {
        self.expect(name).await;
        self.say(&json!({ "return": value }).to_string()).await;
    }

    async fn say(&mut self, line: &str) {
        self.raw(format!("{line}\n").as_bytes()).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        // The other side may have hung up.
        let _ = self.0.write_all(bytes).await;
    }
}

#[tokio::test]
async fn a_freeze_and_its_end() {
    let server = Server::new();
    let (mut client, mut agent) = server.connected().await;
    let script = async {
        agent.answer("guest-fsfreeze-status", json!("thawed")).await;
        agent.answer("guest-fsfreeze-freeze", json!(3)).await;
        let id = agent.expect_sync().await;
        agent.expect("guest-fsfreeze-thaw").await;
        agent.answer_sync(id).await;
        agent.say(r#"{"return": 3}"#).await;
    };
    let ask = async {
        let status = client.freeze_status().await.unwrap();
        assert_eq!(status, FreezeStatus::Thawed);
        assert_eq!(client.freeze().await.unwrap(), 3);
        assert_eq!(client.thaw(PATIENCE).await.unwrap(), 3);
    };
    tokio::join!(script, ask);
}

#[tokio::test]
async fn what_another_client_left_is_skipped() {
    let server = Server::new();
    let address = Address::Unix(server.path.clone());
    let script = async {
        let mut agent = server.accept().await;
        let id = agent.expect_sync().await;
        agent
            .raw(b"ll half a line\n{\"return\": \"frozen\"}\n")
            .await;
        agent.raw(&vec![b'x'; 4 << 20]).await;
        agent.raw(b"\n\xff{\"return\": 1}\n\xff{\"retu").await;
        agent.answer_sync(id).await;
        agent.answer("guest-fsfreeze-status", json!("thawed")).await;
    };
    let ask = async {
        let mut client = GuestAgent::connect(&address).await.unwrap();
        let status = client.freeze_status().await.unwrap();
        assert_eq!(status, FreezeStatus::Thawed);
    };
    tokio::join!(script, ask);
}

#[tokio::test]
async fn an_agent_that_accepts_and_never_answers_times_out() {
    let server = Server::new();
    let address = Address::Unix(server.path.clone());
    let (client, _agent) = tokio::join!(GuestAgent::connect(&address), server.accept());
    let error = client.unwrap_err();
    assert!(
        matches!(error, AgentError::TimedOut { command } if command == "guest-sync-delimited"),
        "{error}"
    );
}

#[tokio::test]
async fn a_monitor_is_no_agent() {
    let server = Server::new();
    let address = Address::Unix(server.path.clone());
    let script = async {
        let mut monitor = server.accept().await;
        monitor
            .say(r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}"#)
            .await;
        monitor
    };
    let (client, _monitor) = tokio::join!(GuestAgent::connect(&address), script);
    let error = client.unwrap_err();
    assert!(
        matches!(&error, AgentError::Garbage { got, .. } if got.contains("QMP")),
        "{error}"
    );
}

#[tokio::test]
async fn a_late_answer_is_not_taken_for_the_next_one() {
    let server = Server::new();
    let (mut client, mut agent) = server.connected().await;
    assert!(matches!(
        client.freeze_status().await,
        Err(AgentError::TimedOut { .. })
    ));
    let script = async {
        agent.expect("guest-fsfreeze-status").await;
        let id = agent.expect_sync().await;
        agent.say(r#"{"return": "frozen"}"#).await;
        agent.answer_sync(id).await;
        agent.answer("guest-fsfreeze-status", json!("thawed")).await;
    };
    let (status, ()) = tokio::join!(client.freeze_status(), script);
    assert_eq!(status.unwrap(), FreezeStatus::Thawed);
}

#[tokio::test]
async fn a_freeze_is_not_sent_to_an_agent_that_does_not_answer() {
    let server = Server::new();
    let (mut client, mut agent) = server.connected().await;
    assert!(client.freeze_status().await.is_err());
    let error = client.freeze().await.unwrap_err();
    assert!(
        matches!(error, AgentError::TimedOut { command } if command == "guest-sync-delimited"),
        "{error}"
    );
    drop(client);
    agent.expect("guest-fsfreeze-status").await;
    agent.expect_sync().await;
    let mut rest = Vec::new();
    agent.0.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "{}", rest.escape_ascii());
}

#[tokio::test]
async fn a_thaw_stands_behind_a_freeze_that_was_given_up() {
    let server = Server::new();
    let (mut client, mut agent) = server.connected().await;
    let error = client.freeze().await.unwrap_err();
    assert!(matches!(error, AgentError::TimedOut { .. }), "{error}");
    let script = async {
        // the agent comes back to life and finds both
        agent.expect("guest-fsfreeze-freeze").await;
        let id = agent.expect_sync().await;
        agent.expect("guest-fsfreeze-thaw").await;
        agent.say(r#"{"return": 2}"#).await;
        agent.answer_sync(id).await;
        agent.say(r#"{"return": 5}"#).await;
    };
    let (thawed, ()) = tokio::join!(client.thaw(PATIENCE), script);
    assert_eq!(thawed.unwrap(), 5);
}

#[tokio::test]
async fn what_is_no_answer_is_told_and_the_next_one_is_right() {
    let endless = vec![b'x'; (1 << 20) + 1];
    for garbage in [
        &b"nonsense\n"[..],
        b"{}\n",
        b"[1]\n",
        b"{\"return\": \"melted\"}\n",
        b"{\"return\": -1}\n",
        b"\xff\xfe{\"return\": \"thawed\"}\n",
        &endless,
    ] {
        let server = Server::new();
        let (mut client, mut agent) = server.connected().await;
        let script = async {
            agent.expect("guest-fsfreeze-status").await;
            agent.raw(garbage).await;
            agent.get_in_step().await;
            agent.answer("guest-fsfreeze-status", json!("frozen")).await;
        };
        let ask = async {
            let error = client.freeze_status().await.unwrap_err();
            assert!(
                matches!(
                    error,
                    AgentError::Garbage { .. } | AgentError::TooLong { .. }
                ),
                "{error}"
            );
            client.freeze_status().await
        };
        let ((), status) = tokio::join!(script, ask);
        assert_eq!(status.unwrap(), FreezeStatus::Frozen);
    }
}

#[tokio::test]
async fn its_end_is_known_at_once() {
    for half in [&b""[..], b"{\"return\": \"tha"] {
        let server = Server::new();
        let (mut client, mut agent) = server.connected().await;
        let script = async {
            agent.expect("guest-fsfreeze-status").await;
            agent.raw(half).await;
            drop(agent);
        };
        let (status, ()) = tokio::join!(client.freeze_status(), script);
        assert!(matches!(status, Err(AgentError::Closed)), "{status:?}");
        assert!(matches!(
            client.thaw(PATIENCE).await,
            Err(AgentError::Closed)
        ));
    }
}

#[tokio::test]
async fn its_words_are_kept() {
    let server = Server::new();
    let (mut client, mut agent) = server.connected().await;
    let script = async {
        agent.expect("guest-fsfreeze-freeze").await;
        agent
            .say(r#"{"error": {"class": "GenericError", "desc": "failed to freeze /: Operation not supported"}}"#)
            .await;
        agent.answer("guest-fsfreeze-status", json!("thawed")).await;
    };
    let ask = async {
        let error = client.freeze().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the guest agent refuses guest-fsfreeze-freeze: failed to freeze /: Operation not supported"
        );
        client.freeze_status().await.unwrap();
    };
    tokio::join!(script, ask);
}

#[tokio::test]
async fn what_it_has_switched_off_is_known_before() {
    for (commands, missing) in [
        (
            json!([{"name": "guest-fsfreeze-freeze", "enabled": false}, {"name": "guest-fsfreeze-status", "enabled": true}, {"name": "guest-fsfreeze-thaw", "enabled": true}]),
            Some("guest-fsfreeze-freeze"),
        ),
        (json!([]), Some("guest-fsfreeze-status")),
        (
            json!([{"name": "guest-fsfreeze-freeze", "enabled": true}, {"name": "guest-fsfreeze-status", "enabled": true}, {"name": "guest-fsfreeze-thaw", "enabled": true}]),
            None,
        ),
    ] {
        let server = Server::new();
        let (mut client, mut agent) = server.connected().await;
        let info = json!({"version": "7.2.22", "supported_commands": commands});
        let (version, ()) = tokio::join!(client.version(), agent.answer("guest-info", info));
        match (version, missing) {
            (Ok(version), None) => assert_eq!(version, "7.2.22"),
            (Err(AgentError::SwitchedOff { command }), Some(missing)) => {
                assert_eq!(command, missing);
            }
            (version, missing) => panic!("{version:?}, {missing:?}"),
        }
    }
}

#[tokio::test]
async fn nobody_there() {
    let scratch = Scratch::new();
    let path = scratch.path("agent");
    let address = Address::Unix(path.clone());
    let absent = GuestAgent::connect(&address).await;
    assert!(
        matches!(absent, Err(AgentError::NobodyThere { .. })),
        "{absent:?}"
    );
    std::fs::write(&path, "").unwrap();
    let no_socket = GuestAgent::connect(&address).await;
    assert!(
        matches!(no_socket, Err(AgentError::NobodyThere { .. })),
        "{no_socket:?}"
    );
}
