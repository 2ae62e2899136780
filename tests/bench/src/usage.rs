//! What a process has used, as the kernel counts it.

use std::time::Duration;

/// CPU time of a process and all its threads, those that have ended, too.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let mut clock = 0;
    // SAFETY: writes one clockid_t into a variable of ours.
    let found = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &mut clock) };
    assert_eq!(found, 0, "process {pid} has a CPU clock");
    // SAFETY: a timespec of zeros is valid.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: writes one timespec into a variable of ours.
    let read = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(read, 0, "the CPU clock of process {pid} can be read");
    let seconds = u64::try_from(time.tv_sec).expect("a positive time");
    let nanos = u32::try_from(time.tv_nsec).expect("below a second");
    Duration::new(seconds, nanos).as_secs_f64()
}

/// Memory of a process, in bytes.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    pub(crate) highest: u64,
    pub(crate) anonymous: u64,
    pub(crate) of_files: u64,
}

/// What a process holds now, and held at most.
pub(crate) fn memory(pid: u32) -> Memory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let bytes = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib: u64 = line
            .and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {status}"));
        kib * 1024
    };
    Memory {
        resident: bytes("VmRSS"),
        highest: bytes("VmHWM"),
        anonymous: bytes("RssAnon"),
        of_files: bytes("RssFile"),
    }
}
