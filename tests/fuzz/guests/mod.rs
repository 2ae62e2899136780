//! What must hold of the readers of guests' disks, whatever bytes they are given.
//!
//! Knows: their public interface, and where the formats keep checksums.
//! Does not know: libFuzzer. `fs/guestfs/tests/regressions.rs` runs the same checks on stable.
//! Invariant: a check panics where the property does not hold, and only there.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each target and the test are packages of their own, and use a part of it"
)]

pub mod sparse;
mod sums;
mod walk;

/// A name, and what is checked of the fuzzer's bytes under that name.
pub type Target = (&'static str, fn(&[u8]));

/// Every fuzz target.
pub const TARGETS: [Target; 10] = [
    ("guest_partitions", walk::check_partitions),
    ("guest_lvm", walk::check_lvm),
    ("guest_ext", walk::check_ext),
    ("guest_xfs", walk::check_xfs),
    ("guest_btrfs", walk::check_btrfs),
    ("guest_ntfs", walk::check_ntfs),
    ("guest_fat", walk::check_fat),
    ("guest_exfat", walk::check_exfat),
    ("guest_iso", walk::check_iso),
    ("guest_squashfs", walk::check_squashfs),
];

/// The check of a name.
pub fn check(target: &str, bytes: &[u8]) {
    for (name, check) in TARGETS {
        if name == target {
            check(bytes);
        }
    }
}
