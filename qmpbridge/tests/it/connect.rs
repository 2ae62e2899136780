//! Reaching a monitor, and what is no monitor.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::common::*;
use qmpbridge::command::{QueryName, Quit};
use qmpbridge::{Address, Bridge, Connection, Error};

fn unix(path: &Path) -> Address {
    Address::Unix(path.to_owned())
}

#[tokio::test]
async fn a_machine_and_a_storage_daemon_are_known_by_what_they_can() {
    let scratch = Scratch::new();
    let mut machine = Qemu::machine(&scratch, &["-name", "somebody"]);
    let bridge = machine.bridge().await;
    assert_eq!(
        *bridge.connection().borrow(),
        Connection::Up { generation: 1 }
    );
    assert!(bridge.version().major >= 6, "{}", bridge.version());
    assert_eq!(bridge.peer_pid(), Some(machine.pid()));
    assert!(
        bridge.supports("stop") && bridge.supports("block-stream") && !bridge.supports("no-such")
    );
    assert_eq!(
        bridge.run(QueryName).await.unwrap().name.as_deref(),
        Some("somebody")
    );

    let scratch = Scratch::new();
    let mut daemon = Qemu::storage_daemon(&scratch, &[]);
    let bridge = daemon.bridge().await;
    assert!(!bridge.supports("stop") && bridge.supports("block-stream"));
    let refused = bridge.run(QueryName).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Refused { class, .. } if class == "CommandNotFound"),
        "{refused}"
    );
}

#[tokio::test]
async fn over_tcp() {
    let scratch = Scratch::new();
    // The kernel gives a free port; it is free again once the listener is gone.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let chardev = format!("socket,id=m1,host=127.0.0.1,port={port},server=on,wait=off");
    let mut daemon = Qemu::storage_daemon(
        &scratch,
        &["--chardev", &chardev, "--monitor", "chardev=m1"],
    );
    let _listening = daemon.bridge().await;
    let bridge = Bridge::connect(format!("tcp:127.0.0.1:{port}").parse().unwrap())
        .await
        .unwrap();
    assert_eq!(bridge.peer_pid(), None);
    assert!(bridge.graph().await.unwrap().roots().is_empty());
}

#[tokio::test]
async fn a_taken_monitor_is_told_and_left_unharmed() {
    let scratch = Scratch::new();
    let mut daemon = Qemu::storage_daemon(&scratch, &[]);
    let first = daemon.bridge().await;
    let second = Bridge::connect(daemon.address()).await;
    assert!(matches!(second, Err(Error::MonitorTaken)), "{second:?}");
    first.jobs().await.unwrap();
    drop(first);
    let third = within(
        "the monitor is free again",
        Bridge::connect(daemon.address()),
    )
    .await
    .unwrap();
    third.jobs().await.unwrap();
}

#[tokio::test]
async fn no_socket_no_listener_and_a_plain_file() {
    let scratch = Scratch::new();
    let path = scratch.path("qmp");
    let nothing = Bridge::connect(unix(&path)).await.unwrap_err();
    assert!(matches!(nothing, Error::NoSocket { .. }), "{nothing:?}");
    std::fs::write(&path, "x").unwrap();
    let file = Bridge::connect(unix(&path)).await.unwrap_err();
    assert!(matches!(file, Error::NotASocket { .. }), "{file:?}");
    std::fs::remove_file(&path).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    let stale = Bridge::connect(unix(&path)).await.unwrap_err();
    assert!(matches!(stale, Error::NobodyListens { .. }), "{stale:?}");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let closed = Bridge::connect(Address::Tcp(format!("127.0.0.1:{port}")))
        .await
        .unwrap_err();
    assert!(matches!(closed, Error::NobodyListens { .. }), "{closed:?}");
    let texts = [nothing, file, stale].map(|e| e.to_string());
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2]);
}

/// Answers one connection with `talk`.
fn impostor(path: &Path, talk: impl FnOnce(&mut std::os::unix::net::UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || talk(&mut listener.accept().unwrap().0));
}

