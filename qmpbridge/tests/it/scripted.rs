//! The bridge against a server that plays lines: what QEMU does rarely, or must not do.

use std::path::PathBuf;
use std::time::Duration;

use qmpbridge::command::{
    BlockCommit, DebugGraph, Empty, QueryBlock, QueryJobs, QueryStatus, XDebugQueryBlockGraph,
};
use qmpbridge::{Address, Bridge, Command, Error, JobId, JobStage};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::common::*;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}"#;
const COMMANDS: [&str; 7] = [
    "query-named-block-nodes",
    "x-debug-query-block-graph",
    "query-jobs",
    "query-block-jobs",
    "query-status",
    "query-block",
    "block-commit",
];

struct Server {
    _scratch: Scratch,
    path: PathBuf,
    listener: UnixListener,
}

/// The server's end of one connection.
struct Peer(BufReader<UnixStream>);

impl Server {
    fn new() -> Self {
        let scratch = Scratch::new();
        let path = scratch.path("qmp");
        Server {
            listener: UnixListener::bind(&path).unwrap(),
            path,
            _scratch: scratch,
        }
    }

    async fn accept(&self) -> Peer {
        within("a client", async {
            Peer(BufReader::new(self.listener.accept().await.unwrap().0))
        })
        .await
    }

    /// Greets and answers the two commands of the handshake.
    async fn shake_hands(&self, commands: &[&str]) -> Peer {
        let mut peer = self.accept().await;
        peer.say(GREETING).await;
        peer.answer("qmp_capabilities", json!({})).await;
        let names: Vec<Value> = commands.iter().map(|name| json!({"name": name})).collect();
        peer.answer("query-commands", names.into()).await;
        peer
    }

    async fn connected(&self) -> (Bridge, Peer) {
        let (bridge, peer) = tokio::join!(
            Bridge::connect(Address::Unix(self.path.clone())),
            self.shake_hands(&COMMANDS)
        );
        (bridge.unwrap(), peer)
    }
}

impl Peer {
    async fn say(&mut self, line: &str) {
        self.0
            .write_all(format!("{line}\r\n").as_bytes())
            .await
            .unwrap();
    }

    async fn raw(&mut self, bytes: &[u8]) {
        // The other side may have hung up on what it was sent before.
        let _ = self.0.write_all(bytes).await;
    }

    /// The next command: its name and id.
    async fn asked(&mut self) -> (String, u64) {
        let mut line = String::new();
        within("a command", self.0.read_line(&mut line))
            .await
            .unwrap();
        let command: Value = serde_json::from_str(&line).unwrap();
        (
            command["execute"].as_str().unwrap().to_owned(),
            command["id"].as_u64().unwrap(),
        )
    }

    async fn expect(&mut self, name: &str) -> u64 {
        let (asked, id) = self.asked().await;
        assert_eq!(asked, name);
        id
    }

    async fn reply(&mut self, id: u64, value: Value) {
        self.say(&json!({"return": value, "id": id}).to_string())
            .await;
    }

    async fn answer(&mut self, name: &str, value: Value) {
        let id = self.expect(name).await;
        self.reply(id, value).await;
    }

    async fn status_changed(&mut self, job: &JobId, status: &str) {
        let data = json!({"id": job, "status": status});
        let event = json!({"event": "JOB_STATUS_CHANGE", "data": data, "timestamp": {"seconds": 1, "microseconds": 2}});
        self.say(&event.to_string()).await;
    }
}

fn running() -> Value {
    json!({"running": true, "status": "running"})
}

fn one_job(id: &JobId, status: &str) -> Value {
    json!([{"id": id, "type": "commit", "status": status, "current-progress": 1, "total-progress": 2}])
}

fn spawn<C: Command + 'static>(
    bridge: &Bridge,
    command: C,
) -> tokio::task::JoinHandle<Result<C::Reply, Error>>
where
    C::Reply: 'static,
{
    let bridge = bridge.clone();
    tokio::spawn(async move { bridge.run(command).await })
}

