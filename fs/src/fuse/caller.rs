//! Who asked: the process behind a request, which names only a thread. It knows /proc.

/// The process of the thread `pid`; the number itself where /proc does not tell.
/// 0 stands for any process of a namespace we cannot see into.
pub(super) fn process_of(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    tgid(&status).unwrap_or(pid)
}

fn tgid(status: &str) -> Option<u32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:"))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::{process_of, tgid};

    #[test]
    fn a_thread_belongs_to_its_process() {
        assert_eq!(tgid("Name:\tcat\nTgid:\t42\nNgid:\t0\n"), Some(42));
        assert_eq!(tgid("Name:\tTgid: 3\n"), None);
        // SAFETY: gettid takes no argument and cannot fail.
        let thread = std::thread::spawn(|| unsafe { libc::gettid() })
            .join()
            .expect("it returns");
        let thread = u32::try_from(thread).expect("thread ids are positive");
        // The thread may be gone by now; then its own number is all there is.
        assert!([std::process::id(), thread].contains(&process_of(thread)));
        // SAFETY: as above.
        let own = u32::try_from(unsafe { libc::gettid() }).expect("thread ids are positive");
        assert_eq!(process_of(own), std::process::id());
        assert_eq!(process_of(0), 0);
    }
}
