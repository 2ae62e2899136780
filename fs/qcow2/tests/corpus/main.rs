//! A corpus of images made by the real tools, over the cross product of what the format has; every
//! layer and every internal snapshot compared with what `qemu-img convert` reads, with what
//! `qemu-img map` says of its extents, and with what was written by whoever made it.
//!
//! `QMPFS_CORPUS=full` makes the whole product instead of every pair of features.
//! `QMPFS_CORPUS_SEED=n` repeats a run: the seed is printed.

#[path = "../common/mod.rs"]
mod common;

mod backing;
mod builder;
mod chains;
mod grid;
mod numbers;
mod rewritten;
mod sizes;
mod snapshots;
mod verify;

/// Whether the whole product is wanted.
fn full() -> bool {
    std::env::var("QMPFS_CORPUS").is_ok_and(|v| v == "full")
}