#[tokio::test]
async fn a_reply_cut_into_bytes() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let asks = spawn(&bridge, QueryStatus);
    let id = peer.expect("query-status").await;
    for byte in format!("{}\r\n", json!({"return": running(), "id": id})).bytes() {
        peer.raw(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert!(asks.await.unwrap().unwrap().running);
}

#[tokio::test]
async fn replies_out_of_order_and_to_nothing() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let first = spawn(&bridge, QueryStatus);
    let first_id = peer.expect("query-status").await;
    let second = spawn(&bridge, QueryJobs);
    let second_id = peer.expect("query-jobs").await;
    peer.reply(999_999, json!({})).await;
    peer.say(r#"{"return": {}, "id": "somebody else's"}"#).await;
    peer.reply(second_id, json!([])).await;
    peer.reply(first_id, running()).await;
    peer.reply(first_id, json!("twice")).await;
    assert!(second.await.unwrap().unwrap().is_empty());
    assert!(first.await.unwrap().unwrap().running);
}

#[tokio::test]
async fn an_error_is_told_in_the_words_of_qemu() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let asks = spawn(&bridge, QueryStatus);
    let id = peer.expect("query-status").await;
    let error = json!({"class": "GenericError", "desc": "Failed to get \"write\" lock"});
    peer.say(&json!({"error": error, "id": id}).to_string())
        .await;
    let refused = asks.await.unwrap().unwrap_err();
    assert_eq!(
        refused.to_string(),
        "query-status: Failed to get \"write\" lock"
    );
    let asks = spawn(&bridge, QueryStatus);
    let id = peer.expect("query-status").await;
    peer.reply(id, json!({"running": "maybe"})).await;
    assert!(matches!(asks.await.unwrap(), Err(Error::Protocol(_))));
}

/// What breaks a connection: the waiting command fails at once, and the bridge comes back.
async fn breaks(what: &[u8], reason: &str) {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let asks = spawn(&bridge, QueryStatus);
    peer.expect("query-status").await;
    peer.raw(what).await;
    let outcome = within("the command fails", asks).await.unwrap();
    assert!(matches!(outcome, Err(Error::Disconnected)), "{outcome:?}");
    let told = until_down(&bridge).await;
    assert!(told.contains(reason), "{told:?}");
    drop(peer);
    let mut peer = server.shake_hands(&COMMANDS).await;
    until_generation(&bridge, 2).await;
    let asks = spawn(&bridge, QueryStatus);
    peer.answer("query-status", running()).await;
    asks.await.unwrap().unwrap();
}

#[tokio::test]
async fn garbage() {
    breaks(b"\x00\xff garbage\n", "malformed").await;
}

#[tokio::test]
async fn an_object_that_is_no_message() {
    breaks(b"{\"hello\": 1}\n", "neither").await;
}

/// QEMU sends to the next client what it had not yet sent to one that was killed.
#[tokio::test]
async fn what_was_meant_for_the_client_before_us() {
    let server = Server::new();
    let shake = async {
        let mut peer = server.accept().await;
        peer.raw(b"US_CHANGE\", \"data\": {\"status\": \"null\", \"id\": \"j\"}}\r\n")
            .await;
        peer.say(r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}"#)
            .await;
        peer.say(r#"{"return": {}, "id": 1}"#).await;
        peer.say(GREETING).await;
        peer.answer("qmp_capabilities", json!({})).await;
        let names: Vec<Value> = COMMANDS.iter().map(|name| json!({"name": name})).collect();
        peer.answer("query-commands", names.into()).await;
        peer
    };
    let (bridge, _peer) = tokio::join!(Bridge::connect(Address::Unix(server.path.clone())), shake);
    assert!(bridge.unwrap().supports("query-jobs"));
}

#[tokio::test]
async fn a_second_greeting() {
    breaks(format!("{GREETING}\n").as_bytes(), "greeted twice").await;
}

#[tokio::test]
async fn an_error_without_an_id() {
    let line = br#"{"error": {"class": "GenericError", "desc": "JSON parse error, invalid keyword 'bad'"}}"#;
    breaks(
        &[line, &b"\n"[..]].concat(),
        "JSON parse error, invalid keyword 'bad'",
    )
    .await;
}

#[tokio::test]
async fn a_line_without_end() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let floods = tokio::spawn(async move {
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..=(qmpbridge::wire::MAX_LINE >> 20) {
            peer.raw(&chunk).await;
        }
        peer
    });
    assert!(until_down(&bridge).await.contains("longer than"));
    drop(floods.await.unwrap());
}

