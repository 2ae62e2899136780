//! At which step of a verb something goes wrong, and what: one page of memory that the test, the proxy in front of the
//! monitor and the library inside qmpfs share. It counts steps (file operations and QMP commands) from when it is armed.
//! Knows neither paths nor QMP. Compiled into the harness and into the library: no allocation, no locks.

#![allow(dead_code, unreachable_pub)] // each of the two uses its half

use std::ffi::CStr;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};

/// Room for the names of the steps, for people.
const WORDS: usize = 32 * 1024;

/// The shared memory.
#[repr(C)]
pub struct Plan {
    armed: AtomicU32,
    number: AtomicU32,
    deed: AtomicU32,
    kinds: AtomicU32,
    victims: [AtomicU32; 2],
    seen: AtomicU32,
    fired: AtomicU32,
    length: AtomicU32,
    words: [AtomicU8; WORDS],
}

/// Which steps are counted; a bit each.
pub const FILES: u32 = 1;
/// QMP commands that change something.
pub const COMMANDS: u32 = 2;

/// What happens at the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Nothing: the step is done.
    Pass,
    /// The victims are killed, and the step is not done.
    KillBefore,
    /// The step is done, then the victims are killed.
    KillAfter,
    /// The step is not done and answers this errno; a command, GenericError.
    Fail(u32),
    /// The same for this step and all after it, until the plan is disarmed.
    FailFrom(u32),
    /// A command that is never answered, and not done.
    Silence,
    /// A command that is done and whose answer never comes.
    Mute,
    /// The connection ends before the command is done.
    CutBefore,
    /// The command is done, and the connection ends before its answer.
    CutAfter,
}

impl Deed {
    fn number(self) -> u32 {
        match self {
            Self::Pass => 0,
            Self::KillBefore => 1,
            Self::KillAfter => 2,
            Self::Silence => 3,
            Self::Mute => 4,
            Self::CutBefore => 5,
            Self::CutAfter => 6,
            Self::Fail(errno) => 1000 + errno,
            Self::FailFrom(errno) => 2000 + errno,
        }
    }

    fn of(number: u32) -> Self {
        match number {
            1 => Self::KillBefore,
            2 => Self::KillAfter,
            3 => Self::Silence,
            4 => Self::Mute,
            5 => Self::CutBefore,
            6 => Self::CutAfter,
            1000..2000 => Self::Fail(number - 1000),
            2000.. => Self::FailFrom(number - 2000),
            _ => Self::Pass,
        }
    }
}

impl Plan {
    /// The plan in a file of the right length, for as long as the process lives.
    pub fn map(path: &CStr) -> Option<&'static Self> {
        // SAFETY: plain system calls; the mapping is never taken away, and all its fields are atomics.
        unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            if fd < 0 {
                return None;
            }
            let (read_write, length) = (libc::PROT_READ | libc::PROT_WRITE, size_of::<Self>());
            let at = libc::mmap(
                std::ptr::null_mut(),
                length,
                read_write,
                libc::MAP_SHARED,
                fd,
                0,
            );
            libc::close(fd);
            (at != libc::MAP_FAILED).then(|| &*at.cast::<Self>())
        }
    }

    /// Whether steps are counted at all.
    pub fn is_armed(&self) -> bool {
        self.armed.load(SeqCst) != 0
    }

    /// From now on: `deed` at the step with this number, counted from 0, among those of these kinds.
    pub fn arm(&self, kinds: u32, number: u32, deed: Deed, victims: [u32; 2]) {
        self.disarm();
        for (place, victim) in self.victims.iter().zip(victims) {
            place.store(victim, SeqCst);
        }
        self.kinds.store(kinds, SeqCst);
        self.number.store(number, SeqCst);
        self.deed.store(deed.number(), SeqCst);
        self.armed.store(1, SeqCst);
    }

    /// Lets everything pass again, uncounted.
    pub fn disarm(&self) {
        self.armed.store(0, SeqCst);
        for counter in [&self.seen, &self.fired, &self.length] {
            counter.store(0, SeqCst);
        }
    }

    /// Whether it has come to the step.
    pub fn fired(&self) -> bool {
        self.fired.load(SeqCst) != 0
    }

    /// The steps since it was armed, in words.
    pub fn steps(&self) -> Vec<String> {
        let length = (self.length.load(SeqCst) as usize).min(WORDS);
        let bytes: Vec<u8> = self.words[..length]
            .iter()
            .map(|b| b.load(SeqCst))
            .collect();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().map(str::to_owned).collect()
    }

    /// Called before each step: what is to become of it.
    pub fn step(&self, kind: u32, what: &[&[u8]]) -> Deed {
        if !self.is_armed() || self.kinds.load(SeqCst) & kind == 0 {
            return Deed::Pass;
        }
        let number = self.seen.fetch_add(1, SeqCst);
        self.note(what);
        let (at, deed) = (self.number.load(SeqCst), Deed::of(self.deed.load(SeqCst)));
        let meant = number == at || (number > at && matches!(deed, Deed::FailFrom(_)));
        if !meant || deed == Deed::Pass {
            return Deed::Pass;
        }
        self.fired.store(1, SeqCst);
        deed
    }

    /// Ends the victims.
    pub fn kill(&self) {
        for victim in &self.victims {
            let pid = victim.load(SeqCst).cast_signed();
            if pid > 0 {
                // SAFETY: a plain system call on processes that the test started.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }

    fn note(&self, what: &[&[u8]]) {
        for part in what.iter().copied().chain([&b"\n"[..]]) {
            for byte in part {
                let at = self.length.fetch_add(1, SeqCst) as usize;
                if let Some(place) = self.words.get(at) {
                    place.store(*byte, SeqCst);
                }
            }
        }
    }
}
