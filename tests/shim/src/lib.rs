//! Loaded into qmpfs by the tests (LD_PRELOAD): system calls that change something in the directory of the images
//! become steps, at which qmpfs dies or the call fails as the test's plan says. The product has no hooks for tests.
//! Knows libc and the plan; which call means what to a verb it does not know. Children are started without it.

#![allow(missing_docs, clippy::missing_safety_doc)] // the manual of libc is theirs

use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use libc::{c_char, c_int, c_uint, c_void, mode_t, off64_t, size_t, ssize_t};

mod plan;
use plan::{Deed, FILES, Plan};

/// Long enough for every path a test makes.
const PATH: usize = 4096;

struct Setting {
    plan: &'static Plan,
    directory: &'static [u8],
}

static SETTING: OnceLock<Option<Setting>> = OnceLock::new();

/// Runs before main: what is read here is then hidden from children (our own storage daemon).
#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

extern "C" fn init() {
    SETTING.get_or_init(|| {
        let value = |name: &CStr| {
            // SAFETY: before main there is one thread; the environment's strings live as long as the process.
            let value = unsafe { libc::getenv(name.as_ptr()) };
            // SAFETY: getenv gives NULL or a string that ends with NUL.
            (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })
        };
        let setting = value(c"QMPFS_TEST_PLAN").zip(value(c"QMPFS_TEST_IMAGES"));
        let setting = setting.and_then(|(file, directory)| {
            Some(Setting {
                plan: Plan::map(file)?,
                directory: Vec::leak(directory.to_owned().into_bytes()),
            })
        });
        // SAFETY: one thread, see above.
        unsafe { libc::unsetenv(c"LD_PRELOAD".as_ptr()) };
        setting
    });
}

/// A step on a path; `None` for one that is none of ours.
fn step(call: &str, path: &[u8]) -> Option<(&'static Plan, Deed)> {
    let setting = SETTING.get()?.as_ref()?;
    let rest = path.strip_prefix(setting.directory)?;
    if !rest.is_empty() && rest[0] != b'/' {
        return None;
    }
    let deed = setting.plan.step(
        FILES,
        &[call.as_bytes(), b" ", rest.get(1..).unwrap_or(b".")],
    );
    Some((setting.plan, deed))
}

/// Does a step as the plan says.
fn act(step: Option<(&'static Plan, Deed)>, call: impl FnOnce() -> i64) -> i64 {
    let Some((plan, deed)) = step else {
        return call();
    };
    match deed {
        // where only QEMU is a victim, we go on
        Deed::KillBefore => {
            plan.kill();
            call()
        }
        Deed::KillAfter => {
            let answer = call();
            plan.kill();
            answer
        }
        Deed::Fail(errno) | Deed::FailFrom(errno) => {
            // SAFETY: the address of this thread's errno.
            unsafe { *libc::__errno_location() = errno.cast_signed() };
            -1
        }
        Deed::Pass | Deed::Silence | Deed::Mute | Deed::CutBefore | Deed::CutAfter => call(),
    }
}

fn on_path(call: &str, path: *const c_char) -> Option<(&'static Plan, Deed)> {
    if path.is_null() {
        return None;
    }
    // SAFETY: a path given to a system call ends with NUL.
    step(call, unsafe { CStr::from_ptr(path) }.to_bytes())
}

fn on_descriptor(call: &str, fd: c_int) -> Option<(&'static Plan, Deed)> {
    if !SETTING.get()?.as_ref()?.plan.is_armed() {
        return None;
    }
    let mut link = [0u8; 32];
    let mut at = b"/proc/self/fd/".len();
    link[..at].copy_from_slice(b"/proc/self/fd/");
    let mut digits = [0u8; 10];
    let mut left = u32::try_from(fd).ok()?;
    let mut count = 0;
    loop {
        digits[count] = b'0' + (left % 10) as u8;
        (left, count) = (left / 10, count + 1);
        if left == 0 {
            break;
        }
    }
    for digit in digits[..count].iter().rev() {
        link[at] = *digit;
        at += 1;
    }
    let mut path = [0u8; PATH];
    // SAFETY: `link` ends with NUL, and the kernel writes at most as many bytes as we say.
    let length =
        unsafe { libc::readlink(link.as_ptr().cast(), path.as_mut_ptr().cast(), path.len()) };
    step(call, &path[..usize::try_from(length).ok()?])
}

/// The call of the same name in libc.
fn next(cache: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let known = cache.load(Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: the name ends with NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!found.is_null(), "libc has the calls that Linux has");
    cache.store(found, Relaxed);
    found
}

/// Puts a step before the libc call of the same name.
macro_rules! calls {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty => $step:expr;)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
            static NEXT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            let name = CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()).expect("one NUL, at its end");
            // SAFETY: libc's function of this name has this type.
            let call: unsafe extern "C" fn($($kind),*) -> $result = unsafe { std::mem::transmute(next(&NEXT, name)) };
            // SAFETY: the arguments are the caller's own.
            act($step, || unsafe { call($($argument),*) } as i64) as $result
        }
    )* };
}

