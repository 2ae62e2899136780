//! Going into the background, and saying when the mount is ready: to the process that was
//! started, which waits for it, and to systemd. It knows pipes and processes, no FUSE.

use crate::errno::{Errno, Failure};
use crate::sys;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What the child writes first when all is well.
const READY: u8 = b'R';
/// What it writes first when not; the message and the next step follow, parted by a zero byte.
const FAILED: u8 = b'F';

/// Which process goes on.
pub(super) enum Role {
    /// The one that was started: it waits for the word of the other and ends.
    Starter(Word),
    /// The daemon.
    Daemon(Ready),
}

/// The starter's end.
pub(super) struct Word {
    pipe: PipeReader,
}

/// The daemon's end: it says once how the start went.
pub(super) struct Ready {
    pipe: Option<PipeWriter>,
    /// What came from who has started it.
    inherited: Option<sys::Inherited>,
}

/// Splits off the daemon. To be called before any thread is started.
pub(super) fn split() -> Result<Role, Failure> {
    let failed = |error: &std::io::Error| Failure::io("go into the background", error);
    let (reader, writer) = pipe().map_err(|error| failed(&error))?;
    match sys::fork_before_any_thread().map_err(|error| failed(&error))? {
        sys::Side::Parent => Ok(Role::Starter(Word { pipe: reader })),
        sys::Side::Child => {
            drop(reader);
            let ready = Ready {
                inherited: Some(sys::Inherited::but(&writer)),
                pipe: Some(writer),
            };
            // A daemon must not keep the directory it was started in from being unmounted.
            let moved = sys::new_session().and_then(|()| std::env::set_current_dir("/"));
            match moved {
                Ok(()) => Ok(Role::Daemon(ready)),
                Err(error) => ready.failed(&failed(&error)),
            }
        }
    }
}

impl Word {
    /// Waits until the daemon is ready or has failed.
    pub(super) fn wait(mut self) -> Result<(), Failure> {
        let mut said = Vec::new();
        self.pipe
            .read_to_end(&mut said)
            .map_err(|error| Failure::io("hear from the daemon", &error))?;
        heard(&said)
    }
}

fn heard(said: &[u8]) -> Result<(), Failure> {
    match said.split_first() {
        Some((&READY, _)) => Ok(()),
        Some((_, text)) => {
            let text = String::from_utf8_lossy(text);
            let (message, next) = text.split_once('\0').unwrap_or((&text, ""));
            Err(Failure::new(Errno::EIO, message).next(next))
        }
        None => Err(Failure::new(Errno::EIO, "the daemon died at its start")
            .next("start it again with -f to see what it says")),
    }
}

impl Ready {
    /// For a process that stays in front: nobody waits on a pipe.
    pub(super) fn in_front() -> Ready {
        Ready {
            pipe: None,
            inherited: None,
        }
    }

    /// The mount can be used.
    pub(super) fn ready(self) -> Result<(), Failure> {
        notify_systemd(&format!("READY=1\nMAINPID={}", std::process::id()));
        let Some(mut pipe) = self.pipe else {
            return Ok(());
        };
        // whoever holds a lock by a descriptor would hold it for as long as the mount lasts
        if let Some(inherited) = self.inherited {
            inherited.close();
        }
        sys::close_standard_streams().map_err(|error| Failure::io("leave the terminal", &error))?;
        // A starter that was killed does not matter to the mount.
        let _gone = pipe.write_all(&[READY]);
        Ok(())
    }

    /// The start failed; the daemon ends here, its starter shows why.
    pub(super) fn failed(self, failure: &Failure) -> ! {
        if let Some(mut pipe) = self.pipe {
            let text = format!("{}\0{}", failure.message, failure.next);
            let _gone = pipe
                .write_all(&[FAILED])
                .and_then(|()| pipe.write_all(text.as_bytes()));
        }
        std::process::exit(1)
    }

    /// Whether this is a daemon without a terminal.
    pub(super) fn in_background(&self) -> bool {
        self.pipe.is_some()
    }
}

/// Tells systemd, when it started us and wants to know.
pub(super) fn notify_systemd(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let bytes = socket.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&socket),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!("systemd was not told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::heard;

    #[test]
    fn the_words_of_a_daemon() {
        assert!(heard(b"R").is_ok());
        let failure = heard(b"Fno such VM\0start it").expect_err("it failed");
        assert_eq!(
            (failure.message.as_str(), failure.next.as_str()),
            ("no such VM", "start it")
        );
        assert!(heard(b"").expect_err("silence").message.contains("died"));
    }
}
