//! Descriptors that a process got from who has started it.

use std::os::fd::{AsRawFd, RawFd};

/// The first one behind the standard streams.
const FIRST: RawFd = 3;

/// What was inherited besides the standard streams, as long as it is open. It goes on to no program that is started.
#[derive(Debug)]
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Looks, before anything is opened but `own`. Where there is no /proc none are found.
    pub fn but(own: &impl AsRawFd) -> Inherited {
        let listed = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
        let numbers = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut found: Vec<RawFd> = numbers.collect();
        found.retain(|number| *number >= FIRST && *number != own.as_raw_fd());
        // that of the listing is closed by now
        // SAFETY: two numbers; the descriptors stay as they are, but for programs that are started.
        found
            .retain(|number| unsafe { libc::fcntl(*number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0);
        Inherited(found)
    }

    /// Closes them.
    pub fn close(self) {
        for number in self.0 {
            // SAFETY: it was open before this process opened anything, and nothing here has taken it over.
            unsafe { libc::close(number) };
        }
    }
}