fn creates(call: &str, path: *const c_char, flags: c_int) -> Option<(&'static Plan, Deed)> {
    if flags & (libc::O_CREAT | libc::O_TRUNC) == 0 {
        return None;
    }
    on_path(call, path)
}

// `open` and its kin are variadic in C; on Linux's 64-bit targets a third argument is passed alike.
calls! {
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int => creates("create", path, flags);
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int => creates("create", path, flags);
    openat(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int => creates("create", path, flags);
    openat64(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int => creates("create", path, flags);
    link(old: *const c_char, new: *const c_char) -> c_int => on_path("link", new);
    linkat(old_at: c_int, old: *const c_char, new_at: c_int, new: *const c_char, flags: c_int) -> c_int => on_path("link", new);
    symlink(to: *const c_char, new: *const c_char) -> c_int => on_path("symlink", new);
    rename(old: *const c_char, new: *const c_char) -> c_int => on_path("rename", new);
    renameat(old_at: c_int, old: *const c_char, new_at: c_int, new: *const c_char) -> c_int => on_path("rename", new);
    renameat2(old_at: c_int, old: *const c_char, new_at: c_int, new: *const c_char, flags: c_uint) -> c_int => on_path("rename", new);
    unlink(path: *const c_char) -> c_int => on_path("unlink", path);
    unlinkat(at: c_int, path: *const c_char, flags: c_int) -> c_int => on_path("unlink", path);
    mkdir(path: *const c_char, mode: mode_t) -> c_int => on_path("mkdir", path);
    rmdir(path: *const c_char) -> c_int => on_path("rmdir", path);
    fsync(fd: c_int) -> c_int => on_descriptor("fsync", fd);
    fdatasync(fd: c_int) -> c_int => on_descriptor("fdatasync", fd);
    ftruncate(fd: c_int, length: off64_t) -> c_int => on_descriptor("ftruncate", fd);
    ftruncate64(fd: c_int, length: off64_t) -> c_int => on_descriptor("ftruncate", fd);
    fallocate(fd: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int => on_descriptor("fallocate", fd);
    fallocate64(fd: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int => on_descriptor("fallocate", fd);
    fchown(fd: c_int, owner: c_uint, group: c_uint) -> c_int => on_descriptor("fchown", fd);
    fchmod(fd: c_int, mode: mode_t) -> c_int => on_descriptor("fchmod", fd);
    setxattr(path: *const c_char, name: *const c_char, value: *const c_void, size: size_t, flags: c_int) -> c_int => on_path("setxattr", path);
    fsetxattr(fd: c_int, name: *const c_char, value: *const c_void, size: size_t, flags: c_int) -> c_int => on_descriptor("setxattr", fd);
    removexattr(path: *const c_char, name: *const c_char) -> c_int => on_path("removexattr", path);
    fremovexattr(fd: c_int, name: *const c_char) -> c_int => on_descriptor("removexattr", fd);
    pwrite(fd: c_int, bytes: *const c_void, count: size_t, offset: off64_t) -> ssize_t => on_descriptor("write", fd);
    pwrite64(fd: c_int, bytes: *const c_void, count: size_t, offset: off64_t) -> ssize_t => on_descriptor("write", fd);
    write(fd: c_int, bytes: *const c_void, count: size_t) -> ssize_t => on_descriptor("write", fd);
}
