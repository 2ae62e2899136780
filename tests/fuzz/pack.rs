//! Writes a disk to standard output as the targets for guests' disks take it: `pack DISK`.

#[path = "guests/sparse.rs"]
mod sparse;

use std::io::Write;

fn main() {
    let path = std::env::args_os().nth(1).expect("usage: pack DISK");
    let disk = std::fs::read(path).expect("the disk can be read");
    let packed = sparse::pack(&disk).expect("at most 64 MiB");
    std::io::stdout().write_all(&packed).expect("somebody reads");
    // Nothing is lost on the way.
    assert!(sparse::unpack(&packed).starts_with(&disk));
}
