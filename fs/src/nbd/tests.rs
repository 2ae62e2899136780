//! Servers that lie, hang and die: each costs an error, in time, and no wrong byte.

use super::connection::Connection;
use super::wire::{self, Extent};
use super::{Disk, Error, Seek};
use crate::errno::Errno;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SIZE: u64 = 1 << 20;
const CONTEXT: u32 = 7;

/// A server that greets each client well, and then does what the test says.
struct Server {
    _dir: tempfile::TempDir,
    socket: PathBuf,
}

impl Server {
    fn new(serve: impl Fn(UnixStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        Self::rude(move |mut stream| {
            greet(&mut stream)?;
            serve(stream)
        })
    }

    fn rude(serve: impl Fn(UnixStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd");
        let listener = UnixListener::bind(&socket).unwrap();
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let serve = Arc::clone(&serve);
                // a client that is disappointed goes
                std::thread::spawn(move || drop(serve(stream.unwrap())));
            }
        });
        Server { _dir: dir, socket }
    }

    fn connect(&self) -> Result<Connection, Error> {
        Connection::open(&self.socket, "disk")
    }

    fn read(&self, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0xee; length];
        let mut connection = self.connect().unwrap();
        connection.read(4096, &mut bytes, soon()).map(|()| bytes)
    }

    fn extents(&self) -> Result<Vec<Extent>, Error> {
        self.connect().unwrap().extents(4096, SIZE, soon())
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn option_reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut message = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
    message.extend(option.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend((payload.len() as u32).to_be_bytes());
    message.extend(payload);
    message
}

fn hello(stream: &mut UnixStream) -> std::io::Result<()> {
    stream.write_all(&wire::GREETING.to_be_bytes())?;
    stream.write_all(&wire::OPTION.to_be_bytes())?;
    stream.write_all(&3u16.to_be_bytes())?;
    stream.read_exact(&mut [0; 4])
}

fn option(stream: &mut UnixStream) -> std::io::Result<u32> {
    let mut head = [0; 16];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes(head[12..].try_into().unwrap());
    stream.read_exact(&mut vec![0; length as usize])?;
    Ok(u32::from_be_bytes(head[8..12].try_into().unwrap()))
}

fn size_info(size: u64) -> Vec<u8> {
    let mut info = vec![0, 0];
    info.extend(size.to_be_bytes());
    info.extend([0, 0]);
    info
}

fn greet(stream: &mut UnixStream) -> std::io::Result<()> {
    hello(stream)?;
    loop {
        let wanted = option(stream)?;
        match wanted {
            wire::OPT_SET_META_CONTEXT => {
                let mut context = CONTEXT.to_be_bytes().to_vec();
                context.extend(wire::ALLOCATION);
                stream.write_all(&option_reply(wanted, wire::REP_META_CONTEXT, &context))?;
            }
            wire::OPT_GO => {
                stream.write_all(&option_reply(wanted, wire::REP_INFO, &size_info(SIZE)))?;
            }
            _ => {}
        }
        stream.write_all(&option_reply(wanted, wire::REP_ACK, &[]))?;
        if wanted == wire::OPT_GO {
            return Ok(());
        }
    }
}

/// A client's request: its cookie, offset and length.
fn request(stream: &mut UnixStream) -> std::io::Result<(u64, u64, u32)> {
    let mut head = [0; 28];
    stream.read_exact(&mut head)?;
    let number =
        |range: std::ops::Range<usize>| u64::from_be_bytes(head[range].try_into().unwrap());
    let length = u32::from_be_bytes(head[24..].try_into().unwrap());
    Ok((number(8..16), number(16..24), length))
}

fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut message = 0x668e_33efu32.to_be_bytes().to_vec();
    message.extend(flags.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend(cookie.to_be_bytes());
    message.extend((payload.len() as u32).to_be_bytes());
    message.extend(payload);
    message
}

fn data(at: u64, length: usize, byte: u8) -> Vec<u8> {
    let mut payload = at.to_be_bytes().to_vec();
    payload.extend(vec![byte; length]);
    payload
}

fn hole(at: u64, length: u32) -> Vec<u8> {
    let mut payload = at.to_be_bytes().to_vec();
    payload.extend(length.to_be_bytes());
    payload
}

/// Answers each request with what `answer` makes of its cookie.
fn answering(answer: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static) -> Server {
    Server::new(move |mut stream| {
        loop {
            let (cookie, ..) = request(&mut stream)?;
            stream.write_all(&answer(cookie))?;
        }
    })
}

#[test]
fn chunks_of_all_kinds_in_any_order_are_one_answer() {
    let server = answering(|cookie| {
        let mut all = chunk(0, 1, cookie, &data(4096 + 2048, 2048, 3));
        all.extend(chunk(0, 2, cookie, &hole(4096 + 1024, 1024)));
        all.extend(chunk(0, 1, cookie, &data(4096, 1024, 1)));
        all.extend(chunk(1, 0, cookie, &[]));
        all
    });
    let bytes = server.read(4096).unwrap();
    assert!(bytes[..1024].iter().all(|byte| *byte == 1));
    assert!(bytes[1024..2048].iter().all(|byte| *byte == 0));
    assert!(bytes[2048..].iter().all(|byte| *byte == 3));
}

#[test]
fn an_answer_that_is_not_what_was_asked_for_is_none() {
    type Lie = fn(u64) -> Vec<u8>;
    let lies: [(&str, Lie); 13] = [
        ("another cookie", |cookie| {
            chunk(1, 1, cookie ^ 1, &data(4096, 4096, 1))
        }),
        ("another magic", |_| vec![0xff; 64]),
        ("too few bytes", |cookie| {
            chunk(1, 1, cookie, &data(4096, 4095, 1))
        }),
        ("too many bytes", |cookie| {
            chunk(1, 1, cookie, &data(4096, 4097, 1))
        }),
        ("bytes from before", |cookie| {
            chunk(1, 1, cookie, &data(0, 4096, 1))
        }),
        ("the same bytes twice", |cookie| {
            let mut all = chunk(0, 1, cookie, &data(4096, 2048, 1));
            all.extend(chunk(1, 1, cookie, &data(4096 + 1024, 2048, 2)));
            all
        }),
        ("an offset that overflows", |cookie| {
            chunk(1, 1, cookie, &data(u64::MAX - 8, 4096, 1))
        }),
        ("a hole of nothing", |cookie| {
            chunk(0, 2, cookie, &hole(4096, 0))
        }),
        ("a hole beyond the end", |cookie| {
            chunk(1, 2, cookie, &hole(4096, u32::MAX))
        }),
        ("data without its offset", |cookie| {
            chunk(1, 1, cookie, &[0; 7])
        }),
        ("a kind that there is not", |cookie| {
            chunk(1, 77, cookie, &[])
        }),
        ("nothing at all, in peace", |cookie| {
            chunk(1, 0, cookie, &[])
        }),
        ("a status", |cookie| {
            let mut status = CONTEXT.to_be_bytes().to_vec();
            status.extend([0, 0, 16, 0, 0, 0, 0, 0]);
            chunk(1, 5, cookie, &status)
        }),
    ];
    for (what, lie) in lies {
        let answer = answering(lie).read(4096);
        assert!(
            matches!(answer, Err(Error::Nonsense(_))),
            "{what}: {answer:?}"
        );
    }
}

#[test]
fn an_error_number_is_told_and_the_connection_goes_on() {
    let server = Server::new(|mut stream| {
        let (cookie, ..) = request(&mut stream)?;
        let mut error = 5u32.to_be_bytes().to_vec();
        error.extend([0, 2, b'n', b'o']);
        stream.write_all(&chunk(1, 1 << 15 | 1, cookie, &error))?;
        let (cookie, ..) = request(&mut stream)?;
        stream.write_all(&chunk(1, 1, cookie, &data(4096, 4096, 9)))
    });
    let mut connection = server.connect().unwrap();
    let mut bytes = vec![0; 4096];
    let refused = connection.read(4096, &mut bytes, soon());
    assert!(matches!(refused, Err(Error::Refused(5))), "{refused:?}");
    connection.read(4096, &mut bytes, soon()).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 9));
}

