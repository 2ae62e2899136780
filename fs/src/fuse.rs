//! The kernel's requests, translated: inode numbers and names in, attributes, bytes and errnos
//! out. What a name means is asked of `tree`, what a verb means of `intent`, and whatever needs
//! QEMU is handed to the engine together with the reply: no worker ever waits for it, and never all of them for storage.
//! Only this file and fuse/* name `fuser::`. It knows no QMP and no image format.

mod attr;
mod caller;
mod files;
mod guest;
mod guest_data;
mod guest_extents;
mod guest_list;
mod handles;
mod inside;
mod kept;
mod message;
mod names;
mod negotiate;
mod open;
mod origins;
mod pages;
mod passthrough;
mod plus;
mod replies;
mod requests;
mod seek;
mod session;
mod shared;
mod sizes;
mod storage;
mod sweeps;
mod together;
mod units;
mod verbs;

pub use attr::Owner;
pub(crate) use names::PID_XATTR;
pub(crate) use negotiate::LONGEST_READ;
pub use session::{Access, Mounted, Settings, mount};

use crate::errno::{Errno, Failure};
use fuser::{FopenFlags, Generation};
use shared::Shared;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Names and texts change whenever the VM does: the kernel asks each time.
const NO_TTL: Duration = Duration::ZERO;
/// No inode number is ever used again for another thing.
const GENERATION: Generation = Generation(0);
/// Called once when the last worker has ended.
pub type OnEnd = Box<dyn FnOnce() + Send + Sync>;

/// The filesystem as fuser drives it.
struct Qmpfs {
    shared: Arc<Shared>,
    on_end: Option<OnEnd>,
}

impl Qmpfs {
    /// Runs one request. A panic in it is our bug: it costs that request an EIO (the dropped
    /// reply sends it), is written down, and leaves the mount alive.
    fn run(&self, what: &str, request: impl FnOnce(&Arc<Shared>)) {
        if catch_unwind(AssertUnwindSafe(|| request(&self.shared))).is_err() {
            self.shared.log.note(&format!(
                "bug: a {what} request panicked; it was answered EIO"
            ));
        }
    }
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.code())
}

fn failed(failure: &Failure) -> fuser::Errno {
    errno(failure.errno)
}

/// A name of the tree is UTF-8; another cannot be there.
fn utf8(name: &OsStr) -> Result<&str, Failure> {
    name.to_str()
        .ok_or_else(|| Failure::new(Errno::ENOENT, "no such name"))
}

/// How a text is opened: its length is known only at open, so the kernel must not cache pages.
const TEXT_FLAGS: FopenFlags = FopenFlags::FOPEN_DIRECT_IO;
