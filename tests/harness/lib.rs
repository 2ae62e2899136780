//! Real parts for testing qmpfs: QEMU, qemu-storage-daemon, a real guest, the mount, and a writer that never stops.
//! Begin with [`bench::Bench`]: a running disk, the mount on it, and everything that must stay true, in one value.
//! Nothing here uses qmpfs's own crates: what is under test does not judge itself.

pub mod agent;
pub mod bench;
pub mod embedded;
pub mod faults;
pub mod guest;
pub mod machine;
pub mod model;
pub mod mounted;
pub mod nbd;
pub mod off;
pub mod openmetrics;
pub mod oracle;
pub mod process;
pub mod proxy;
pub mod qmp;
pub mod rewrite;
pub mod sample;
pub mod scratch;
pub mod several;
pub mod sh;
pub mod steps;
mod storage_daemon;
pub mod tree;
mod vm;
pub mod wait;
pub mod writer;