#[tokio::test]
async fn a_long_reply_is_fine() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let asks = spawn(&bridge, XDebugQueryBlockGraph);
    let id = peer.expect("x-debug-query-block-graph").await;
    let padding = "x".repeat(8 << 20);
    peer.reply(id, json!({"nodes": [], "edges": [], "padding": padding}))
        .await;
    assert_eq!(
        asks.await.unwrap().unwrap(),
        DebugGraph {
            nodes: vec![],
            edges: vec![]
        }
    );
}

#[tokio::test]
async fn a_disconnect_in_the_middle_of_a_reply() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let asks = spawn(&bridge, QueryStatus);
    peer.expect("query-status").await;
    peer.raw(b"{\"return\": {\"runn").await;
    drop(peer);
    assert!(matches!(asks.await.unwrap(), Err(Error::Disconnected)));
    assert!(until_down(&bridge).await.contains("middle of a line"));
}

#[derive(serde::Serialize)]
struct Impatient;
impl Command for Impatient {
    const NAME: &str = "impatient";
    const DEADLINE: Duration = Duration::from_millis(30);
    type Reply = Empty;
}

#[tokio::test]
async fn a_late_reply_is_dropped_and_the_connection_goes_on() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let asks = spawn(&bridge, Impatient);
    let late = peer.expect("impatient").await;
    let outcome = asks.await.unwrap();
    assert!(
        matches!(
            outcome,
            Err(Error::TimedOut {
                command: "impatient"
            })
        ),
        "{outcome:?}"
    );
    let asks = spawn(&bridge, QueryStatus);
    let id = peer.expect("query-status").await;
    peer.reply(late, json!({})).await;
    peer.reply(id, running()).await;
    asks.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_hangs_takes_no_more_than_it_may() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let asks: Vec<_> = (0..500).map(|_| spawn(&bridge, Impatient)).collect();
    for ask in asks {
        assert!(matches!(ask.await.unwrap(), Err(Error::TimedOut { .. })));
    }
    // It wakes up: what was sent is answered, and the rest goes through.
    let serves = tokio::spawn(async move {
        loop {
            match peer.asked().await {
                (name, id) if name == "query-status" => return peer.reply(id, running()).await,
                (_, id) => peer.reply(id, json!({})).await,
            }
        }
    });
    bridge.run(QueryStatus).await.unwrap();
    serves.await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_job_is_told_before_the_reply_that_starts_it() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let id = job("commit");
    let (starting, command) = (bridge.clone(), BlockCommit::new(id.clone(), name("d")));
    let starts = tokio::spawn({
        let id = id.clone();
        async move { starting.start_job(id, command).await }
    });
    let start = peer.expect("block-commit").await;
    for status in ["created", "running", "waiting", "pending", "concluded"] {
        peer.status_changed(&id, status).await;
    }
    peer.reply(start, json!({})).await;
    let mut job = starts.await.unwrap().unwrap();
    let waits = tokio::spawn(async move { job.wait_ready_or_concluded().await });
    peer.answer("query-jobs", one_job(&id, "concluded")).await;
    assert_eq!(waits.await.unwrap().unwrap(), JobStage::Concluded);
}

#[tokio::test]
async fn an_event_wakes_and_flapping_does_not() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let id = job("commit");
    let mut handle = bridge.expect_job(id.clone());
    let waits = tokio::spawn(async move { handle.wait_ready_or_concluded().await });
    peer.answer("query-jobs", one_job(&id, "running")).await;
    let start = std::time::Instant::now();
    for _ in 0..20 {
        peer.status_changed(&id, "paused").await;
        peer.status_changed(&id, "running").await;
    }
    peer.status_changed(&id, "ready").await;
    peer.answer("query-jobs", one_job(&id, "ready")).await;
    assert_eq!(waits.await.unwrap().unwrap(), JobStage::Ready);
    assert!(
        start.elapsed() < Duration::from_millis(900),
        "woken by the event, not by the clock"
    );
}

