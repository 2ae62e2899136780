//! Unix sockets that are connected by a deadline: a listener that does not accept keeps connect(2)
//! waiting for ever otherwise.

use super::retried;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Connects, or fails with EAGAIN after `patience`.
pub fn connect_unix(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    // SAFETY: `sockaddr_un` is plain bytes and integers, for which all zeroes is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let bytes = path.as_os_str().as_bytes();
    // the last byte stays zero
    if bytes.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: no pointer is passed.
    let socket = retried(|| unsafe {
        libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)
    })?;
    // SAFETY: the descriptor was just made and nobody else has it.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(socket) });
    socket.set_write_timeout(Some(patience))?;
    // SAFETY: the descriptor is open, and the address lives across the call and is as long as said.
    retried(|| unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

/// The process at the other end; of a socket that was connected to, the one that listened.
pub fn peer_pid(socket: &UnixStream) -> io::Result<i32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes no more than `length` bytes to `peer`.
    retried(|| unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    })?;
    Ok(peer.pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn who_listens_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let socket = connect_unix(&path, Duration::from_secs(1)).unwrap();
        assert_eq!(
            u32::try_from(peer_pid(&socket).unwrap()),
            Ok(std::process::id())
        );
    }

    #[test]
    fn a_listener_that_does_not_accept_is_left_by_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let patience = Duration::from_millis(50);
        let mut open = Vec::new();
        let error = loop {
            match connect_unix(&path, patience) {
                Ok(socket) => open.push(socket),
                Err(error) => break error,
            }
            assert!(open.len() < 10_000, "the backlog has no end");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let long = dir.path().join("x".repeat(200));
        assert_eq!(
            connect_unix(&long, patience).unwrap_err().kind(),
            io::ErrorKind::InvalidFilename
        );
    }
}
