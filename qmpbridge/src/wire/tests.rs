//! Lines as QEMU 10.0.2 sends them, and lines it never sends.

use serde::Serialize;

use super::*;
use crate::event::EventKind;
use crate::job::JobStatus;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2+ds-2"}, "capabilities": ["oob"]}}"#;

fn parsed(line: &str) -> Message {
    parse(line.as_bytes()).unwrap()
}

fn kind(line: &str) -> EventKind {
    match parsed(line) {
        Message::Event(event) => event.kind(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn greeting() {
    let Message::Greeting(version) = parsed(GREETING) else {
        panic!()
    };
    assert_eq!(version.to_string(), "10.0.2");
    assert_eq!(version.package, "Debian 1:10.0.2+ds-2");
}

#[test]
fn replies() {
    let Message::Return { id: Some(7), value } = parsed(r#"{"return": {}, "id": 7}"#) else {
        panic!()
    };
    assert_eq!(value.get(), "{}");
    assert!(matches!(
        parsed(r#"{"return": [], "id": "other"}"#),
        Message::Return { id: None, .. }
    ));
    let line = r#"{"id": 8, "error": {"class": "GenericError", "desc": "Node 'top' is busy: node is used as backing hd of 's1'"}}"#;
    let Message::Error {
        id: Some(8),
        class,
        desc,
    } = parsed(line)
    else {
        panic!()
    };
    assert_eq!(class, "GenericError");
    assert_eq!(
        desc,
        "Node 'top' is busy: node is used as backing hd of 's1'"
    );
    let line = r#"{"error": {"class": "GenericError", "desc": "JSON parse error, invalid keyword 'bad'"}}"#;
    assert!(matches!(parsed(line), Message::Error { id: None, .. }));
}

#[test]
fn events() {
    let id = JobIdOf("j1");
    let line = r#"{"timestamp": {"seconds": 1795348057, "microseconds": 263020}, "event": "JOB_STATUS_CHANGE", "data": {"status": "concluded", "id": "j1"}}"#;
    assert_eq!(
        kind(line),
        EventKind::JobStatusChange {
            id: id.get(),
            status: JobStatus::Concluded
        }
    );
    let line = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "JOB_STATUS_CHANGE", "data": {"status": "newer", "id": "j1"}}"#;
    assert_eq!(
        kind(line),
        EventKind::JobStatusChange {
            id: id.get(),
            status: JobStatus::Unknown
        }
    );
    let line = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BLOCK_JOB_COMPLETED", "data": {"device": "j1", "len": 1, "offset": 1, "speed": 0, "type": "stream", "error": "No space left on device"}}"#;
    let outcome = Some(Err("No space left on device".to_owned()));
    assert_eq!(
        kind(line),
        EventKind::BlockJob {
            id: id.get(),
            outcome
        }
    );
    let line = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}"#;
    assert_eq!(
        kind(line),
        EventKind::Shutdown {
            guest: false,
            reason: "host-qmp-quit".into()
        }
    );
    assert_eq!(kind(r#"{"event": "STOP"}"#), EventKind::Stop);
    assert_eq!(
        kind(r#"{"event": "BLOCK_JOB_READY", "data": 5}"#),
        EventKind::Other
    );
}

struct JobIdOf(&'static str);
impl JobIdOf {
    fn get(&self) -> crate::names::JobId {
        crate::names::JobId::new(self.0).unwrap()
    }
}

#[test]
fn what_is_no_message() {
    for line in [
        "",
        "{}",
        "[]",
        "null",
        "HTTP/1.1 400",
        "{\"return\"",
        "{\"event\":5}",
        "\u{1}",
        "{\"error\":{}}",
    ] {
        assert!(
            matches!(parse(line.as_bytes()), Err(WireError::Malformed { .. })),
            "{line:?}"
        );
    }
    assert!(parse(b"{\"return\": \"\xff\"}").is_err());
}

#[test]
fn depth_is_no_matter_where_nobody_looks() {
    let deep = format!("{}{}", "{\"backing-image\":".repeat(100_000), "1").to_string()
        + &"}".repeat(100_000);
    let line = format!("{{\"return\": {deep}, \"id\": 1}}");
    assert!(matches!(parsed(&line), Message::Return { id: Some(1), .. }));
}

#[test]
fn commands() {
    #[derive(Serialize)]
    struct Nothing;
    #[derive(Serialize)]
    struct Path {
        path: std::path::PathBuf,
    }
    assert_eq!(
        encode(3, "stop", &Nothing).unwrap(),
        b"{\"execute\":\"stop\",\"id\":3}\n"
    );
    let line = encode(
        4,
        "x",
        &Path {
            path: "/a\n\"b".into(),
        },
    )
    .unwrap();
    assert_eq!(
        line,
        b"{\"execute\":\"x\",\"arguments\":{\"path\":\"/a\\n\\\"b\"},\"id\":4}\n"
    );
    use std::os::unix::ffi::OsStringExt;
    let path = std::ffi::OsString::from_vec(b"/\xff".to_vec()).into();
    assert!(encode(5, "x", &Path { path }).is_err());
}

fn lines(decoder: &mut Decoder) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while let Some(line) = decoder.next_line().unwrap() {
        found.push(line.to_vec());
    }
    found
}

#[test]
fn lines_however_they_are_cut() {
    let text = b"{\"a\":1}\r\n\r\n{\"b\":2}\n  \n{\"c\":3}\r\nrest";
    for step in 1..text.len() {
        let mut decoder = Decoder::new(100);
        let mut found = Vec::new();
        for piece in text.chunks(step) {
            decoder.push(piece);
            found.extend(lines(&mut decoder));
        }
        assert_eq!(
            found,
            [&b"{\"a\":1}"[..], b"{\"b\":2}", b"{\"c\":3}"],
            "cut every {step} bytes"
        );
        assert_eq!(decoder.rest(), b"rest");
    }
}

#[test]
fn lines_are_bounded() {
    let mut decoder = Decoder::new(10);
    decoder.push(b"0123456789\nx");
    assert_eq!(lines(&mut decoder), [b"0123456789"]);
    decoder.push(&[b'y'; 10]);
    assert_eq!(decoder.next_line(), Err(WireError::TooLong { limit: 10 }));
    let mut decoder = Decoder::new(10);
    decoder.push(b"0123456789a\n");
    assert_eq!(decoder.next_line(), Err(WireError::TooLong { limit: 10 }));
}
