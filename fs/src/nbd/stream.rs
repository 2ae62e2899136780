//! Whole buffers through a socket, each by a deadline.

use super::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

pub(super) fn receive(
    mut stream: &UnixStream,
    into: &mut [u8],
    deadline: Instant,
) -> Result<(), Error> {
    let mut filled = 0;
    while filled < into.len() {
        stream
            .set_read_timeout(Some(left(deadline)?))
            .map_err(Error::Io)?;
        match stream.read(&mut into[filled..]) {
            Ok(0) => return Err(Error::Io(ErrorKind::UnexpectedEof.into())),
            Ok(count) => filled += count,
            Err(error) => pass_over(error)?,
        }
    }
    Ok(())
}

pub(super) fn transmit(
    mut stream: &UnixStream,
    bytes: &[u8],
    deadline: Instant,
) -> Result<(), Error> {
    let mut sent = 0;
    while sent < bytes.len() {
        stream
            .set_write_timeout(Some(left(deadline)?))
            .map_err(Error::Io)?;
        match stream.write(&bytes[sent..]) {
            Ok(0) => return Err(Error::Io(ErrorKind::WriteZero.into())),
            Ok(count) => sent += count,
            Err(error) => pass_over(error)?,
        }
    }
    Ok(())
}

/// The deadline is looked at before each attempt.
fn pass_over(error: std::io::Error) -> Result<(), Error> {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(()),
        _ => Err(Error::Io(error)),
    }
}

fn left(deadline: Instant) -> Result<Duration, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(Error::TimedOut),
        false => Ok(left),
    }
}