#[test]
fn a_server_that_hangs_drips_or_goes_on_for_ever_is_left_by_the_deadline() {
    let hangs = Server::new(|mut stream| {
        request(&mut stream)?;
        stream.read_exact(&mut [0])
    });
    let drips = Server::new(|mut stream| {
        let (cookie, ..) = request(&mut stream)?;
        for byte in chunk(1, 1, cookie, &data(4096, 4096, 9)) {
            stream.write_all(&[byte])?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    });
    for server in [hangs, drips] {
        let mut connection = server.connect().unwrap();
        let began = Instant::now();
        let deadline = began + Duration::from_millis(200);
        let answer = connection.read(4096, &mut vec![0; 4096], deadline);
        assert!(matches!(answer, Err(Error::TimedOut)), "{answer:?}");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    let endless = Server::new(|mut stream| {
        let (cookie, ..) = request(&mut stream)?;
        let error = [0, 0, 0, 5, 0, 0];
        loop {
            stream.write_all(&chunk(0, 1 << 15 | 1, cookie, &error))?;
        }
    });
    let answer = endless.read(4096);
    assert!(
        matches!(answer, Err(Error::Nonsense(_) | Error::TimedOut)),
        "{answer:?}"
    );
}

#[test]
fn what_is_no_server_of_ours_is_not_let_in() {
    type Serve = fn(UnixStream) -> std::io::Result<()>;
    let servers: [(&str, Serve); 7] = [
        ("not NBD", |mut stream| {
            stream.write_all(b"{\"QMP\": {\"version\": {}}}\r\n")
        }),
        ("an old NBD", |mut stream| {
            stream.write_all(&wire::GREETING.to_be_bytes())?;
            stream.write_all(&0x0000_4202_8186_1253u64.to_be_bytes())?;
            stream.write_all(&[0; 200])
        }),
        ("an answer to another option", |mut stream| {
            hello(&mut stream)?;
            option(&mut stream)?;
            stream.write_all(&option_reply(99, wire::REP_ACK, &[]))
        }),
        ("an answer of 4 GiB", |mut stream| {
            hello(&mut stream)?;
            let wanted = option(&mut stream)?;
            let mut reply = option_reply(wanted, wire::REP_ACK, &[]);
            reply[16..].fill(0xff);
            stream.write_all(&reply)
        }),
        ("no size", |mut stream| {
            hello(&mut stream)?;
            while let Ok(wanted) = option(&mut stream) {
                stream.write_all(&option_reply(wanted, wire::REP_ACK, &[]))?;
            }
            Ok(())
        }),
        ("a disk larger than any", |mut stream| {
            hello(&mut stream)?;
            while let Ok(wanted) = option(&mut stream) {
                if wanted == wire::OPT_GO {
                    let info = size_info(u64::MAX);
                    stream.write_all(&option_reply(wanted, wire::REP_INFO, &info))?;
                }
                stream.write_all(&option_reply(wanted, wire::REP_ACK, &[]))?;
            }
            Ok(())
        }),
        ("informations without an end", |mut stream| {
            hello(&mut stream)?;
            let wanted = option(&mut stream)?;
            stream.write_all(&option_reply(wanted, wire::REP_ERR_UNSUP, &[]))?;
            let wanted = option(&mut stream)?;
            loop {
                stream.write_all(&option_reply(wanted, wire::REP_INFO, &[0, 9]))?;
            }
        }),
    ];
    for (what, serve) in servers {
        let answer = Server::rude(serve).connect().map(|_| ());
        assert!(
            matches!(answer, Err(Error::Nonsense(_))),
            "{what}: {answer:?}"
        );
    }
    let refuses = Server::rude(|mut stream| {
        hello(&mut stream)?;
        loop {
            let wanted = option(&mut stream)?;
            stream.write_all(&option_reply(wanted, 1 << 31 | 6, b"nothing of that name"))?;
        }
    });
    let answer = refuses.connect().map(|_| ());
    assert!(
        matches!(&answer, Err(Error::NoExport(words)) if words.contains("of that name")),
        "{answer:?}"
    );
}

/// A status chunk with these extents: length, flags.
fn status(cookie: u64, context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = context.to_be_bytes().to_vec();
    for (length, flags) in extents {
        payload.extend(length.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    chunk(1, 5, cookie, &payload)
}

#[test]
fn holes_are_what_reads_as_zeros_and_never_go_beyond_the_end() {
    let server = answering(|cookie| {
        let (hole, zero) = (1, 2);
        let all = [
            (512, 0),
            (512, hole),
            (1024, zero),
            (512, hole | zero),
            (u32::MAX, 0),
        ];
        status(cookie, CONTEXT, &all)
    });
    let extents = server.extents().unwrap();
    let rest = SIZE - 4096 - 2560;
    assert_eq!(
        extents,
        [(1024, true), (1536, false), (rest, true)].map(|(length, data)| Extent { length, data })
    );
}

#[test]
fn a_status_that_is_none_is_refused() {
    type Lie = fn(u64) -> Vec<u8>;
    let lies: [(&str, Lie); 4] = [
        ("nothing", |cookie| status(cookie, CONTEXT, &[])),
        ("of another context", |cookie| {
            status(cookie, CONTEXT + 1, &[(512, 0)])
        }),
        ("of no length", |cookie| {
            status(cookie, CONTEXT, &[(512, 0), (0, 0)])
        }),
        ("half an extent", |cookie| {
            let mut payload = CONTEXT.to_be_bytes().to_vec();
            payload.extend([0; 4]);
            chunk(1, 5, cookie, &payload)
        }),
    ];
    for (what, lie) in lies {
        let answer = answering(lie).extents();
        assert!(
            matches!(answer, Err(Error::Nonsense(_))),
            "{what}: {answer:?}"
        );
    }
}

/// A server of a real disk: byte `n` of it is `n / 512`, and each second half of 8 KiB is a hole.
fn real() -> Server {
    Server::new(serve_real)
}

fn content(at: u64) -> u8 {
    match at / 4096 % 2 {
        0 => (at / 512) as u8,
        _ => 0,
    }
}

fn serve_real(mut stream: UnixStream) -> std::io::Result<()> {
    loop {
        let mut head = [0; 28];
        stream.read_exact(&mut head)?;
        let cookie = u64::from_be_bytes(head[8..16].try_into().unwrap());
        let at = u64::from_be_bytes(head[16..24].try_into().unwrap());
        let length = u32::from_be_bytes(head[24..].try_into().unwrap());
        match head[7] {
            0 => {
                let mut payload = at.to_be_bytes().to_vec();
                payload.extend((at..at + u64::from(length)).map(content));
                stream.write_all(&chunk(1, 1, cookie, &payload))?;
            }
            7 => {
                // no more than three at a time
                let first = 4096 - (at % 4096) as u32;
                let kind = |index: u64| {
                    if (at / 4096 + index).is_multiple_of(2) {
                        0
                    } else {
                        3
                    }
                };
                let all = [(first, kind(0)), (4096, kind(1)), (4096, kind(2))];
                stream.write_all(&status(cookie, CONTEXT, &all))?;
            }
            _ => return Ok(()),
        }
    }
}

#[test]
fn many_readers_get_their_bytes_and_holes() {
    let server = real();
    let disk = Disk::open(&server.socket, "disk").unwrap();
    assert_eq!(disk.size(), SIZE);
    std::thread::scope(|scope| {
        for reader in 0..8u64 {
            let disk = &disk;
            scope.spawn(move || {
                for round in 0..50 {
                    let at = (reader * 7919 + round * 104_729) % SIZE;
                    let bytes = disk.read_now(at, 10_000).unwrap();
                    let end = (at + 10_000).min(SIZE);
                    assert!(bytes.iter().copied().eq((at..end).map(content)));
                }
            });
        }
    });
    assert_eq!(disk.allocated_now().unwrap(), SIZE / 2);
    assert_eq!(disk.seek_now(0, Seek::Data).unwrap(), Some(0));
    assert_eq!(disk.seek_now(0, Seek::Hole).unwrap(), Some(4096));
    assert_eq!(disk.seek_now(5000, Seek::Data).unwrap(), Some(8192));
    assert_eq!(disk.seek_now(SIZE - 100, Seek::Data).unwrap(), None);
    assert_eq!(disk.seek_now(SIZE, Seek::Hole).unwrap(), None);
    assert!(disk.read_now(SIZE, 100).unwrap().is_empty());
    disk.break_off("it is over");
    let failure = disk.read_now(0, 512).unwrap_err();
    assert_eq!(
        (failure.errno, failure.message.as_str()),
        (Errno::EIO, "it is over")
    );
}

#[test]
fn a_connection_that_ended_is_made_again() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let greeted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&greeted);
    let server = Server::new(move |mut stream| {
        count.fetch_add(1, Ordering::Relaxed);
        let (cookie, at, length) = request(&mut stream)?;
        stream.write_all(&chunk(1, 1, cookie, &data(at, length as usize, 4)))
    });
    let disk = Disk::open(&server.socket, "disk").unwrap();
    for _ in 0..20 {
        assert_eq!(disk.read_now(512, 512).unwrap(), [4; 512]);
    }
    assert!(greeted.load(Ordering::Relaxed) >= 19);
}