#[tokio::test]
async fn somebody_who_is_no_monitor() {
    let scratch = Scratch::new();
    type Talk = Box<dyn FnOnce(&mut std::os::unix::net::UnixStream) + Send>;
    let hold = |s: &mut std::os::unix::net::UnixStream| drop(s.read_to_end(&mut Vec::new()));
    let cases: Vec<(&str, Talk)> = vec![
        (
            "ssh",
            Box::new(move |s| {
                s.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
                hold(s);
            }),
        ),
        (
            "binary",
            Box::new(move |s| {
                s.write_all(&[0, 1, 2, 255]).unwrap();
                hold(s);
            }),
        ),
        (
            "agent",
            Box::new(move |s| {
                s.write_all(b"{\"return\": {}}\n").unwrap();
                hold(s);
            }),
        ),
        (
            "http",
            Box::new(move |s| {
                let mut asked = [0; 10];
                s.read_exact(&mut asked).unwrap();
                s.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
                hold(s);
            }),
        ),
        (
            "half",
            Box::new(move |s| {
                s.write_all(b"{\"QMP\": ").unwrap();
                hold(s);
            }),
        ),
    ];
    let mut attempts = tokio::task::JoinSet::new();
    for (who, talk) in cases {
        let path = scratch.path(who);
        impostor(&path, talk);
        attempts.spawn(async move { (who, Bridge::connect(unix(&path)).await) });
    }
    while let Some(attempt) = attempts.join_next().await {
        let (who, outcome) = attempt.unwrap();
        assert!(
            matches!(outcome, Err(Error::NotQmp { .. })),
            "{who}: {outcome:?}"
        );
    }
    let path = scratch.path("mute");
    impostor(&path, |_| {});
    let mute = Bridge::connect(unix(&path)).await.unwrap_err();
    assert!(matches!(mute, Error::Disconnected), "{mute:?}");
}

#[tokio::test]
async fn killed_while_a_command_and_a_job_wait() {
    let scratch = Scratch::new();
    let top = scratch.chain("d", 2);
    let mut daemon = exporting(&scratch, &top);
    let bridge = daemon.bridge().await;
    let id = job("stream");
    let mut stream = bridge
        .start_job(id.clone(), slow_stream(&id, "d"))
        .await
        .unwrap();
    let waits = tokio::spawn(async move { stream.wait_concluded().await });
    daemon.freeze();
    let asking = bridge.clone();
    let asks = tokio::spawn(async move { asking.jobs().await.map(drop) });
    tokio::task::yield_now().await;
    let start = std::time::Instant::now();
    daemon.kill();
    for (who, outcome) in [
        ("command", asks.await.unwrap()),
        ("job", waits.await.unwrap()),
    ] {
        assert!(
            matches!(outcome, Err(Error::Disconnected)),
            "{who}: {outcome:?}"
        );
    }
    assert!(
        start.elapsed() < std::time::Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    until_down(&bridge).await;
    let refused = bridge.run(Quit).await.unwrap_err();
    assert!(matches!(refused, Error::Disconnected), "{refused:?}");
}

#[tokio::test]
async fn restarted_on_the_same_socket() {
    let scratch = Scratch::new();
    let top = scratch.chain("d", 2);
    let mut daemon = exporting(&scratch, &top);
    let bridge = daemon.bridge().await;
    let first_pid = bridge.peer_pid();
    let id = job("stream");
    drop(
        bridge
            .start_job(id.clone(), slow_stream(&id, "d"))
            .await
            .unwrap(),
    );
    daemon.kill();
    until_down(&bridge).await;
    let daemon = exporting(&scratch, &top);
    until_generation(&bridge, 2).await;
    assert_eq!(bridge.peer_pid(), Some(daemon.pid()));
    assert_ne!(bridge.peer_pid(), first_pid);
    assert_eq!(bridge.graph().await.unwrap().roots().len(), 1);
    let gone = bridge.attach_job(id).await.unwrap_err();
    assert!(matches!(gone, Error::JobVanished { .. }), "{gone:?}");
}

#[tokio::test]
async fn it_quits() {
    let scratch = Scratch::new();
    let mut machine = Qemu::machine(&scratch, &[]);
    let bridge = machine.bridge().await;
    let mut events = bridge.events();
    bridge.run(Quit).await.unwrap();
    let event = within("SHUTDOWN", events.recv()).await.unwrap();
    assert_eq!(event.name, "SHUTDOWN");
    assert!(machine.ended().await.success());
    let reason = until_down(&bridge).await;
    assert!(!reason.is_empty());
}
