//! Other processes: where they are, and that ours do not outlive us.
//! It knows pids and signals; it does not know which program runs.

use super::file_id;
use crate::model::FileId;
use std::collections::HashSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// The working directory of a process, against which its relative names are meant.
pub fn process_directory(pid: i32) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/cwd"))
}

/// The root directory of a process that sees other mounts than we do; None where it sees the same,
/// and where that cannot be known.
pub fn foreign_root(pid: i32) -> Option<PathBuf> {
    let theirs = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
    let ours = std::fs::read_link("/proc/self/ns/mnt").ok()?;
    (theirs != ours).then(|| PathBuf::from(format!("/proc/{pid}/root")))
}

/// The file that a process runs.
pub fn process_program(pid: i32) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe"))
}

/// Devices and inodes of the files that a process has open.
pub fn open_files(pid: i32) -> io::Result<HashSet<FileId>> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    // one that was closed meanwhile is none
    let files = descriptors.filter_map(|entry| file_id(&entry.ok()?.path()).ok());
    Ok(files.collect())
}

/// Bytes of memory that a process really has, swapped out or not.
pub fn process_memory(pid: i32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = |field: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or(0)
    };
    let all: u64 = ["VmRSS:", "VmSwap:", "HugetlbPages:"]
        .iter()
        .map(|field| kilobytes(field))
        .sum();
    Ok(all.saturating_mul(1024))
}

/// Lets the kernel kill the child when the thread that started it ends: so start it from a thread that
/// lives as long as it is needed. Not with SIGTERM: a storage daemon that is formatting an overlay then
/// never ends (10.0.2).
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only two system calls are made, both async-signal-safe, and
    // nothing is allocated: the error is made of a number.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the signal was asked for.
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// Lets this process open as many files as it may: an open view costs one for each layer.
pub fn raise_file_limit() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live rlimit of ours, which the call fills in.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to a live rlimit of ours, which the call only reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The calling thread takes what is left of the processors and of the disks' time, from now on. What
/// the kernel refuses of it stays as it is.
pub fn give_way() {
    const NICEST: libc::c_int = 19;
    /// IOPRIO_WHO_PROCESS, and IOPRIO_CLASS_IDLE in the bits where the class is.
    const WHO: libc::c_int = 1;
    const IDLE: libc::c_int = 3 << 13;
    // SAFETY: no memory is passed; 0 is the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICEST);
        libc::syscall(libc::SYS_ioprio_set, WHO, 0, IDLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn where_a_process_is() {
        let us = i32::try_from(std::process::id()).unwrap();
        assert_eq!(
            process_directory(us).unwrap(),
            std::env::current_dir().unwrap()
        );
        assert!(process_directory(i32::MAX).is_err());
    }

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("60");
            die_with_parent(&mut command);
            command.spawn().unwrap()
        })
        .join()
        .unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
