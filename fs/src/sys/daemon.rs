//! What a daemon needs of the system: fork, a session of its own, signals, and waiting for
//! another process's end.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
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

/// Where the handler writes; -1 before there is one.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

/// The signals that ask a daemon to stop, as something to wait for. They are handled and not
/// blocked: a blocked signal stays blocked in every program we start, which then cannot be ended.
pub struct StopSignals {
    caught: PipeReader,
}

impl StopSignals {
    /// Catches SIGTERM, SIGINT and SIGHUP from now on. Once in a process.
    pub fn catch() -> io::Result<StopSignals> {
        let (caught, noted) = io::pipe()?;
        let noted = noted.into_raw_fd();
        // SAFETY: the descriptor is open and stays so; a full pipe must not stop the handler.
        if unsafe { libc::fcntl(noted, libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        SIGNAL_PIPE.store(noted, Ordering::SeqCst);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = note_signal as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            // SAFETY: the action is whole and its handler does only what a handler may.
            if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(StopSignals { caught })
    }

    /// Blocks until one of them arrives, and tells which.
    pub fn wait(&mut self) -> io::Result<i32> {
        let mut signal = [0u8];
        self.caught.read_exact(&mut signal)?;
        Ok(i32::from(signal[0]))
    }
}

extern "C" fn note_signal(signal: libc::c_int) {
    let byte = [signal as u8];
    // SAFETY: write is async-signal-safe, the byte lives through it, and errno is put back for
    // the code that was interrupted. A full pipe loses a signal that was noted often enough.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(SIGNAL_PIPE.load(Ordering::SeqCst), byte.as_ptr().cast(), 1);
        *libc::__errno_location() = errno;
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
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Process { descriptor })
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