#[tokio::test]
async fn every_event_is_lost() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let id = job("commit");
    let mut handle = bridge.expect_job(id.clone());
    let waits = tokio::spawn(async move { handle.wait_concluded().await });
    for status in ["running", "waiting", "concluded"] {
        peer.answer("query-jobs", one_job(&id, status)).await;
    }
    waits.await.unwrap().unwrap();
    let mut handle = bridge.expect_job(id.clone());
    let waits = tokio::spawn(async move { handle.wait_concluded().await });
    peer.answer("query-jobs", json!([])).await;
    assert!(matches!(
        waits.await.unwrap(),
        Err(Error::JobVanished { .. })
    ));
}

#[tokio::test]
async fn a_job_that_dismissed_itself_is_known_by_its_event() {
    for (event, error) in [
        (
            json!({"event": "BLOCK_JOB_COMPLETED", "data": {"error": "No space left on device"}}),
            Some("No space left on device"),
        ),
        (
            json!({"event": "BLOCK_JOB_CANCELLED", "data": {}}),
            Some("Operation canceled"),
        ),
        (json!({"event": "BLOCK_JOB_COMPLETED", "data": {}}), None),
    ] {
        let server = Server::new();
        let (bridge, mut peer) = server.connected().await;
        let id = job("stream");
        let mut handle = bridge.expect_job(id.clone());
        let waits = tokio::spawn(async move { handle.wait_concluded().await });
        peer.answer("query-jobs", one_job(&id, "running")).await;
        let mut event = event;
        event["data"]["device"] = json!(id);
        peer.say(&event.to_string()).await;
        peer.answer("query-jobs", json!([])).await;
        match (waits.await.unwrap(), error) {
            (Ok(()), None) => {}
            (Err(Error::JobFailed { error, .. }), Some(expected)) => assert_eq!(error, expected),
            (outcome, expected) => panic!("{outcome:?}, expected {expected:?}"),
        }
    }
}

#[tokio::test]
async fn a_qemu_too_old() {
    let server = Server::new();
    let (bridge, _peer) = tokio::join!(
        Bridge::connect(Address::Unix(server.path.clone())),
        server.shake_hands(&["query-jobs"])
    );
    assert!(
        matches!(
            bridge,
            Err(Error::TooOld {
                needs: "query-named-block-nodes"
            })
        ),
        "{bridge:?}"
    );
}

#[tokio::test]
async fn a_graph_that_changes_while_it_is_read() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let serves = tokio::spawn(async move {
        let drawn = |name: &str| json!({"nodes": [{"id": 1, "type": "block-driver", "name": name}], "edges": []});
        let cache = json!({"writeback": true, "direct": false, "no-flush": false});
        let image = json!({"format": "file", "virtual-size": 1, "filename": "/x"});
        let listed = json!([{"node-name": "new", "drv": "file", "ro": false, "file": "/x", "cache": cache, "image": image}]);
        for seen in ["old", "new"] {
            peer.answer("query-jobs", json!([])).await;
            for _ in 0..3 {
                let (name, id) = peer.asked().await;
                let answer = match name.as_str() {
                    "x-debug-query-block-graph" => drawn(seen),
                    "query-named-block-nodes" => listed.clone(),
                    _ => json!([]),
                };
                peer.reply(id, answer).await;
            }
        }
        peer
    });
    let graph = bridge.graph().await.unwrap();
    assert_eq!(graph.roots()[0].node, name("new"));
    serves.await.unwrap();
}

#[tokio::test]
async fn a_device_on_more_layers_than_parsers_recurse() {
    let server = Server::new();
    let (bridge, mut peer) = server.connected().await;
    let asks = spawn(&bridge, QueryBlock);
    let id = peer.expect("query-block").await;
    let image = format!(
        "{}{{}}{}",
        "{\"backing-image\": ".repeat(400),
        "}".repeat(400)
    );
    let device = format!(
        r#"{{"device": "d", "removable": false, "inserted": {{"node-name": "n", "image": {image}}}}}"#
    );
    peer.say(&format!(r#"{{"return": [{device}], "id": {id}}}"#))
        .await;
    let devices = asks.await.unwrap().unwrap();
    assert_eq!(
        devices[0].inserted.as_ref().unwrap().node_name,
        Some(name("n"))
    );
}
