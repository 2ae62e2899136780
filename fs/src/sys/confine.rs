//! A process that gives up all it does not need: it keeps its open descriptors, memory up to a limit,
//! and reading and writing what is open. Each fence stands by itself: a kernel without one has the others.

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;
use std::io;

/// Address space: caches and tables of a reader take a tenth of it.
const MEMORY: u64 = 512 << 20;
/// The first descriptor behind the standard streams.
const FIRST: libc::c_uint = 3;
/// The user and group that own nothing.
const NOBODY: u32 = 65534;

/// Closes what was inherited besides the standard streams; at the beginning, before anything is opened.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: three numbers; nothing of this process has a descriptor of these.
    match unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Confines this process, for good.
pub fn confine() -> io::Result<()> {
    limit(libc::RLIMIT_AS, MEMORY)?;
    limit(libc::RLIMIT_CORE, 0)?;
    limit(libc::RLIMIT_FSIZE, 0)?;
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        become_nobody();
    }
    // SAFETY: these take numbers. The signal is asked for anew, as a change of user takes it back;
    // who has no parent any more sees the end of its socket.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    limit(libc::RLIMIT_NOFILE, 16)?;
    lock_the_land();
    filter_calls()
}

fn limit(what: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: the pointer is to a live rlimit of ours, which the call only reads.
    match unsafe { libc::setrlimit(what, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where root may not do that, in some containers, it is no root that could do harm.
fn become_nobody() {
    // SAFETY: plain system calls with numbers, in a process with one thread.
    unsafe {
        libc::setgroups(0, std::ptr::null());
        libc::setresgid(NOBODY, NOBODY, NOBODY);
        libc::setresuid(NOBODY, NOBODY, NOBODY);
    }
}

/// No file, no port, no signal, as far as the kernel knows of these.
fn lock_the_land() {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V6))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI::V6)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI::V6)))
        .and_then(|rules| rules.create());
    // A kernel without landlock has the filter of calls below, which lets nothing be opened.
    let _fenced = rules.and_then(|rules| rules.restrict_self());
}

/// Which version of landlock this kernel has, if it has it and it is switched on.
pub fn landlock_version() -> Option<u32> {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no attributes and makes nothing.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            VERSION,
        )
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// The system calls that are left; any other ends the process.
fn filter_calls() -> io::Result<()> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_close,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_sigaltstack,
        libc::SYS_clock_gettime,
        libc::SYS_getrandom,
        libc::SYS_sched_yield,
        libc::SYS_restart_syscall,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ]
    .into_iter()
    .map(|call| (call, Vec::new()))
    .collect();
    // Memory, but none that can be run.
    let executable = u64::from(libc::PROT_EXEC.cast_unsigned());
    let plain = SeccompCondition::new(
        2,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(executable),
        0,
    );
    let plain = plain.and_then(|plain| SeccompRule::new(vec![plain]));
    let plain = plain.map_err(io::Error::other)?;
    rules.insert(libc::SYS_mmap, vec![plain.clone()]);
    rules.insert(libc::SYS_mprotect, vec![plain]);
    let architecture = std::env::consts::ARCH;
    let Ok(architecture) = architecture.try_into() else {
        // The filter knows the processors that QEMU is mostly run on; others have the fences above.
        return Ok(());
    };
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        architecture,
    );
    let program: BpfProgram = filter
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}
