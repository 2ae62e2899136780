//! What is agreed with the kernel when it begins: how long reads are, how many at once, and which
//! of its newer ways are used. A kernel without one of them is served all the same.

use super::passthrough::Passthrough;
use fuser::{InitFlags, KernelConfig};

/// Bytes of the longest read, and of what the kernel reads ahead. An answer to it has some hundred
/// parts at most, where a message may have 1024.
pub(crate) const LONGEST_READ: u32 = 1 << 20;
/// Requests the kernel may have in flight in the background (read-ahead, async direct reads):
/// queue depth 32 of one reader and as much for another.
const BACKGROUND: u16 = 64;
/// Layers that the kernel reads by itself lie on plain filesystems, not on stacked ones.
const STACK_DEPTH: u32 = 1;

pub(super) fn negotiate(passthrough: Option<&Passthrough>, config: &mut KernelConfig) {
    // Each is worth having alone, and an older kernel has none of them.
    for wish in [
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_ASYNC_DIO,
        // Always, and not when the kernel thinks that it pays: who lists all names first and looks at them then is
        // asked for each of them otherwise.
        InitFlags::FUSE_DO_READDIRPLUS,
        // Views are read past the page cache, and some programs map what they read.
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    ] {
        if config.add_capabilities(wish).is_err() {
            tracing::debug!(?wish, "not offered by this kernel");
        }
    }
    if let Some(passthrough) = passthrough
        && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(STACK_DEPTH).is_ok()
    {
        passthrough.offer();
    }
    // Reads are no longer than writes could be; the kernel may be set up for far longer ones.
    if let Err(nearest) = config.set_max_write(LONGEST_READ) {
        tracing::debug!(nearest, "the longest read is left as it is");
    }
    if let Err(nearest) = config.set_max_background(BACKGROUND) {
        tracing::debug!(nearest, "background requests not set");
    }
}
