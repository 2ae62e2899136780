//! What a daemon needs of the system: fork, a session of its own, signals, and waiting for
//! another process's end.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The process that asked.
    Parent,
    /// The new one.
    Child,
}

/// fork(2). Only for a process that has one thread: locks of others would stay locked for ever
/// in the child. The caller proves it by calling this before it starts any.
pub fn fork_before_any_thread() -> io::Result<Side> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(io::Error::other(
            "a process with threads cannot go into the background",
        ));
    }
    // SAFETY: there is one thread, so the child's memory is whole and no lock is held by another.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        _ => Ok(Side::Parent),
    }
}

/// Leaves the terminal's session.
pub fn new_session() -> io::Result<()> {
    // SAFETY: a plain system call without arguments.
    match unsafe { libc::setsid() } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Points standard input, output and error at /dev/null.
pub fn close_standard_streams() -> io::Result<()> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open(Path::new("/dev/null"))?;
    for stream in 0..=2 {
        // SAFETY: both descriptors are open; the standard streams are owned by nobody in particular.
        if unsafe { libc::dup2(null.as_raw_fd(), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The signals that ask a daemon to stop, blocked in this thread and all it starts.
pub struct StopSignals {
    set: libc::sigset_t,
}

impl StopSignals {
    /// Blocks SIGTERM, SIGINT and SIGHUP. Call it before any thread is started.
    pub fn block() -> io::Result<StopSignals> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset makes the set whole before it is used; the signals are valid ones.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            set.assume_init()
        };
        // SAFETY: the set is whole; the old mask is not asked for.
        match unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
        } {
            0 => Ok(StopSignals { set }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Blocks until one of them arrives, and tells which.
    pub fn wait(&self) -> io::Result<i32> {
        let mut signal = 0;
        // SAFETY: the set is whole, and `signal` is there to be written.
        match unsafe { libc::sigwait(&raw const self.set, &raw mut signal) } {
            0 => Ok(signal),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// A process that can be waited for although it is nobody's child.
pub struct Process {
    descriptor: OwnedFd,
}

impl Process {
    /// The process `pid`. ESRCH when there is none.
    pub fn open(pid: i32) -> io::Result<Process> {
        // SAFETY: pidfd_open takes two integers.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else has it.
        Ok(Process {
            descriptor: unsafe { OwnedFd::from_raw_fd(descriptor) },
        })
    }

    /// Waits for its end. False when it is still there after `patience`.
    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        let mut poll = libc::pollfd {
            fd: self.descriptor.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd is there to be read and written.
        let ready = super::retried(|| unsafe { libc::poll(&raw mut poll, 1, millis) })?;
        Ok(ready > 0)
    }
}

/// The effective user and group of this process.
pub fn own_ids() -> (u32, u32) {
    // SAFETY: neither takes an argument nor can fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// One extended attribute of a path, as text. None when it has none or cannot be asked.
pub fn xattr_text(path: &Path, name: &str) -> Option<String> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let name = std::ffi::CString::new(name).ok()?;
    let mut value = [0u8; 256];
    // SAFETY: both strings and the buffer live through the call, and its length is given.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let value = value.get(..usize::try_from(length).ok()?)?;
    String::from_utf8(value.to_vec()).ok()
}
